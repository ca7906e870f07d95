"""Samplers: each draws the order of a training step."""

import random

from layershuffle.errors import UserError
from layershuffle.orders.named import first, permutation, sequential
from layershuffle.orders.order import Order, seeded


class OrderSampler:
    """Draws the order of a training step. A subclass says how in ``sample`` and names itself in ``method``."""

    method: str

    def sample(self, depth: int, rng: random.Random) -> Order:
        """An order for a model of ``depth`` layers, random by ``rng`` alone."""
        raise NotImplementedError

    def draw(self, depth: int, seed: int, step: int, rank: int = 0) -> Order:
        """The order of training step ``step`` on process ``rank``: a function of these arguments alone."""
        return self.sample(depth, seeded(seed, step, rank))

    def at_validation(self, depth: int, rng: random.Random) -> Order:
        """The order whose validation loss selects the model to keep; by default one drawn as in training."""
        return self.sample(depth, rng)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


class Sequential(OrderSampler):
    """Always the original order: ordinary fine-tuning."""

    method = "baseline"

    def sample(self, depth: int, rng: random.Random) -> Order:
        return sequential(depth)


class Shuffle(OrderSampler):
    """A new uniformly random permutation for every step (LayerShuffle, arXiv 2407.04513, section 3.1)."""

    method = "layershuffle"

    def sample(self, depth: int, rng: random.Random) -> Order:
        return permutation(depth, rng)


class LayerDrop(OrderSampler):
    """Each layer left out with probability ``p``, the rest in original sequence (arXiv 1909.11556, section 3.1).

    Args:
        p: the probability of leaving out a layer, 0 <= p < 1. The LayerShuffle paper compares with 0.2.
    """

    method = "layerdrop"

    def __init__(self, p: float = 0.2) -> None:
        if not 0 <= p < 1:
            raise UserError(f"LayerDrop's p is a probability from 0 to below 1, not {p}")
        self.p = p

    def sample(self, depth: int, rng: random.Random) -> Order:
        return Order(layer for layer in range(depth) if rng.random() >= self.p)

    def at_validation(self, depth: int, rng: random.Random) -> Order:
        # Like every dropout it is off when the model is validated.
        return sequential(depth)


class FirstLayers(OrderSampler):
    """Always the first ``k`` layers: reduced-depth refinement (arXiv 2407.04513, figure 1)."""

    def __init__(self, k: int) -> None:
        self.k = k

    @property
    def method(self) -> str:  # type: ignore[override]
        return f"reduced-depth-{self.k}"

    def sample(self, depth: int, rng: random.Random) -> Order:
        return first(self.k, depth)
