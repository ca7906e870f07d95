"""What tables call groups of scores, and how they write an accuracy."""

from collections.abc import Mapping

from layershuffle.results.estimates import Estimate

Group = tuple[object, ...]
"""Names scores of the same kind: the protocol, then the values of the variant."""

SEQUENCES = {"random": "shuffled", "per batch": "shuffled per batch"}
"""What tables call the sequences in which "pruned" runs the layers that are kept, but for the original one."""

ONE_SEED = (
    "± is half the width of a 95% interval over test images and, where several random orders ran, over these. It says "
    "nothing of other training seeds. Where each batch ran in a new order, one model doesn't tell the interval."
)
SEVERAL_SEEDS = "± is half the width of a 95% interval over training seeds, random orders and test images."


def percent(accuracy: Estimate | None) -> str:
    """``95.13 ± 0.42``: a mean in percent with half the width of its 95% interval, or "missing"."""
    if accuracy is None:
        return "missing"
    text = f"{100 * accuracy.mean:.2f}"
    if accuracy.ci95 is not None:
        text += f" ± {100 * accuracy.ci95:.2f}"
    return text


def meaning(seeds: Mapping[str, int]) -> str:
    """What ± stands for in a table of methods, each with this number of seeds."""
    text = ONE_SEED
    if max(seeds.values()) > 1:
        text = SEVERAL_SEEDS
        single = ", ".join(method for method, count in seeds.items() if count == 1)
        if single:
            text += f" Of {single} there is only one seed, and the interval leaves seeds out."
    if len(seeds) > 1:
        text += " All methods have the same test images: differences between them are more certain than ± says."
    return text


def name_of(group: Group) -> str:
    """What tables call a group of scores, see ``Results.groups``: ``keep 3 first, shuffled``."""
    protocol, *variant = group
    if protocol == "pruned":
        kept, *rest = variant
        return f"keep {kept} {strategy_of(rest)}"
    return ", ".join(map(str, group))


def strategy_of(rest: list[object]) -> str:
    """The rest of a variant in words, whose second value may be a sequence: ``first, shuffled``."""
    words = []
    for place, value in enumerate(rest):
        word = str(value)
        if place == 1:
            word = SEQUENCES.get(word, word)
        # The original sequence goes without saying.
        if not (place == 1 and word == "original"):
            words.append(word)
    return ", ".join(words)
