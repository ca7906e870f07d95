"""Turns the example notebook into a page with its outputs, as they are stored in it.

    python docs/generate_notebook.py docs/examples

Sphinx does so before it reads the pages. An extension that does the same would need Jupyter or pandoc.
"""

import argparse
import base64
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "first_ten_minutes.ipynb"


def write(folder: Path) -> None:
    """Write the page and its pictures; files that are already right are left alone."""
    page, pictures = convert(json.loads(NOTEBOOK.read_text(encoding="utf-8")), NOTEBOOK.stem)
    page += f"\nThis page is [a notebook](../../examples/{NOTEBOOK.name}), which you can run.\n"
    files = {f"{NOTEBOOK.stem}.md": page.encode(), **pictures}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)


def convert(notebook: dict[str, Any], stem: str) -> tuple[str, dict[str, bytes]]:
    """The text of the page, and its pictures by the names of their files, which begin with the stem."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # The page lies one folder deeper than the notebook.
            parts.append(source.replace("](../", "](../../"))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            picture = output.get("data", {}).get("image/png")
            if picture:
                name = f"{stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(picture)
                parts.append(f"![What the code above draws]({name})")
            else:
                printed = "".join(output["text"])
                parts.append(f"```text\n{printed.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
