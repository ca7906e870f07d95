"""Samplers: each samples the order of a training step.

Most methods of the literature are one of these classes. Their base class is in ``layershuffle.orders.sampler``. They
call no method of ``rng`` but ``random()``, for the reason that ``orders.order.seeded`` gives.
"""

import abc
import random

from layershuffle.errors import UserError
from layershuffle.orders import recorded
from layershuffle.orders.named import first, permutation, sequential
from layershuffle.orders.order import Order
from layershuffle.orders.sampler import OrderSampler, call_sampler
from layershuffle.orders.width import grouped, without_waiting


def _uniform(least: int, most: int, rng: random.Random) -> int:
    """A random whole number from ``least`` to ``most``, both included; ``most`` if ``least`` is larger."""
    least = min(least, most)
    # rng.randint could give other numbers in another version of Python.
    return least + int(rng.random() * (most - least + 1))


class Sequential(OrderSampler):
    """Always the original order: ordinary fine-tuning."""

    method = "baseline"
    summary = "Always the original order: ordinary fine-tuning."

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        return sequential(depth)


class Shuffle(OrderSampler):
    """A new uniformly random permutation for every step (LayerShuffle, arXiv 2407.04513, section 3.1)."""

    method = "layershuffle"
    summary = "A new random permutation for every step (arXiv 2407.04513)."

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        return permutation(depth, rng)


