"""Texts of others in Markdown: names of files, classes and methods can be anything, and must stay the text they are."""

import re


def plain(text: str) -> str:
    """The text on one line, so that Markdown shows it as it is: no heading, link, picture, HTML or border of a cell."""
    text = _on_one_line(text)
    # HTML first, because some of the escapes below begin with the same character.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
    # Within a word an underscore means nothing, and most names have some.
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    # What would become a link by itself on GitHub and on the Hugging Face hub.
    text = text.replace("://", "&#58;//").replace("@", "&#64;")
    text = re.sub(r"\bwww\.", "www&#46;", text, flags=re.IGNORECASE)
    # What would begin a heading or a list, or underline one, where it begins a line.
    text = re.sub(r"^(?=(#{1,6}|[+-])(\s|$)|[-=]+$)", r"\\", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def code(text: str) -> str:
    """The text on one line, as code within a line."""
    text = _on_one_line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    # Markdown takes one space away on each side.
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"


def _on_one_line(text: str) -> str:
    """The text without line breaks and other control characters."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).split())
