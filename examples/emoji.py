"""Makes class folders of emoji, as pictures of one's own for docs/guides/recipes.md.

    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz
    python examples/emoji.py package emoji

The emoji are those of Noto Emoji, Apache-2.0. The classes are Unicode's categories. Pictures that are nearly the same
must not be on both sides of the split. So skin tones are left out, people, most of whom are there as woman, man and
person, and flags that differ in nothing but their names.

With `--more` the training emoji come in other designs too; the test pictures stay the same. Two packages name their
pictures as Noto Emoji does, Twemoji (CC-BY 4.0) and Fluent Emoji (MIT):

    npm pack emoji-datasource-twitter && tar xzf emoji-datasource-twitter-*.tgz --one-top-level=twemoji
    npm pack @lobehub/fluent-emoji-3d && tar xzf lobehub-fluent-emoji-3d-*.tgz --one-top-level=fluent
    python examples/emoji.py package emoji3 --more twemoji/package/img/twitter/64 fluent/package/assets
"""

import argparse
import json
import random
import shutil
from pathlib import Path

TEST = 0.3
"""The share of each class that is kept for testing."""
LEFT_OUT = ("People & Body", "Component")
"""The categories that have pictures which are nearly the same."""


def pictures_by_class(package: Path) -> dict[str, list[Path]]:
    """The pictures of each class, without people and without two that are the same."""
    classes: dict[str, list[Path]] = {}
    seen: set[bytes] = set()
    for emoji in json.loads((package / "emoji.json").read_text()):
        if not emoji["has_img_google"] or emoji["category"] in LEFT_OUT:
            continue
        path = package / "img" / "google" / "64" / emoji["image"]
        content = path.read_bytes()
        if content not in seen:
            seen.add(content)
            name = emoji["category"].split(" & ")[0].lower()
            classes.setdefault(name, []).append(path)
    return classes


def add_designs(folders: list[Path], training_folder: Path) -> int:
    """Copy the same emoji from other folders beside the training pictures. Returns how many they were."""
    copied = 0
    # A list, because the copies go to the same folders.
    for picture in sorted(training_folder.glob("*/*.png")):
        for number, folder in enumerate(folders, 2):
            for other in sorted(folder.glob(f"{picture.stem}.*")):
                shutil.copyfile(other, picture.with_name(f"{picture.stem}_design{number}{other.suffix}"))
                copied += 1
    return copied


def main() -> None:
    """Copy the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="The unpacked npm package.")
    parser.add_argument("folder", type=Path, help="Where to write train/CLASS/*.png and test/CLASS/*.png.")
    parser.add_argument(
        "--more",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="Pictures of the same emoji in other designs.",
    )
    args = parser.parse_args()
    for folder in args.more:
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    for name, paths in pictures_by_class(args.package).items():
        random.Random(0).shuffle(paths)
        tests = round(TEST * len(paths))
        for index, path in enumerate(paths):
            split = "test" if index < tests else "train"
            target = args.folder / split / name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        print(f"{name}: {len(paths) - tests} training, {tests} test pictures")
    if args.more:
        copied = add_designs(args.more, args.folder / "train")
        print(f"{copied} training pictures in other designs")


if __name__ == "__main__":
    main()
