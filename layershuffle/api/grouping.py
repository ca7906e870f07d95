"""Groups the layers that ``prune`` keeps into fewer steps, in each of which several run side by side."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from layershuffle.api.study import Study
from layershuffle.errors import UserError
from layershuffle.evaluation.grouping import exchanged, group, in_halves, seconds_when_merged
from layershuffle.evaluation.search import Losses, climb
from layershuffle.models.widen import why_not_wide
from layershuffle.orders.order import Order
from layershuffle.plurals import counted


class _Groups(NamedTuple):
    """Groups of whole layers, their loss, and whether they are split: their halves then run one after the other."""

    order: Order
    loss: float
    is_split: bool


def check_groups(study: Study, steps: int, keep: int | None) -> None:
    """Raise a UserError if ``steps`` groups can't be made of the layers of a model, or can't be merged.

    Args:
        study: the model.
        steps: the number of steps.
        keep: how many layers are kept, if that is known.
    """
    order = study.model.order
    layers = order.whole_layers
    if layers is None or len(set(layers)) < len(layers):
        raise UserError(
            f"groups are made of whole layers, each of which runs once, and the model's base order is {order}"
        )
    reason = why_not_wide(study.model, in_halves(order))
    if reason:
        raise UserError(f"the layers of this model can't be merged: {reason}")
    if keep is not None and steps > keep:
        raise UserError(f"{counted(keep, 'layer')} can't run in {counted(steps, 'step')}: name at most {keep}")


def group_layers(study: Study, order: Order, losses_of: Losses, steps: int, rounds: int) -> list[Order]:
    """Find groups of the layers of ``order``, down to ``steps`` of them, by the loss.

    Groups of whole layers are tried, and the same groups with all attentions before all feed-forward networks. Last,
    exchanges of two layers, or of one with one that isn't kept, look for better groups.

    Args:
        study: a model that ``check_groups`` has nothing against.
        order: the layers to keep, one after the other.
        losses_of: scores orders.
        steps: the largest number of steps of the result.
        rounds: the most exchanges.

    Returns:
        The best order of each number of steps, the most steps first. The last one is the result. A group of attentions
        and that of the feed-forward networks of the same layers are one step, as a layer is.
    """
    # Which form is better differs from model to model: in halves, a group's feed-forward networks read what all of its
    # attentions have found. Of each number of steps, the better form stays.
    best: dict[int, _Groups] = {}
    for is_split in (False, True):
        for grouped, loss in group(order, partial(_losses, losses_of, is_split), steps):
            best_so_far = best.get(len(grouped))
            if best_so_far is None or loss < best_so_far.loss:
                best[len(grouped)] = _Groups(grouped, loss, is_split)

    # Only the result is improved further: the others just show how accuracy falls on the way there.
    fewest_steps = min(best)
    fewest = best[fewest_steps]
    neighbours = partial(exchanged, layers=sorted(study.model.order.layers))
    climbed = list(climb(fewest.order, partial(_losses, losses_of, fewest.is_split), rounds, neighbours))
    grouped, loss = climbed[-1]
    best[fewest_steps] = fewest._replace(order=grouped, loss=loss)
    # ``group`` begins with the most steps, and a dict keeps that sequence.
    return [_form(groups.order, groups.is_split) for groups in best.values()]


def milliseconds_when_merged(study: Study, orders: Sequence[Order], repeats: int) -> dict[str, float]:
    """The time of one image, in ms, by the text of the order; the shortest of ``repeats`` counts."""
    model = study.model.to(study.fabric.device).eval()
    with study.fabric.autocast():
        times = seconds_when_merged(model, study.first_batch()[:1], orders, repeats)
    # More digits would be noise.
    return {str(order): float(f"{1000 * seconds:.4g}") for order, seconds in zip(orders, times)}


def _losses(losses_of: Losses, is_split: bool, orders: Sequence[Order]) -> list[float]:
    """The losses of orders of whole layers, as they are or with each step in halves."""
    return losses_of([_form(order, is_split) for order in orders])


def _form(order: Order, is_split: bool) -> Order:
    """An order of whole layers as it runs: as it is, or with each step in halves."""
    return in_halves(order) if is_split else order
