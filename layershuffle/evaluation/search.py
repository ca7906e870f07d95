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


def greedy(own: Order, losses: Losses) -> Iterator[tuple[Order, float]]:
    """Append, until none is left, the step of ``own`` that leads to the lowest loss; ties go to the earlier step.

    Yields the order and its loss after every step, so that the last is a permutation of ``own``.
    """
    order, left = Order(), list(own)
    while left:
        candidates = [order + Order([step]) for step in left]
        found = losses(candidates)
        best = found.index(min(found))
        order = candidates[best]
        del left[best]
        yield order, found[best]


def climb(start: Order, losses: Losses, rounds: int) -> Iterator[tuple[Order, float]]:
    """From ``start`` on, make the exchange of two steps that lowers the loss most, ``rounds`` times or until none does.

    Yields each order and its loss, ``start`` first.
    """
    order, (loss,) = start, losses([start])
    yield order, loss
    for _ in range(rounds):
        candidates = [swap(*pair, len(order)).over(order) for pair in combinations(range(len(order)), 2)]
        found = losses(candidates) if candidates else [math.inf]
        if min(found) >= loss:
            return
        loss = min(found)
        order = candidates[found.index(loss)]
        yield order, loss


def thin(own: Order, losses: Losses, keep: int, beam: int) -> Iterator[tuple[Order, float]]:
    """Find the choice of each number of steps of ``own``, from all down to ``keep``, that has the lowest loss.

    The steps stay in the sequence that they have in ``own``. Every choice is scored if ``scores_all(own, keep)``.
    Otherwise it is a beam search: of each length the ``beam`` best orders go on, each without one of its steps in turn.

    Yields the best order of each length and its loss, the longest first.
    """
    kept = [own]
    for length in range(len(own), keep - 1, -1):
        if length < len(own):
            kept = list(dict.fromkeys(order[:at] + order[at + 1 :] for order in kept for at in range(len(order))))
        found = losses(kept)
        ranked = sorted(range(len(kept)), key=found.__getitem__)
        yield kept[ranked[0]], found[ranked[0]]
        if not scores_all(own, keep):
            kept = [kept[rank] for rank in ranked[:beam]]


def scores_all(own: Order, keep: int) -> bool:
    """Whether there are so few choices of ``keep`` or more steps of ``own`` that ``thin`` scores every one."""
    return sum(math.comb(len(own), length) for length in range(keep, len(own) + 1)) < 1 << 12


def heavy_tail_exponents(model: OrderedViT) -> list[float]:
    """How well each layer is trained, one exponent per layer, the smaller the better (arXiv 2302.02123).

    A layer's exponent is the mean over its weight matrices W of the alpha of a power law p(x) ~ x^-alpha, fitted to the
    tail of the eigenvalues of W^T W. The tail begins where the fit has the smallest Kolmogorov-Smirnov distance. This
    needs powerlaw.
    """
    try:
        import powerlaw
    except ImportError as error:
        raise UserError("heavy-tail exponents need powerlaw: pip install 'layershuffle[spectra]'") from error

    def exponent(weight: Tensor) -> float:
        eigenvalues = torch.linalg.svdvals(weight.detach().double().cpu()).square().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(powerlaw.Fit(eigenvalues[eigenvalues > 0], verbose=False).power_law.alpha)

    by_layer = [[exponent(m.weight) for m in block.modules() if isinstance(m, nn.Linear)] for block in model.layers]
    return [sum(exponents) / len(exponents) for exponents in by_layer]


def well_trained_first(exponents: Sequence[float], own: Order) -> Order:
    """The steps of ``own`` by the mean ``heavy_tail_exponents`` of their layers, the best trained first.

    Steps of the same layers stay in the sequence that they have in ``own``.

    The paper (arXiv 2302.02123) permutes the weight matrices of translation models before training, and its author has
    noted an error in its implementation. This applies its idea to the layers of a trained model, as a strategy to
    compare with.
    """
    steps: list[Step] = sorted(own, key=lambda step: fmean(exponents[unit.layer] for unit in step))
    return Order(steps)
