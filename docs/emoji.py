"""Makes class folders of emoji, as pictures of one's own for docs/recipes.md.

    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz
    python docs/emoji.py package emoji

The emoji are those of Noto Emoji, Apache-2.0. The classes are Unicode's categories. Pictures that are nearly the same
must not be on both sides of the split. So skin tones are left out, people, most of whom are there as woman, man and
person, and flags that differ in nothing but their names.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

TEST = 0.3
"""The share of each class that is kept for testing."""


def main() -> None:
    """Copy the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package")
    parser.add_argument("folder", type=Path, help="where to write train/CLASS/*.png and test/CLASS/*.png")
    args = parser.parse_args()
    pictures = args.package / "img" / "google" / "64"
    classes: dict[str, list[Path]] = {}
    seen: set[bytes] = set()
    for emoji in json.loads((args.package / "emoji.json").read_text()):
        path = pictures / emoji["image"]
        if emoji["has_img_google"] and emoji["category"] not in ("People & Body", "Component"):
            content = path.read_bytes()
            if content not in seen:
                classes.setdefault(emoji["category"].split(" & ")[0].lower(), []).append(path)
            seen.add(content)
    for name, paths in classes.items():
        random.Random(0).shuffle(paths)
        tests = round(TEST * len(paths))
        for index, path in enumerate(paths):
            target = args.folder / ("test" if index < tests else "train") / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        print(f"{name}: {len(paths) - tests} training, {tests} test pictures")


if __name__ == "__main__":
    main()