class LayerDrop(OrderSampler):
    """Each layer left out with probability ``p``, the rest in original sequence (arXiv 1909.11556, section 3.1).

    Args:
        p: the probability of leaving out a layer, 0 <= p < 1. The LayerShuffle paper compares with 0.2.
    """

    method = "layerdrop"
    summary = "Each layer left out with probability p, the rest in original sequence (arXiv 1909.11556)."

    def __init__(self, p: float = 0.2) -> None:
        if not 0 <= p < 1:
            raise UserError(f"{type(self).__name__}'s p is a probability from 0 to below 1, not {p}")
        self.p = p

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        # Every layer may be left out: the order can be empty.
        return Order(layer for layer in range(depth) if rng.random() >= self.p)

    def at_validation(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        # Like every dropout, it is switched off for validation.
        return sequential(depth)


class ShuffleDrop(LayerDrop):
    """Each layer left out with probability ``p``, the rest in uniformly random sequence: LayerShuffle and LayerDrop.

    Args:
        p: the probability of leaving out a layer, 0 <= p < 1.
    """

    method = "shuffle-drop"
    summary = "Each layer left out with probability p, the rest in random sequence."

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        return super().sample(depth, rng).shuffled(rng)

    def at_validation(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        return permutation(depth, rng)


class RandomSubset(OrderSampler):
    """A random number of layers, uniform from ``k_min`` to all, in random sequence; the choice is random, too.

    Args:
        k_min: the smallest number of layers, at least 1.
    """

    method = "random-subset"
    summary = "A random number of layers, in random sequence."

    def __init__(self, k_min: int = 1) -> None:
        if k_min < 1:
            raise UserError(f"RandomSubset's k_min is a number of layers from 1 up, not {k_min}")
        self.k_min = k_min

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        # The first k layers of a random permutation are a random choice in random sequence.
        shuffled = permutation(depth, rng)
        k = _uniform(self.k_min, depth, rng)
        return shuffled[:k]


class GrowingDepth(OrderSampler):
    """A random choice of k layers in random sequence, where k grows from ``k0`` to all as the training proceeds.

    Each k lasts for an equal share of the budget. This is Random Part Training by depth (RaPTr, arXiv 2402.05913),
    which keeps the layers in sequence.

    Args:
        k0: the number of layers at the beginning, at least 1.
        end: the share of the budget after which all layers run, 0 < end <= 1.
    """

    method = "growing-depth"
    summary = "Random layers in random sequence, more and more of them as the training proceeds."

    def __init__(self, k0: int = 2, end: float = 0.8) -> None:
        if k0 < 1 or not 0 < end <= 1:
            raise UserError(
                "GrowingDepth's k0 is a number of layers from 1 up, and its end a share above 0 and up to 1"
            )
        self.k0 = k0
        self.end = end

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        grown = min(1.0, progress / self.end)  # 0 at the beginning, 1 from ``end`` on
        # int() rounds down, so the last layer joins at ``end`` and not before.
        k = self.k0 + int((depth - self.k0) * grown)
        return permutation(depth, rng)[:k]

    def at_validation(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        # With fewer layers the loss is higher. If k grew here too, checkpoints could not be compared with each other.
        return permutation(depth, rng)


class SideBySide(OrderSampler, abc.ABC):
    """Takes the layers that another sampler chooses and runs several of them at the same time.

    A subclass says how in ``arrange``.

    Args:
        layers: samples which layers run and in which sequence, one whole layer at a time; by default ``Shuffle``.
    """

    def __init__(self, layers: OrderSampler | None = None) -> None:
        self.layers = layers or Shuffle()

    @abc.abstractmethod
    def arrange(self, order: Order, rng: random.Random) -> Order:
        """The same layers, several at the same time."""

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        return self.arrange(call_sampler(self.layers.sample, depth, rng, progress), rng)

    def at_validation(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        return self.arrange(call_sampler(self.layers.at_validation, depth, rng, progress), rng)

    def base_order(self, depth: int) -> Order:
        return self.layers.base_order(depth)


class RandomGroups(SideBySide):
    """Cuts a random sequence of layers into groups that run side by side, so that a model runs at any width.

    The number of groups is uniform from ``g_min`` to the number of layers, and their sizes differ by one at most.

    Args:
        g_min: the smallest number of groups, at least 1.
        layers: samples the sequence; by default ``Shuffle``, which runs all layers. With ``RandomSubset`` or
            ``GrowingDepth``, one training gives any order, any subset and any width.
        halves: whether a group runs all of its attentions and then all of its feed-forwards.
        averaged: whether a group's outputs are averaged; by default the sum of its changes is added to the state.
    """

    method = "random-groups"
    summary = "Layers in random sequence, in a random number of groups whose layers run side by side."

    def __init__(
        self, g_min: int = 1, layers: OrderSampler | None = None, halves: bool = False, averaged: bool = False
    ) -> None:
        super().__init__(layers)
        if g_min < 1:
            raise UserError(f"RandomGroups' g_min is a number of groups from 1 up, not {g_min}")
        self.g_min = g_min
        self.halves = halves
        self.averaged = averaged

    def arrange(self, order: Order, rng: random.Random) -> Order:
        # LayerDrop can leave out every layer, and then there is nothing to group.
        if not order:
            return order
        groups = _uniform(self.g_min, len(order), rng)
        return grouped(order, groups, halves=self.halves, averaged=self.averaged)


class RandomSchedule(SideBySide):
    """Layers in random sequence that don't wait for each other, see ``orders.width.without_waiting``.

    How many are in flight is uniform from 1 to ``in_flight``.

    Args:
        in_flight: the largest number of layers in flight, at least 1.
        layers: samples the sequence; by default ``Shuffle``, which runs all layers.
    """

    method = "random-schedule"
    summary = "Layers in random sequence that don't wait for each other, a random number of them in flight."

    def __init__(self, in_flight: int = 4, layers: OrderSampler | None = None) -> None:
        super().__init__(layers)
        if in_flight < 1:
            raise UserError(f"RandomSchedule's in_flight is a number of layers from 1 up, not {in_flight}")
        self.in_flight = in_flight

    def arrange(self, order: Order, rng: random.Random) -> Order:
        in_flight = _uniform(1, self.in_flight, rng)
        return without_waiting(order, in_flight, rng)


class FirstLayers(OrderSampler):
    """Always the first ``k`` layers: reduced-depth refinement (arXiv 2407.04513, figure 1).

    Args:
        k: the number of layers, at least 1.
    """

    summary = "Always the first k layers: reduced-depth refinement."

    def __init__(self, k: int) -> None:
        self.k = k

    # Unlike that of other samplers, the name depends on an argument, so that results of each depth stay apart.
    @property
    def method(self) -> str:  # type: ignore[override]
        return f"reduced-depth-{self.k}"

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        return self.base_order(depth)

    def base_order(self, depth: int) -> Order:
        return first(self.k, depth)


class Recorded(OrderSampler):
    """Orders that a cluster or a simulation ran, as often as it ran them, with the layers that it missed.

    Args:
        log: the event log of ``layershuffle serve`` or ``layershuffle simulate``.
    """

    method = "recorded"
    summary = "Orders that a cluster or a simulation ran, as often as it ran them."

    def __init__(self, log: str) -> None:
        self.log = log

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        # The log may come from a deeper model, whose layers this one doesn't have.
        return recorded.sample(self.log, rng).check(depth)
