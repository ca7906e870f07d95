"""The accuracies that a model's scores are compared with."""

from layershuffle.results.record import Results

MOST_FREQUENT = "most frequent class"
"""What pictures call the accuracy of always naming it."""


def chance(results: Results) -> float:
    """The accuracy of guessing, in percent."""
    return 100 / results.model.num_classes


def is_skewed(most_frequent: float | None, results: Results) -> bool:
    """Whether the most frequent class has clearly more images than it had if all had the same number.

    Args:
        most_frequent: its share of the images, 0 to 1; None if it is unknown.
        results: which know the number of classes.
    """
    return most_frequent is not None and 100 * most_frequent > chance(results) + 1


def reference_levels(results: Results) -> dict[str, float]:
    """Accuracies in percent to compare with: chance, and those that measures know of, see ``Measure.levels``."""
    levels = {}
    # Guessing several labels has the share of the images that show a class for its precision, which nobody has counted.
    if not results.has_several_labels:
        levels["chance"] = chance(results)
    for measure in results.measures:
        levels.update(measure.levels(results))
    return levels
