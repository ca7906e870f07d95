"""Makes class folders of photographs, as pictures of one's own for a real backbone.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb package
    python examples/stamps.py package stamps

The pictures are the stamps of Tux Paint, GPL-2: cut-outs of photographs, with some drawings among them.
"""

import argparse
from pathlib import Path

from PIL import Image

STAMPS = Path("usr", "share", "tuxpaint", "stamps")
"""The folder of all stamps in Debian's package."""
FOLDERS = {
    "birds": "animals/birds",
    "fish": "animals/fish",
    "flowers": "plants/flowers",
    "fruit": "food/fruit",
    "insects": "animals/insects",
    "mammals": "animals/mammals",
    "tools": "household/tools",
    "vegetables": "food/vegetables",
}
"""Where the stamps of each class are."""


def on_white(path: Path) -> Image.Image:
    """The picture without transparency, because what lies under its transparent pixels is arbitrary."""
    picture = Image.open(path).convert("RGBA")
    background = Image.new("RGBA", picture.size, "white")
    background.alpha_composite(picture)
    return background.convert("RGB")


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="The unpacked Debian package.")
    parser.add_argument("folder", type=Path, help="Where to write CLASS/*.png.")
    args = parser.parse_args()
    for name, folder in FOLDERS.items():
        target = args.folder / name
        target.mkdir(parents=True, exist_ok=True)
        source = args.package / STAMPS / folder
        paths = sorted(source.rglob("*.png"))
        for path in paths:
            # Two folders of one class may have a picture of the same name.
            on_white(path).save(target / "-".join(path.relative_to(source).parts))
        print(f"{name}: {len(paths)} pictures")


if __name__ == "__main__":
    main()
