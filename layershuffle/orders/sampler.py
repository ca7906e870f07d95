"""What a sampler is: the base class of all that sample the order of a training step.

The samplers themselves are in ``layershuffle.orders.samplers``.
"""

import inspect
import random
from collections.abc import Callable

from layershuffle.orders.order import Order, seeded, sequential


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
        """The order whose validation loss decides which checkpoint is the best; by default sampled as in training."""
        return call_sampler(self.sample, depth, rng, progress)

    def base_order(self, depth: int) -> Order:
        """What counts as the sequential order of a model of ``depth`` layers that was trained with this sampler.

        It leaves out the layers that ``sample`` never runs; by default there are none.
        """
        return sequential(depth)

    def __repr__(self) -> str:
        # Checkpoints record this text. Every sampler keeps each argument in an attribute of the same name.
        arguments = [f"{name}={value}" for name, value in vars(self).items()]
        return f"{type(self).__name__}({', '.join(arguments)})"


def all_samplers(base: type[OrderSampler] = OrderSampler) -> list[type[OrderSampler]]:
    """All classes of samplers that have been imported; each comes before those that derive from it."""
    # Python itself knows the subclasses of a class, so that users need not register their own samplers.
    samplers = []
    for sampler in base.__subclasses__():
        if not inspect.isabstract(sampler):
            samplers.append(sampler)
        samplers += all_samplers(sampler)
    return samplers


def call_sampler(method: Callable[..., Order], depth: int, rng: random.Random, progress: float) -> Order:
    """Call a sampler's ``sample`` or ``at_validation``, with the progress if the method has such a parameter.

    Most samplers don't need it, and a user's own should be as short as ``def sample(self, depth, rng)``.
    """
    if "progress" in inspect.signature(method).parameters:
        return method(depth, rng, progress=progress)
    return method(depth, rng)
