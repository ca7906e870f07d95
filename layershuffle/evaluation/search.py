"""Finding an order that suits a model: by its loss on data, or by the spectra of its weights alone."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.named import swap
from layershuffle.orders.order import Order, Step

Losses = Callable[[Sequence[Order]], list[float]]
"""Scores orders: the validation loss of each."""
Neighbours = Callable[[Order], list[Order]]
"""The orders that a search tries from an order on."""

MAX_CHOICES = 1 << 12
"""``thin`` scores every choice of steps if there are fewer than this, else it is a beam search."""


def greedy(base_order: Order, losses_of: Losses) -> Iterator[tuple[Order, float]]:
    """Append, until none is left, the step of ``base_order`` that leads to the lowest loss.

    Ties go to the earlier step. Yields the order and its loss after every step, so that the last is a permutation of
    ``base_order``.
    """
    order = Order()
    remaining = list(base_order)
    while remaining:
        candidates = [order + Order([step]) for step in remaining]
        # In the last round there is only one candidate. It is scored all the same, because callers report its loss.
        losses = losses_of(candidates)
        best = losses.index(min(losses))
        order = candidates[best]
        del remaining[best]
        yield order, losses[best]


def swapped(order: Order) -> list[Order]:
    """The orders in which two of the steps are exchanged."""
    pairs = combinations(range(len(order)), 2)
    # A swap exchanges positions; ``over`` puts the steps that are there in their place.
    return [swap(one, other, len(order)).over(order) for one, other in pairs]


def climb(
    start: Order, losses_of: Losses, rounds: int, neighbours: Neighbours = swapped
) -> Iterator[tuple[Order, float]]:
    """From ``start`` on, make the change that lowers the loss most, ``rounds`` times or until none does.

    ``neighbours`` says what can be changed, by default that two steps are exchanged. Yields each order and its loss,
    ``start`` first.
    """
    order = start
    (loss,) = losses_of([start])
    yield order, loss

    for _ in range(rounds):
        # An order of one step has no neighbours.
        candidates = neighbours(order)
        losses = losses_of(candidates) if candidates else []
        # Changes that leave the loss as it is don't count: one round would undo those of the round before.
        if min(losses, default=loss) >= loss:
            return
        loss = min(losses)
        order = candidates[losses.index(loss)]
        yield order, loss


def thin(base_order: Order, losses_of: Losses, keep: int, beam: int) -> Iterator[tuple[Order, float]]:
    """Find the choice of each number of steps of ``base_order``, from all down to ``keep``, that has the lowest loss.

    The steps stay in the sequence that they have in ``base_order``. Every choice is scored if
    ``scores_all(base_order, keep)``. Otherwise it is a beam search: of each length the ``beam`` best orders go on, each
    without one of its steps in turn.

    Yields the best order of each length and its loss, the longest first.
    """
    candidates = [base_order]
    is_beam_search = not scores_all(base_order, keep)
    for length in range(len(base_order), keep - 1, -1):
        # The longest order is base_order itself. Those of each other length are made from those that are one step
        # longer.
        if length < len(base_order):
            candidates = _shortened(candidates)
        losses = losses_of(candidates)
        ranked = sorted(range(len(candidates)), key=lambda index: losses[index])
        yield candidates[ranked[0]], losses[ranked[0]]
        if is_beam_search:
            candidates = [candidates[index] for index in ranked[:beam]]


def _shortened(orders: Sequence[Order]) -> list[Order]:
    """Each of ``orders`` without one of its steps in turn, every result once."""
    shortened: dict[Order, None] = {}  # a set that keeps the sequence
    for order in orders:
        for position in range(len(order)):
            shortened[order[:position] + order[position + 1 :]] = None
    return list(shortened)


def scores_all(base_order: Order, keep: int) -> bool:
    """Whether there are so few choices of ``keep`` or more steps that ``thin`` scores every one."""
    depth = len(base_order)
    choices = sum(math.comb(depth, length) for length in range(keep, depth + 1))
    return choices < MAX_CHOICES


def heavy_tail_exponents(model: OrderedViT) -> list[float]:
    """How well each layer is trained, one exponent per layer, the smaller the better (arXiv 2302.02123).

    A layer's exponent is the mean over its weight matrices W of the alpha of a power law p(x) ~ x^-alpha, fitted to the
    tail of the eigenvalues of W^T W. The tail begins where the fit has the smallest Kolmogorov-Smirnov distance.

    Raises:
        UserError: without the package powerlaw.
    """
    exponents = []
    for block in model.layers:
        # Norms and biases are left out. They are vectors, which have no spectrum.
        matrices = [module.weight for module in block.modules() if isinstance(module, nn.Linear)]
        exponents_of_matrices = [_exponent(weight) for weight in matrices]
        exponents.append(sum(exponents_of_matrices) / len(matrices))
    return exponents


def _exponent(weight: Tensor) -> float:
    """The exponent of one weight matrix, see ``heavy_tail_exponents``."""
    try:
        import powerlaw
    except ImportError as error:
        raise UserError("heavy-tail exponents need powerlaw: pip install 'layershuffle[spectra]'") from error
    # The eigenvalues of W^T W are the squares of the singular values of W.
    eigenvalues = torch.linalg.svdvals(weight.detach().double().cpu()).square().numpy()
    with warnings.catch_warnings():
        # powerlaw warns of details of its fit that don't matter here, where only the exponent is used.
        warnings.simplefilter("ignore")
        # A matrix without full rank has eigenvalues of 0, which belong to no power law.
        fit = powerlaw.Fit(eigenvalues[eigenvalues > 0], verbose=False)
        return float(fit.power_law.alpha)


def well_trained_first(exponents: Sequence[float], base_order: Order) -> Order:
    """The steps of ``base_order`` by the mean ``heavy_tail_exponents`` of their layers, the best trained first.

    Steps of the same layers stay in the sequence that they have in ``base_order``.

    The paper (arXiv 2302.02123) permutes the weight matrices of translation models before training, and its author has
    noted an error in its implementation. This applies its idea to the layers of a trained model, as a strategy to
    compare with.
    """

    def mean_exponent(step: Step) -> float:
        return fmean(exponents[unit.layer] for unit in step.units)

    steps: list[Step] = sorted(base_order, key=mean_exponent)
    return Order(steps)
