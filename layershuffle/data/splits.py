"""Which images train, validate and test, for data sets that come in parts with names."""

from collections.abc import Collection

SPLITS = ("train", "val", "test")
"""The parts that a data set can have."""


def sources_of(splits: Collection[str], val_fraction: float) -> dict[str, str]:
    """The part from which images come: for training, for testing, and if not held out, for validation.

    Args:
        splits: those of ``SPLITS`` that the data set has.
        val_fraction: see ``ImageData``; with 0, the test images validate.
    """
    sources = {"training": "train", "testing": "val"}
    # A part ``val`` without a ``test`` is what the literature reports accuracy on, as with ImageNet.
    if "test" in splits:
        sources["testing"] = "test"
        if val_fraction and "val" in splits:
            sources["validation"] = "val"
    return sources
