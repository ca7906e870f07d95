"""The accuracies that a model's scores are compared with."""

from layershuffle.results.record import Results

MOST_FREQUENT = "most frequent class"
"""What pictures call the accuracy of always naming it."""


def chance(results: Results) -> float:
    """The accuracy of guessing, in percent."""
    return 100 / results.model.num_classes


def reference_levels(results: Results) -> dict[str, float]:
    """Accuracies in percent to compare with: chance, and those that measures know of, see ``Measure.levels``."""
    levels = {"chance": chance(results)}
    for measure in results.measures:
        levels.update(measure.levels(results))
    return levels
