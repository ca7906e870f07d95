"""Makes the links of README.md absolute, in place: PyPI shows this page, and has none of the files beside it.

python .ci/absolute_links.py https://github.com/OWNER/NAME v0.3.0
"""

import re
import sys
from pathlib import Path

README = Path("README.md")
RELATIVE = re.compile(r'(?P<before>\]\(|\bsrc=")(?!https?:|mailto:|data:)(?P<target>[^)"\s]+)')
"""The beginning of a link or an HTML picture, and the file or section that it names."""
PICTURES = (".png", ".svg", ".jpg", ".gif", ".webp")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
"""A block of code, in which brackets are no links."""


def absolute(text: str, repository: str, tag: str) -> str:
    """The text of the page with links into the repository's files at a tag."""

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        # PyPI gives the headings of a page no names.
        if target.startswith("#"):
            target = README.name + target
        view = "raw" if target.endswith(PICTURES) else "blob"
        return f"{match['before']}{repository}/{view}/{tag}/{target}"

    parts = FENCE.split(text)
    # Splitting at what stands in a group gives text and code in turns.
    parts[::2] = [RELATIVE.sub(link, part) for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    README.write_text(absolute(README.read_text(encoding="utf-8"), *sys.argv[1:]), encoding="utf-8")
