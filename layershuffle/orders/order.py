"""Execution orders: the type, and its text form.

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
"""More than any model runs. Without a limit, a short text such as ``1*99999 1*99999 ...`` would fill the memory."""

_UNIT = r"[0-9]{1,4}[af]?"
# A step is a unit, or units between bars in parentheses; either may be repeated: 3, 3a, (1|2), (1|2)*4.
_STEP = re.compile(rf"(?:({_UNIT})|\(({_UNIT}(?:\|{_UNIT})*)\))(?:\*([1-9][0-9]{{0,4}}))?")


class Unit(NamedTuple):
    """What a step runs: a whole layer (``half=""``), its attention half ``"a"`` or its feed-forward half ``"f"``."""

    layer: int
    half: str = ""

    def __str__(self) -> str:
        return f"{self.layer}{self.half}"

    def restricted_to(self, half: str) -> "Unit":
        """This half of the unit, or with ``""`` the unit itself; raises UserError if it is half a layer already."""
        if self.half and half:
            raise UserError(f"the model's base order runs {self}, which has no halves: name its sublayers one by one")
        return Unit(self.layer, self.half or half)


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
        layers = []
        for step in self.steps:
            if len(step) > 1 or step[0].half:
                return None
            layers.append(step[0].layer)
        return layers

    def check(self, depth: int) -> Self:
        """Return the order itself if a model of ``depth`` layers can run it, else raise a UserError."""
        missing = [layer for layer in self.layers if layer >= depth]
        if missing:
            raise UserError(f"the order names layer {max(missing)}, but the model has only layers 0 to {depth - 1}")
        return self

    def over(self, base_order: "Order") -> "Order":
        """Translate the order into the steps of ``base_order``: layer n becomes its step number n.

        A half of layer n becomes that half of the step: "2 0" over "3 (0|1) 2" is "2 3". Over a sequential order, the
        order stays as it is.

        Raises:
            UserError: if ``base_order`` has no such step, if the order names half of a step that is half a layer, or if
                a parallel step would hold a layer twice or be a mean of means.
        """
        self.check(len(base_order))
        if base_order == sequential(len(base_order)):
            return self
        return Order(_over(step, base_order) for step in self.steps)

    def shuffled(self, rng: random.Random) -> "Order":
        """The same steps in a uniformly random sequence."""
        # Not rng.shuffle, whose result may change with the version of Python, see ``seeded``.
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
            token = _token(step)
            times = len(list(run))
            # Only a parallel step has the form with a number: 2 2 is plainer than (2)*2.
            if len(step) > 1 and times > 1:
                tokens.append(f"{token}*{times}")
            else:
                tokens.extend([token] * times)
        return " ".join(tokens)

    def __repr__(self) -> str:
        return f"Order({str(self)!r})"


OrderLike = Order | str | Iterable[int | str | Step]


def _steps(order: OrderLike) -> tuple[Step, ...]:
    if isinstance(order, Order):
        return order.steps
    try:
        # One more than there may be, so that an endless iterable is refused too.
        parts: Iterable[Any] = order.split() if isinstance(order, str) else islice(order, MAX_STEPS + 1)
    except TypeError as error:
        raise UserError(f"{order!r} is not an order: give layers, or text such as '3 1 2'") from error

    # Steps that are given as tuples pass through their text, so that _parse alone decides what a step is.
    steps: list[Step] = []
    for part in parts:
        token = _token(part) if isinstance(part, tuple) else f"{part}"  # unlike str(part), this also works for tensors
        step, times = _parse(token)
        steps += [step] * times
        if len(steps) > MAX_STEPS:
            raise UserError(f"an order has at most {MAX_STEPS} steps")
    return tuple(steps)


def _parse(token: str) -> tuple[Step, int]:
    """The step that a token of the text form means, and how many times it runs in a row."""
    match = _STEP.fullmatch(token)
    if match is None:
        raise UserError(
            f"'{token[:40]}' is not a step of an order; write layers separated by spaces (3 1 2), "
            "halves as 0a and 0f, a parallel step as (1|2|3) and repeats as (1|2|3)*4"
        )
    single, parallel, times = match.groups()

    units = []
    for name in (single or parallel).split("|"):
        layer = name.rstrip("af")
        unit = Unit(int(layer), name.removeprefix(layer))
        if unit in units:
            raise UserError(f"a parallel step can't hold {unit} twice, as in {token[:40]}")
        units.append(unit)
    return tuple(sorted(units)), int(times or 1)


def _token(step: Step) -> str:
    """The text form of a step."""
    text = "|".join(str(unit) for unit in step)
    return text if len(step) == 1 else f"({text})"


def _over(step: Step, base_order: Order) -> Step:
    """The step that runs what ``step`` runs, with each of its layers replaced by that step of ``base_order``."""
    base_steps = [base_order[part.layer] for part in step]

    # A parallel step averages its units. If each stands for a group, the mean of the groups' means is the mean over all
    # their members only where the groups have the same size.
    sizes = {len(base_step) for base_step in base_steps}
    if len(sizes) > 1:
        groups = " and ".join(_token(base_step) for base_step in base_steps)
        raise UserError(
            f"the step {_token(step)} would be a mean of means of different numbers of layers ({groups}), "
            "which an order can't express: run these steps one after the other"
        )

    units: list[Unit] = []
    for part, base_step in zip(step, base_steps):
        units += [unit.restricted_to(part.half) for unit in base_step]
    return tuple(units)


@cache  # Every training step asks for it several times.
def sequential(depth: int) -> Order:
    """Layers 0 to ``depth - 1``, as the model was built."""
    return Order(range(depth))


def seeded(*key: int | str) -> random.Random:
    """A random generator that is a function of ``key`` alone, such as (seed, step, rank).

    Of its methods use only ``random()``: Python guarantees its numbers in every version, but not those of ``shuffle``.
    """
    return random.Random(" ".join(map(str, key)))
