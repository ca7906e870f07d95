"""Methods side by side: every score of every model."""

from collections.abc import Container, Sequence

from layershuffle.results import Results, Score, estimate, tables
from layershuffle.results.tables import Group, Table

Models = dict[object, dict[Group, list[Score]]]
"""The scores of a method's models, by what identifies the model, then by group."""


def comparison(several: Sequence[Results], without: Container[str] = ()) -> tuple[Table, str]:
    """Methods side by side, shaped like table 1 of arXiv 2407.04513: top-1 in percent, with its 95% interval.

    Args:
        several: the results of all methods and seeds. A model may have several.
        without: the protocols to leave out.

    Returns:
        The table, and a caption that says what ± stands for.
    """
    methods: dict[str, Models] = {}
    for results in several:
        # A model is known by its weights; files without a checksum, as of models that are not files, by the seed.
        models = methods.setdefault(results.label, {})
        scores = models.setdefault(results.model.sha256 or results.model.seed, {})
        # Of what several files of a model have, the first counts.
        for group, of_group in results.groups().items():
            scores.setdefault(group, of_group)

    rows = []
    for group in _groups(methods):
        protocol = group[0]
        if protocol in without:
            continue
        accuracies = [_accuracy(models, group) for models in methods.values()]
        rows.append([tables.name_of(group), *accuracies])
    seeds = {method: len(models) for method, models in methods.items()}
    per_batch = any(tables.ran_per_batch(results.scores) for results in several)
    caption = tables.meaning(seeds, per_batch, rows)
    quality = several[0].quality if several else "top-1"
    return Table([f"{quality} %", *methods], rows), caption


def _accuracy(models: Models, group: Group) -> str:
    """The accuracy of a method's models in the orders of a group, or "missing"."""
    return tables.percent(estimate(scores.get(group, []) for scores in models.values()))


def _groups(methods: dict[str, Models]) -> list[Group]:
    """Every group that a model has, once."""
    groups: dict[Group, None] = {}
    for models in methods.values():
        for scores in models.values():
            groups.update(dict.fromkeys(scores))
    return list(groups)
