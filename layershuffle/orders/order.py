"""Execution orders: the type, its text form, the named orders, and the samplers that draw one per training step.

An order is a sequence of *steps*. A step is a layer, one half of a layer (a sublayer: ``a`` attention,
``f`` feed-forward), or several of those run in parallel on the same input with their outputs averaged.
Layers may be missing or repeated. The text form parses back to the same order::

    3 1 2            layers
    0a 1a 0f 1f      sublayers
    0 (1|2|3)*4 4    a parallel step, four times in a row
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from typing import Any, NamedTuple, Self, overload

from layershuffle.errors import UserError

MAX_STEPS = 100_000

_UNIT = r"[0-9]{1,4}[af]?"
_STEP = re.compile(rf"(?:({_UNIT})|\(({_UNIT}(?:\|{_UNIT})*)\))(?:\*([1-9][0-9]{{0,4}}))?")


class Unit(NamedTuple):
    """What a step runs: a whole layer (``half=""``), its attention half ``"a"`` or its feed-forward half ``"f"``."""

    layer: int
    half: str = ""

    def __str__(self) -> str:
        return f"{self.layer}{self.half}"

    def _of(self, part: "Unit") -> "Unit":
        if self.half and part.half:
            raise UserError(f"the model's base order runs {self}, which has no halves: name its sublayers one by one")
        return Unit(self.layer, self.half or part.half)


Step = tuple[Unit, ...]
"""The units that run in parallel, ascending; nearly always just one."""


@dataclass(frozen=True, init=False, repr=False)
class Order:
    """An immutable, hashable execution order.

    Args:
        order: another order, its text form, or any iterable of integers, texts and steps.

    Raises:
        UserError: if the text is not an order or a layer is negative.
    """

    steps: tuple[Step, ...]

    def __init__(self, order: "OrderLike" = ()) -> None:
        object.__setattr__(self, "steps", _steps(order))

    @property
    def layers(self) -> frozenset[int]:
        """The indices of the layers that the order runs, wholly or in part."""
        return frozenset(unit.layer for step in self.steps for unit in step)

    @property
    def whole_layers(self) -> list[int] | None:
        """The indices of the layers in sequence, or None if a step is half a layer or several in parallel."""
        units = [step[0] for step in self.steps if len(step) == 1 and not step[0].half]
        return [unit.layer for unit in units] if len(units) == len(self) else None

    def check(self, depth: int) -> Self:
        """Return the order itself if a model of ``depth`` layers can run it, else raise a UserError."""
        if missing := sorted(layer for layer in self.layers if layer >= depth):
            raise UserError(f"the order names layer {missing[-1]}, but the model has only layers 0 to {depth - 1}")
        return self

    def over(self, own: "Order") -> "Order":
        """The same order of the steps of ``own``: each layer stands for the step of ``own`` at that index.

        A half of a layer stands for that half of the step. Where ``own`` is sequential, this is the order itself.

        Raises:
            UserError: if ``own`` has no such step, if half of a step is asked for that is itself half a layer, or if a
                parallel step would hold a layer twice or be a mean of means.
        """
        self.check(len(own))
        if own == sequential(len(own)):
            return self
        for step in self.steps:
            # A mean over groups of one size is the mean over all their members.
            if len({len(own[part.layer]) for part in step}) > 1:
                groups = " and ".join(_token(own[part.layer]) for part in step)
                raise UserError(
                    f"the step {_token(step)} would be a mean of means of different numbers of layers ({groups}), "
                    "which an order can't express: run these steps one after the other"
                )
        return Order(tuple(unit._of(part) for part in step for unit in own[part.layer]) for step in self.steps)

    def shuffled(self, rng: random.Random) -> "Order":
        """The same steps in a uniformly random sequence."""
        return Order(sorted(self.steps, key=lambda _: rng.random()))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @overload
    def __getitem__(self, key: int) -> Step: ...
    @overload
    def __getitem__(self, key: slice) -> "Order": ...
    def __getitem__(self, key: int | slice) -> "Step | Order":
        return Order(self.steps[key]) if isinstance(key, slice) else self.steps[key]

    def __add__(self, other: "OrderLike") -> "Order":
        return Order(self.steps + Order(other).steps)

    def __str__(self) -> str:
        tokens: list[str] = []
        for step, run in groupby(self.steps):
            times = len(list(run))
            tokens += [_token(step)] * times if len(step) == 1 else [_token(step) + (f"*{times}" if times > 1 else "")]
        return " ".join(tokens)

    def __repr__(self) -> str:
        return f"Order({str(self)!r})"


OrderLike = Order | str | Iterable[int | str | Step]


def _steps(order: OrderLike) -> tuple[Step, ...]:
    if isinstance(order, Order):
        return order.steps
    try:
        parts: Iterable[Any] = order.split() if isinstance(order, str) else islice(order, MAX_STEPS + 1)
    except TypeError as error:
        raise UserError(f"{order!r} is not an order: give layers, or text such as '3 1 2'") from error
    steps: list[Step] = []
    for part in parts:
        token = _token(part) if isinstance(part, tuple) else f"{part}"  # unlike str(part), this also works for tensors
        match = _STEP.fullmatch(token)
        if match is None:
            raise UserError(
                f"'{token[:40]}' is not a step of an order; write layers separated by spaces (3 1 2), "
                "halves as 0a and 0f, a parallel step as (1|2|3) and repeats as (1|2|3)*4"
            )
        single, parallel, times = match.groups()
        names = (single or parallel).split("|")
        step = tuple(sorted(Unit(int(name.rstrip("af")), name.lstrip("0123456789")) for name in names))
        if twice := [unit for unit in step if step.count(unit) > 1]:
            raise UserError(f"a parallel step can't hold {twice[0]} twice, as in {token[:40]}")
        steps += [step] * int(times or 1)
        if len(steps) > MAX_STEPS:
            raise UserError(f"an order has at most {MAX_STEPS} steps")
    return tuple(steps)


def _token(step: Step) -> str:
    text = "|".join(map(str, step))
    return text if len(step) == 1 else f"({text})"


@cache  # asked for several times in every training step
def sequential(depth: int) -> Order:
    """Layers 0 to ``depth - 1``, as the model was built."""
    return Order(range(depth))


def seeded(*key: int | str) -> random.Random:
    """A random generator that is a function of ``key`` alone, such as (seed, step, rank).

    Of its methods use only ``random()``: Python guarantees its numbers in every version, but not those of ``shuffle``.
    """
    return random.Random(" ".join(map(str, key)))
