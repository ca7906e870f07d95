"""Which orders a training step runs: in this process, in all processes, and in validation."""

from collections.abc import Callable, Sequence
from functools import cached_property
from statistics import fmean
from typing import NamedTuple

from layershuffle.errors import UserError
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.sampler import OrderSampler, call_sampler
from layershuffle.training.compute import layers_run

REHEARSED = 100
"""So many full updates are rehearsed to estimate how many updates a run has."""


class ValidationOrders(NamedTuple):
    """The orders in which a validation batch runs.

    Attributes:
        sequential: the base order.
        arbitrary: a random permutation of it.
        selecting: the order whose loss selects the best model.
    """

    sequential: Order
    arbitrary: Order
    selecting: Order


class StepOrders:
    """Samples the orders of each training step.

    Args:
        sampler: samples an order.
        model_order: the model's order, whose steps the sampled orders are made of.
        fixed_orders: where the objective runs every image in the same orders, these; then nothing is sampled.
        seed: decides the orders, together with the step and the process.
        orders_per_batch: into how many parts each batch is split. Each part runs in an order of its own.
        progress: tells of a step, which share of the budget is used up when it begins.

    Attributes:
        processes: how many processes sample their own orders; 1 if all run those of the first one.
    """

    def __init__(
        self,
        sampler: OrderSampler,
        model_order: Order,
        fixed_orders: tuple[Order, ...] | None,
        seed: int,
        orders_per_batch: int,
        progress: Callable[[int], float],
    ) -> None:
        if orders_per_batch < 1 or (orders_per_batch > 1 and fixed_orders):
            raise UserError(
                "orders_per_batch is a number from 1 up, and 1 where every image runs in all orders, as with "
                f"InstanceWise, not {orders_per_batch}"
            )
        self.sampler = sampler
        self.model_order = model_order
        self.fixed_orders = fixed_orders
        self.seed = seed
        self.orders_per_batch = orders_per_batch
        self.progress = progress
        self.processes = 1
        # The orders of each process by step. Those of an earlier step can't always be sampled again: they may depend on
        # the progress, and a budget of layer executions only knows the progress of now.
        self._sampled: dict[int, list[list[Order]]] = {}

    @property
    def base_order(self) -> Order:
        """What counts as the sequential order of the trained model, see ``OrderSampler.base_order``."""
        if self.fixed_orders:
            return self.model_order
        return self.sampler.base_order(len(self.model_order)).over(self.model_order)

    def sample(self, step: int, rank: int = 0) -> Order:
        """The order of training step ``step`` for part ``rank`` of all the parts of all processes' batches."""
        order = self.sampler.sample_step(len(self.model_order), self.seed, step, rank, self.progress(step))
        return order.over(self.model_order)

    def sample_parts(self, step: int, rank: int) -> list[Order]:
        """The orders of process ``rank``, one for each part of its batch, or the fixed ones.

        One process with m orders per batch samples those of m processes with one order each.
        """
        if self.fixed_orders:
            return list(self.fixed_orders)
        first = rank * self.orders_per_batch
        return [self.sample(step, first + part) for part in range(self.orders_per_batch)]

    def of_all_processes(self, step: int) -> list[list[Order]]:
        """The orders of each process, or of the first one if all run the same."""
        if step not in self._sampled:
            self._sampled[step] = [self.sample_parts(step, rank) for rank in range(self.processes)]
        return self._sampled[step]

    def of_process(self, step: int, rank: int) -> list[Order]:
        """The orders that process ``rank`` runs in training step ``step``."""
        # If all processes run those of the first one, there are no others in the list.
        orders = self.of_all_processes(step)
        return orders[rank % len(orders)]

    def of_update(self, step: int) -> list[Order]:
        """All orders that one update averages: those of all processes."""
        orders = []
        for parts in self.of_all_processes(step):
            orders += parts
        return orders

    def of_batch(self, step: int, rank: int, images: int) -> list[Order]:
        """``of_process`` for a batch of so many images, which has no more parts than images."""
        orders = self.of_process(step, rank)
        if self.fixed_orders:
            return orders
        return orders[:images]

    def forget_before(self, step: int) -> None:
        """Forget the orders of the steps before this one, which nobody asks for any more."""
        earlier_steps = [sampled_step for sampled_step in self._sampled if sampled_step < step]
        for earlier_step in earlier_steps:
            del self._sampled[earlier_step]

    def forget_all(self) -> None:
        """Forget all orders, for the progress that they were sampled with was not that of the run."""
        self._sampled.clear()

    def layers_run(self, step: int) -> float:
        """How many layers an image runs through in training step ``step``, the mean over all processes."""
        # Every image runs in all of the fixed orders, but in only one of the sampled ones.
        if self.fixed_orders:
            return sum(layers_run(order) for order in self.fixed_orders)
        return fmean(layers_run(order) for order in self.of_update(step))

    @cached_property
    def examples(self) -> tuple[Order, ...]:
        """Orders that a training may run: the fixed ones, or those of 16 points in the course of the training.

        They are orders of the sampler, in its own numbering of the steps. They don't depend on how far the training has
        got, and are sampled once.
        """
        if self.fixed_orders:
            return self.fixed_orders
        # Orders may change with the progress, of which these see the beginning, the end, and what lies between.
        steps = len(self.model_order)
        points = range(16)
        return tuple(self.sampler.sample_step(steps, self.seed, point, progress=point / 15) for point in points)

    def updates_within(self, full_updates: float) -> float:
        """About how many updates run as many layers as ``full_updates`` in which every layer runs.

        That is estimated by the orders of a short training, whose sampler sees all of the progress: updates are sampled
        until they have cost as much as ``REHEARSED`` full ones.
        """
        used = 0.0
        updates = 0
        steps = len(self.model_order)
        # Orders may be empty, and cost nothing: without the second condition this might never end.
        while used < REHEARSED and updates < 100 * REHEARSED:
            orders: Sequence[Order] = self.fixed_orders or ()
            if not orders:
                sampled = self.sampler.sample_step(steps, self.seed, updates, progress=used / REHEARSED)
                orders = [sampled.over(self.model_order)]
            used += sum(layers_run(order) for order in orders) / layers_run(self.model_order)
            updates += 1
        return full_updates * updates / REHEARSED

    def for_validation(self, batch: int, step: int) -> ValidationOrders:
        """The orders of a validation batch after ``step`` training steps.

        The random ones depend on the seed and the batch alone, so that all epochs are compared on the same orders.
        """
        # Both random orders come from equal generators. If the sampler validates in a permutation of all layers, they
        # are the same, and run only once.
        key = (self.seed, "validation", batch)
        sampled = call_sampler(self.sampler.at_validation, len(self.model_order), seeded(*key), self.progress(step))
        return ValidationOrders(
            sequential=self.base_order,
            arbitrary=self.base_order.shuffled(seeded(*key)),
            selecting=sampled.over(self.model_order),
        )
