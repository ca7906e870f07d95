"""Execution orders: the type, and its text form.

An order is a sequence of *steps*. A step is a layer, one half of a layer (a sublayer: ``a`` attention,
``f`` feed-forward), or a *group* of those, which run in parallel on the same state. The outputs of a group are averaged
(Layers as Painters, arXiv 2407.09298), or what each of them changes is added to the state (arXiv 2203.09795,
2502.02790). Layers may be missing or repeated.

A step may also read an older state, ``lag`` results ago. What it changes is added to the newest state. That is how a
run is written down in which layers didn't wait for each other, so ``0 1<1 2<2`` computes what ``(0+1+2)`` does.

The text form parses back to the same order::

    3 1 2            layers
    0a 1a 0f 1f      sublayers
    0 (1|2|3)*4 4    an averaged group, four times in a row
    (0+1+2) 3        a summed group
    0 1 5<2          layer 5 reads the state as it was two results earlier
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from typing import Any, NamedTuple, Self, overload

from layershuffle.errors import UserError

MAX_STEPS = 100_000
"""More than any model runs. Without a limit, a short text such as ``1*99999 1*99999 ...`` would fill the memory."""

_UNIT = r"[0-9]{1,4}[af]?"
_NUMBER = r"[1-9][0-9]{0,4}"
_AVERAGED = rf"{_UNIT}(?:\|{_UNIT})*"  # A group of one, such as (3), matches this too. It is the unit alone.
_SUMMED = rf"{_UNIT}(?:\+{_UNIT})+"
# A step is a unit, or a group of units in parentheses. It may read an older state, and it may be repeated. These are
# steps: 3, 3a, (1|2), (1+2), 3<2, (1|2)*4.
_STEP = re.compile(
    rf"(?:(?P<single>{_UNIT})|\((?P<group>{_AVERAGED}|{_SUMMED})\))"
    rf"(?:<(?P<lag>{_NUMBER}))?"
    rf"(?:\*(?P<times>{_NUMBER}))?"
)


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


class Step(NamedTuple):
    """What runs at one place of an order.

    Attributes:
        units: The units that run in parallel on the same state, ascending; nearly always just one.
        summed: Whether what each unit changes is added to the state; otherwise the outputs of several are averaged.
        lag: How many results old the state is that the step reads. What it changes is added to the newest state.
    """

    units: tuple[Unit, ...]
    summed: bool = False
    lag: int = 0

    @property
    def is_group(self) -> bool:
        """Whether several units run in parallel."""
        return len(self.units) > 1

    def __str__(self) -> str:
        if self.is_group:
            sign = "+" if self.summed else "|"
            text = f"({sign.join(map(str, self.units))})"
        else:
            text = str(self.units[0])
        if self.lag:
            text += f"<{self.lag}"
        return text


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
        return frozenset(unit.layer for unit in self.units)

    @property
    def units(self) -> Iterator[Unit]:
        """The layers and halves of layers that the order runs, in sequence, as often as it runs them."""
        for step in self.steps:
            yield from step.units

    @property
    def positions(self) -> list[int]:
        """The position of each step: how many results there were when it started, which is its index less its lag."""
        return [index - step.lag for index, step in enumerate(self.steps)]

    @property
    def longest_lag(self) -> int:
        """How many results old the oldest state is that a step reads."""
        return max((step.lag for step in self.steps), default=0)

    @property
    def whole_layers(self) -> list[int] | None:
        """The indices of the layers in sequence, or None if a step is anything but a whole layer by itself."""
        layers = []
        for step in self.steps:
            unit = step.units[0]
            if step != Step((Unit(unit.layer),)):
                return None
            layers.append(unit.layer)
        return layers

    def check(self, depth: int) -> Self:
        """Return the order itself if a model of ``depth`` layers can run it, else raise a UserError."""
        missing = [layer for layer in self.layers if layer >= depth]
        if missing:
            raise UserError(f"the order names layer {max(missing)}, but the model has only layers 0 to {depth - 1}")
        for index, step in enumerate(self.steps):
            if step.lag > index:
                raise UserError(
                    f"the step {step} at position {index} would read a state from before the first step: "
                    f"write {step._replace(lag=index)}, or let the step come later"
                )
        return self

    def over(self, base_order: "Order") -> "Order":
        """Translate the order into the steps of ``base_order``: layer n becomes its step number n.

        A half of layer n becomes that half of the step: "2 0" over "3 (0|1) 2" is "2 3". Over a sequential order, the
        order stays as it is.

        Raises:
            UserError: if ``base_order`` has no such step, if the order names half of a step that is half a layer, or if
                a group would hold a layer twice, or be a mean of means, a sum of means or a mean of sums.
        """
        self.check(len(base_order))
        # Every training step comes here, and most models run their layers in sequence, so this case has to be fast.
        if base_order == sequential(len(base_order)):
            return self
        return Order(_over(step, base_order) for step in self.steps)

    def shuffled(self, rng: random.Random) -> "Order":
        """The same steps in a uniformly random sequence; raises UserError if some of them read older states."""
        if self.longest_lag:
            raise UserError(f"'{self}' can't be shuffled: its steps say how old the states are that they read")
        # rng.shuffle could give another result in another version of Python, see ``seeded``. Sorting by random numbers
        # can't.
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
            # Only a group has the form with a number: 2 2 is plainer than (2)*2.
            if step.is_group and times > 1:
                tokens.append(f"{step}*{times}")
            else:
                tokens.extend([str(step)] * times)
        return " ".join(tokens)

    def __repr__(self) -> str:
        return f"Order({str(self)!r})"


OrderLike = Order | str | Iterable[int | str | Step | Unit | tuple[Unit | int, ...]]


def _steps(order: OrderLike) -> tuple[Step, ...]:
    """The steps of anything that can be read as an order; raises UserError if it can't be."""
    if isinstance(order, Order):
        return order.steps

    parts: Iterable[Any]
    if isinstance(order, str):
        parts = order.split()
    else:
        # One more than there may be, so that the check below also refuses an iterable that never ends.
        try:
            parts = islice(order, MAX_STEPS + 1)
        except TypeError as error:
            raise UserError(f"{order!r} is not an order: give layers, or text such as '3 1 2'") from error

    # Everything is turned into text first, even what is a step already, so that _parse alone decides what a step is.
    steps: list[Step] = []
    for part in parts:
        text = f"{part}"  # unlike str(part), this also works for tensors
        if isinstance(part, tuple) and not isinstance(part, (Step, Unit)):
            members = "|".join(map(str, part))
            text = f"({members})"  # a plain tuple is an averaged group
        step, times = _parse(text)
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
            "halves as 0a and 0f, an averaged group as (1|2|3), a summed one as (1+2+3), repeats as (1|2|3)*4, "
            "and 5<2 for layer 5 on the state of two results earlier"
        )
    summed = "+" in token

    units: list[Unit] = []
    for name in re.split(r"[|+]", match["single"] or match["group"]):
        layer = name.rstrip("af")
        half = name.removeprefix(layer)
        unit = Unit(int(layer), half)
        if unit in units:
            raise UserError(f"'{token[:40]}' is not a step of an order: a group can't hold {unit} twice")
        units.append(unit)
    step = Step(tuple(sorted(units)), summed, int(match["lag"] or 0))
    return step, int(match["times"] or 1)


