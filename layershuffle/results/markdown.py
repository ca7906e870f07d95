"""Texts of others in Markdown: names of files, classes and methods can be anything, and must stay the text they are."""

import re


def plain(text: str) -> str:
    """The text on one line, so that Markdown shows it as it is: no heading, link, picture, HTML or border of a cell."""
    text = _on_one_line(text)
    # HTML first, because some of the escapes below begin with the same character.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~])", r"\\\1", text)
    # Most names have underscores, and within a word one means nothing: only the others are escaped.
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)
    # What would become a link by itself on GitHub and on the Hugging Face hub.
    text = text.replace("://", "&#58;//").replace("@", "&#64;")
    text = re.sub(r"\bwww\.", "www&#46;", text, flags=re.IGNORECASE)
    # At the beginning of a line: what would begin a heading or a list, or make a heading of the line above.
    text = re.sub(r"^(?=(#{1,6}|[+-])(\s|$)|[-=]+$)", r"\\", text)
    # And a number that would begin a numbered list.
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def code(text: str) -> str:
    """The text on one line, as code within a line."""
    text = _on_one_line(text)
    # Code ends at a fence as long as that which began it, so the fence must be longer than any backticks in the text.
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    # Markdown takes one space away on each side. They keep backticks at the text's ends apart from the fence.
    return f"{fence} {text} {fence}" if longest else f"{fence}{text}{fence}"


def _on_one_line(text: str) -> str:
    """The text without line breaks and other control characters."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).split())
