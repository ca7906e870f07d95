"""Samplers: each samples the order of a training step."""

import inspect
import random
from collections.abc import Callable

from layershuffle.errors import UserError
from layershuffle.orders import recorded
from layershuffle.orders.named import first, permutation, sequential
from layershuffle.orders.order import Order, seeded


class OrderSampler:
    """Samples the order of a training step. A subclass says how in ``sample``.

    Attributes:
        method: the sampler's name in results.
        summary: one sentence that says what it samples, for ``layershuffle list samplers``.
    """

    method: str
    summary: str = ""

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        """An order for a model of ``depth`` layers.

        Args:
            depth: the number of layers.
            rng: the only source of randomness, see ``seeded``.
            progress: the share of the training's budget that is used up, from 0 to 1; 0 where the budget is unknown.
                A subclass that doesn't look at it may leave it out.
        """
        raise NotImplementedError

    def sample_step(self, depth: int, seed: int, step: int, rank: int = 0, progress: float = 0.0) -> Order:
        """The order of training step ``step`` on process ``rank``: a function of these arguments alone."""
        return call_sampler(self.sample, depth, seeded(seed, step, rank), progress)

    def at_validation(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        """The order whose validation loss selects the model to keep; by default one sampled as in training."""
        return call_sampler(self.sample, depth, rng, progress)

    def base_order(self, depth: int) -> Order:
        """What counts as the sequential order of a model of ``depth`` layers that was trained with this sampler.

        It leaves out the layers that ``sample`` never runs; by default there are none.
        """
        return sequential(depth)

    def __repr__(self) -> str:
        arguments = [f"{name}={value}" for name, value in vars(self).items()]
        return f"{type(self).__name__}({', '.join(arguments)})"


def all_samplers(of: type[OrderSampler] = OrderSampler) -> list[type[OrderSampler]]:
    """Every class of samplers that is defined, also those that derive from another sampler, in their sequence."""
    samplers = []
    for sampler in of.__subclasses__():
        samplers.append(sampler)
        samplers += all_samplers(sampler)
    return samplers


def call_sampler(method: Callable[..., Order], depth: int, rng: random.Random, progress: float) -> Order:
    """Call a sampler's ``sample`` or ``at_validation``, whose authors may have left out the progress."""
    if "progress" in inspect.signature(method).parameters:
        return method(depth, rng, progress=progress)
    return method(depth, rng)


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
        return Order(layer for layer in range(depth) if rng.random() >= self.p)

    def at_validation(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        # Like every dropout it is off when the model is validated.
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
    """A number of layers chosen uniformly from ``k_min`` to all; which they are and their sequence are random, too.

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
        order = permutation(depth, rng)
        least = min(self.k_min, depth)
        k = least + int(rng.random() * (depth - least + 1))
        return order[:k]


class GrowingDepth(OrderSampler):
    """A random choice of k layers in random sequence, where k grows from ``k0`` to all in the course of the training.

    Each k lasts for an equal share of the budget. This is Random Part Training by depth (RaPTr, arXiv 2402.05913),
    which keeps the layers in sequence.

    Args:
        k0: the number of layers at the beginning, at least 1.
        end: the share of the budget after which all layers run, 0 < end <= 1.
    """

    method = "growing-depth"
    summary = "Random layers in random sequence, more and more of them in the course of the training."

    def __init__(self, k0: int = 2, end: float = 0.8) -> None:
        if k0 < 1 or not 0 < end <= 1:
            raise UserError(
                "GrowingDepth's k0 is a number of layers from 1 up, and its end a share above 0 and up to 1"
            )
        self.k0 = k0
        self.end = end

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        grown = min(1.0, progress / self.end)
        k = self.k0 + int((depth - self.k0) * grown)
        return permutation(depth, rng)[:k]

    def at_validation(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        # The losses of different numbers of layers could not be compared.
        return permutation(depth, rng)


class FirstLayers(OrderSampler):
    """Always the first ``k`` layers: reduced-depth refinement (arXiv 2407.04513, figure 1).

    Args:
        k: the number of layers, at least 1.
    """

    summary = "Always the first k layers: reduced-depth refinement."

    def __init__(self, k: int) -> None:
        self.k = k

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
        return recorded.sample(self.log, rng).check(depth)
