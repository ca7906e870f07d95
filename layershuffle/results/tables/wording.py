"""What tables call groups of scores, and how they write an accuracy."""

from collections.abc import Iterable, Mapping

from layershuffle.plurals import form
from layershuffle.results.estimates import Estimate
from layershuffle.results.levels import reference_levels
from layershuffle.results.record import Results
from layershuffle.results.score import Score

Group = tuple[object, ...]
"""Names scores of the same kind: the protocol, then the values of the variant."""

SEQUENCES = {"random": "shuffled", "per batch": "shuffled per batch"}
"""What tables call the sequences in which "pruned" runs the layers that are kept, but for the original one."""

ONE_SEED = (
    "± is half the width of a 95% confidence interval over test images and, for several random orders, over these. It "
    "does not cover other training seeds."
)
SEVERAL_SEEDS = "± is half the width of a 95% confidence interval over training seeds, random orders and test images."
OVER_ORDERS = (
    "± is half the width of a 95% confidence interval over these random orders. It covers neither test images nor "
    "other training seeds."
)
WIDEST = 0.5
"""An interval whose half is wider than this is wider than the range of accuracies, 0 to 1, and tells nothing."""
NO_INTERVAL = "n/a"
"""What stands after ± in place of such an interval."""
TOO_WIDE = f"± {NO_INTERVAL}: too few orders or seeds for an interval narrower than 0 to 100."
PER_BATCH = "Where every batch ran in a new order there is a single score, from which no interval can be computed."


def percent(accuracy: Estimate | None) -> str:
    """``95.13 ± 0.42``: a mean in percent with half the width of its 95% interval, or "missing"."""
    if accuracy is None:
        return "missing"
    text = f"{100 * accuracy.mean:.2f}"
    half = half_interval(accuracy)
    return f"{text} ± {half}" if half else text


def half_interval(accuracy: Estimate) -> str:
    """Half the width of the 95% interval in percent; "n/a" where it is too wide to tell anything, "" where unknown."""
    if accuracy.ci95 is None:
        return ""
    if accuracy.ci95 > WIDEST:
        return NO_INTERVAL
    return f"{100 * accuracy.ci95:.2f}"


def meaning(seeds: Mapping[str, int], per_batch: bool, rows: Iterable[Iterable[str]]) -> str:
    """What ± stands for in a table.

    Args:
        seeds: the number of seeds of each method.
        per_batch: whether the table has scores of orders that were new in every batch, see ``ran_per_batch``.
        rows: the cells of the table, in which some intervals may be too wide to be shown.
    """
    text = interval_meaning(seeds, per_batch)
    if has_too_wide(rows):
        text += f" {TOO_WIDE}"
    return text


def has_too_wide(rows: Iterable[Iterable[str]]) -> bool:
    """Whether some intervals of a table are too wide to be shown."""
    return any(f"± {NO_INTERVAL}" in cell for row in rows for cell in row)


def interval_meaning(seeds: Mapping[str, int], per_batch: bool) -> str:
    """What ± stands for in any table of these methods; the arguments are those of ``meaning``."""
    single = [method for method, count in seeds.items() if count == 1]
    text = ONE_SEED
    if max(seeds.values()) > 1:
        text = SEVERAL_SEEDS
        if single:
            have = "has" if len(single) == 1 else "have"
            text += f" For {', '.join(single)}, which {have} one seed, it does not cover other training seeds."
    if single and per_batch:
        text += f" {PER_BATCH}"
    if len(seeds) > 1:
        text += " All methods share the test images, so differences between them are more certain than ± suggests."
    return text


def ran_per_batch(scores: Iterable[Score]) -> bool:
    """Whether some of the scores are of orders that were new in every batch."""
    return any(score.order is None and "per batch" in score.variant.values() for score in scores)


def to_compare_with(results: Results) -> str:
    """The accuracies to compare with, in a sentence."""
    texts = [f"{name} {share:.2f}%" for name, share in reference_levels(results).items()]
    return f"For comparison: {', '.join(texts)}."


def name_of(group: Group) -> str:
    """What tables call a group of scores, see ``Results.groups``: ``keep 3 first, shuffled``."""
    protocol, *variant = group
    if protocol == "pruned":
        kept, *rest = variant
        return f"keep {kept} {strategy_of(rest)}"
    if protocol == "grouped":
        steps, layers = variant
        return f"in {steps} {form(steps, 'step')}, {layers}"
    return ", ".join(map(str, group))


def strategy_of(rest: list[object]) -> str:
    """The rest of a variant in words, whose second value may be a sequence: ``first, shuffled``."""
    words = []
    for place, value in enumerate(rest):
        word = str(value)
        if place == 1:
            # The original sequence goes without saying.
            if word == "original":
                continue
            word = SEQUENCES.get(word, word)
        words.append(word)
    return ", ".join(words)
