"""Says in words what a data set holds."""

import textwrap
from collections.abc import Mapping, Sequence

from torch.utils.data import Dataset, Subset

from layershuffle.data.sets import images_by_class
from layershuffle.plurals import counted

MOST_NAMED = 10
"""Of more classes than this without an image, the others are counted."""
MOST_CLASSES = 50
"""The counts of more classes than this are summed up when training begins."""
WIDTH = 80
"""Lines are at most as long, unless they hold a path or a name that is longer."""

_KINDS = {"train": "training", "val": "validation", "test": "test"}
"""What the images of a split are called."""


def describe(
    label: str,
    num_classes: int,
    class_names: Sequence[str] | None,
    sets: Mapping[str, Dataset],
    balanced: bool,
) -> str:
    """Lines that say how many images there are of each split and class, and what validates.

    Args:
        label: the name of the data set.
        num_classes: its number of classes.
        class_names: their names, or None if they are unknown.
        sets: the images that are used, by split: "train", "val" and "test".
        balanced: whether every class comes equally often in training.
    """
    sizes = [f"{len(sets[split]):,} {kind}" for split, kind in _KINDS.items()]  # type: ignore[arg-type]
    first = f"{label}: {counted(num_classes, 'class')}; {', '.join(sizes)} images"
    first += _where_validation_comes_from(sets)
    if balanced:
        first += "; every class comes equally often in training"

    names = list(class_names or [str(number) for number in range(num_classes)])
    counts = _images_by_class(sets, num_classes)
    lines = wrapped(first)
    # Some sets don't tell their labels before they are read.
    all_are_known = len(counts) == len(_KINDS) and all(len(of_split) == len(names) for of_split in counts)
    if all_are_known and len(names) <= MOST_CLASSES:
        lines += _each_class(names, counts)
    elif all_are_known:
        lines += wrapped(_ranges(names, counts))
    for sentence in missing_classes(sets, num_classes, names):
        lines += wrapped(sentence)
    return "\n".join(lines)


def wrapped(text: str) -> list[str]:
    """The lines of a text. Paths and names stay whole, so that they can be copied."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def missing_classes(sets: Mapping[str, Dataset], num_classes: int, class_names: Sequence[str]) -> list[str]:
    """A sentence for each split that lacks images of some classes, see ``describe``."""
    sentences = []
    for split, images in sets.items():
        # Where the test images validate, they are named once.
        if split == "val" and images is sets["test"]:
            continue
        sentence = classes_without(images, split, num_classes, class_names)
        if sentence:
            sentences.append(sentence)
    return sentences


def classes_without(images: Dataset, split: str, num_classes: int, class_names: Sequence[str]) -> str | None:
    """A sentence that names the classes of which a split has no image; None if there are none, or nobody knows."""
    counts = images_by_class(images, num_classes)
    if counts is None:
        return None
    missing = [name for name, count in zip(class_names, counts.tolist()) if count == 0]
    if not missing:
        return None
    text = ", ".join(missing[:MOST_NAMED])
    if len(missing) > MOST_NAMED:
        text += f" and {len(missing) - MOST_NAMED:,} more"
    # The number of images shows where there are too few of them for all classes.
    total = len(images)  # type: ignore[arg-type]
    return f"the {total:,} {_KINDS[split]} images lack {len(missing):,} of {counted(num_classes, 'class')}: {text}"


def describe_left_out(files: Sequence[tuple[str, str]], most: int = 10) -> list[str]:
    """Lines that name the first ``most`` of these files, each with the reason, and count the others."""
    if not files:
        return []
    lines = [f"files left out: {len(files):,}"]
    lines += [f"  {path}: {reason}" for path, reason in files[:most]]
    if len(files) > most:
        lines.append(f"  and {len(files) - most:,} more")
    return lines


def _where_validation_comes_from(sets: Mapping[str, Dataset]) -> str:
    """Where the validation images come from, after a semicolon; "" if the set has some of its own."""
    train = sets["train"]
    val = sets["val"]
    if val is sets["test"]:
        return "; the test images also select the checkpoint"
    if isinstance(train, Subset) and isinstance(val, Subset) and train.dataset is val.dataset:
        return "; the validation images are held out from training"
    return ""


def _images_by_class(sets: Mapping[str, Dataset], num_classes: int) -> list[list[int]]:
    """How many images each class has, for each split that tells its labels."""
    counts = []
    for split in _KINDS:
        of_split = images_by_class(sets[split], num_classes)
        if of_split is not None:
            counts.append(of_split.tolist())
    return counts


def _each_class(names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[str]:
    """A heading, and below it each class with its numbers, in as many columns as there is room for."""
    # The counts are those of all classes for each split. Here there is one tuple for each class, with all splits.
    by_class = zip(*counts)
    classes = []
    for name, of_class in zip(names, by_class):
        numbers = "/".join(str(count) for count in of_class)
        classes.append(f"{name}: {numbers}")
    width = max(map(len, classes))
    columns = max(1, (WIDTH - 2) // (width + 2))

    lines = [f"images of each class ({'/'.join(_KINDS.values())}):"]
    for start in range(0, len(classes), columns):
        row = [entry.ljust(width) for entry in classes[start : start + columns]]
        lines.append("  " + "  ".join(row).rstrip())
    return lines


def _ranges(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The fewest and the most images of a class, for each split, and which class has the fewest for training."""
    ranges = []
    for kind, of_split in zip(_KINDS.values(), counts):
        span = f"{min(of_split):,}"
        if max(of_split) > min(of_split):
            span += f" to {max(of_split):,}"
        ranges.append(f"{span} {kind}")
    training = counts[0]
    fewest = names[training.index(min(training))]
    return f"images of each class: {', '.join(ranges)}; {fewest} has the fewest training images"