def _over(step: Step, base_order: Order) -> Step:
    """The step that runs what ``step`` runs, with each of its layers replaced by that step of ``base_order``."""
    base_steps = [base_order[unit.layer] for unit in step.units]

    # A single unit becomes what the base order runs in its place, which may itself be a group or read an older state.
    if not step.is_group:
        (base_step,) = base_steps
        if step.lag and base_step.lag:
            raise UserError(f"the step {step} of the base order, {base_step}, reads an older state already")
        half = step.units[0].half
        units = tuple(unit.restricted_to(half) for unit in base_step.units)
        return Step(units, base_step.summed, step.lag or base_step.lag)

    # A group becomes one group of everything that its members stand for.
    _check_nesting(step, base_steps)
    members: list[Unit] = []
    for unit, base_step in zip(step.units, base_steps):
        members += [member.restricted_to(unit.half) for member in base_step.units]
    return Step(tuple(members), step.summed, step.lag)


def _check_nesting(step: Step, base_steps: Sequence[Step]) -> None:
    """Raise a UserError if ``step``, a group of these steps of the base order, can't be written as one group."""
    groups = " and ".join(map(str, base_steps))
    if any(base_step.lag for base_step in base_steps):
        raise UserError(f"the group {step} would hold steps that read older states ({groups}): run them one by one")

    # A sum of sums is one sum. A mean of means is one mean only if all groups have the same size: otherwise the members
    # of a small group would count for more. A mean of sums, or a sum of means, is no single group.
    is_mixed = any(base_step.is_group and base_step.summed != step.summed for base_step in base_steps)
    sizes = {len(base_step.units) for base_step in base_steps}
    is_uneven_mean = not step.summed and len(sizes) > 1
    if is_mixed or is_uneven_mean:
        raise UserError(
            f"the group {step} would hold groups of another kind or size ({groups}), which an order can't express: "
            "run these steps one after the other"
        )


@cache  # Every training step asks for it several times.
def sequential(depth: int) -> Order:
    """Layers 0 to ``depth - 1``, as the model was built."""
    return Order(range(depth))


def seeded(*key: int | str) -> random.Random:
    """A random generator that is a function of ``key`` alone, such as (seed, step, rank).

    Of its methods use only ``random()``: Python guarantees its numbers in every version, but not those of ``shuffle``.
    """
    return random.Random(" ".join(map(str, key)))
