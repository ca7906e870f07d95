"""The orders of the systems around LayerShuffle, and the names by which configs and command lines ask for them.

All are orders of a model's ``depth`` layers; ``parse_order`` puts the steps of a model's base order in their place.
NAMED at the end of this file is the table of those that have a name. A function whose numbers don't fit the depth
raises a UserError.
"""

import inspect
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from layershuffle.errors import UserError
from layershuffle.orders.order import Order, OrderLike, Step, sequential
from layershuffle.orders.width import grouped
from layershuffle.plurals import counted


def permutation(depth: int, rng: random.Random) -> Order:
    """All layers in a uniformly random sequence (LayerShuffle, arXiv 2407.04513, section 3.1)."""
    return sequential(depth).shuffled(rng)


def backwards(depth: int) -> Order:
    """All layers in reverse sequence, from the last to layer 0."""
    return Order(range(depth - 1, -1, -1))


def first(k: int, depth: int) -> Order:
    """The first ``k`` of ``depth`` layers."""
    _check_kept(k, depth)
    return sequential(k)


def evenly_spaced(k: int, depth: int) -> Order:
    """``k`` of ``depth`` layers, evenly spaced from layer 0.

    Where LayerDrop's "every other" rule (arXiv 1909.11556, section 3.2: drop depth d, counted from 1, if
    d = 0 mod floor(1/p), with p = 1 - k/depth) leaves k layers, these are the same ones.
    """
    _check_kept(k, depth)
    return Order(index * depth // k for index in range(k))


def random_subset(k: int, depth: int, rng: random.Random) -> Order:
    """A uniformly random choice of ``k`` of ``depth`` layers, in original sequence."""
    _check_kept(k, depth)
    # The first k layers of a random permutation are a uniformly random choice.
    kept = sequential(depth).shuffled(rng)[:k]
    return Order(sorted(kept))


def _check_kept(k: int, depth: int) -> None:
    if not 1 <= k <= depth:
        raise UserError(f"{k} layers can't be kept of {depth}: choose from 1 to {depth}")


def middle(n: int, depth: int) -> range:
    """The layers between the first n + 1 and the last n, which stay in place (Layers as Painters, arXiv 2407.09298).

    Raises:
        UserError: if there are none.
    """
    layers = range(n + 1, depth - n)
    # A negative n would reach beyond the first layer and the last.
    if n < 0 or not layers:
        advice = "it takes at least 2"
        if depth > 1:
            advice = f"choose n from 0 to {depth // 2 - 1}"
        raise UserError(
            f"with n = {n}, {counted(depth, 'layer')} have no middle between the first n + 1 and the last n: {advice}"
        )
    return layers


def _with_middle(n: int, depth: int, steps: OrderLike) -> Order:
    """The first n + 1 and the last n layers in their places, and ``steps`` between them."""
    return Order(range(n + 1)) + steps + range(depth - n, depth)


def skip(n: int, depth: int) -> Order:
    """The middle left out (arXiv 2407.09298)."""
    middle(n, depth)  # raises if there is none
    return _with_middle(n, depth, ())


def middle_repeat(n: int, depth: int) -> Order:
    """Layer depth / 2 (rounded down) in place of every middle layer (arXiv 2407.09298)."""
    return _with_middle(n, depth, [depth // 2] * len(middle(n, depth)))


def reverse(n: int, depth: int) -> Order:
    """The middle backwards (arXiv 2407.09298)."""
    return _with_middle(n, depth, reversed(middle(n, depth)))


def random_middle(n: int, depth: int, rng: random.Random) -> Order:
    """The middle in a uniformly random sequence (arXiv 2407.09298)."""
    return _with_middle(n, depth, Order(middle(n, depth)).shuffled(rng))


def looped_parallel(n: int, times: int, depth: int) -> Order:
    """All middle layers on the same input, their outputs averaged; that step ``times`` in a row (arXiv 2407.09298)."""
    if times < 1:
        raise UserError(f"looped-parallel runs its step once or more, not {times} times")
    # A middle of one layer is written as a group of one, which is that layer.
    averaged = "|".join(str(layer) for layer in middle(n, depth))
    return _with_middle(n, depth, f"({averaged})*{times}")


def parallel(n: int, depth: int) -> Order:
    """All middle layers on the same input, their outputs averaged (arXiv 2407.09298)."""
    return looped_parallel(n, 1, depth)


def side_by_side(groups: int, depth: int) -> Order:
    """The layers in sequence, in summed groups of nearly equal size (arXiv 2203.09795, 2502.02790)."""
    return grouped(sequential(depth), groups)


def swap(one: int, other: int, depth: int) -> Order:
    """Two layers exchanged (arXiv 2406.19384)."""
    _check_layer(one, depth)
    _check_layer(other, depth)
    layers = list(range(depth))
    layers[one], layers[other] = other, one
    return Order(layers)


def ablate(layer: int, depth: int) -> Order:
    """All layers but one (arXiv 2406.19384)."""
    _check_layer(layer, depth)
    return Order(other for other in range(depth) if other != layer)


def _check_layer(layer: int, depth: int) -> None:
    if not 0 <= layer < depth:
        raise UserError(f"there is no layer {layer}: choose from 0 to {depth - 1}")


def sequence(visits: int, depth: int) -> Order:
    """Each layer visits / depth times in a row (parameter sharing, arXiv 2104.06022)."""
    cycled = cycle(visits, depth)  # raises if there are too few visits
    if visits % depth != 0:
        raise UserError(f"sequence visits every layer equally often: {visits} is no multiple of {depth} layers")
    # Sorted, the visits of a layer come one after the other.
    return Order(sorted(cycled))


def cycle(visits: int, depth: int) -> Order:
    """The layers in sequence, again and again, ``visits`` in all (parameter sharing, arXiv 2104.06022)."""
    if visits < depth:
        raise UserError(f"{visits} visits don't reach all of {counted(depth, 'layer')}: give {depth} or more")
    return Order(visit % depth for visit in range(visits))


def cycle_rev(visits: int, depth: int) -> Order:
    """Like ``cycle``, but the last visits run the layers backwards (arXiv 2104.06022).

    At most ``depth`` visits run backwards, and the first ``depth`` visits always run forwards: 4 visits of 3 layers are
    0 1 2 2. This is what the authors' code does (github.com/takase/share_layer_params).
    """
    # How many visits run forwards: all but the last ``depth`` ones, and the first ``depth`` ones in any case.
    forwards = max(depth, visits - depth)
    last_visits = backwards(depth)[: visits - forwards]
    return cycle(visits, depth)[:forwards] + last_visits


def sublayers(depth: int) -> Order:
    """The attention and the feed-forward half of each layer as steps of their own; runs what ``sequential`` runs."""
    return Order(f"{layer}{half}" for layer in range(depth) for half in "af")


def sandwich(k: int, depth: int) -> Order:
    """``k`` attention sublayers, then attention and feed-forward in turn, then ``k`` feed-forward ones.

    Either kind comes in the sequence of its layers, so that ``sandwich(0)`` is the ordinary model (arXiv 1911.03864).
    """
    if not 0 <= k <= depth:
        raise UserError(f"{counted(depth, 'layer')} can't make a sandwich with k = {k}: choose from 0 to {depth}")

    def place(step: Step) -> tuple[int, str]:
        # Feed-forward half i follows attention half i + k. The last k feed-forward halves have no such attention half,
        # and come after all of them.
        unit = step.units[0]
        if unit.half == "f":
            return unit.layer + k, "f"
        return unit.layer, "a"

    steps: list[Step] = sorted(sublayers(depth), key=place)
    return Order(steps)


@dataclass(frozen=True)
class NamedOrder:
    """An order that configs and command lines ask for by name.

    Attributes:
        name: what users write, such as ``cycle`` in ``cycle(6)``.
        build: the function that builds it. Its last parameter is the depth; users give a number for each of the others.
        summary: one sentence that says what it is, for ``layershuffle list``.
    """

    name: str
    build: Callable[..., Order]
    summary: str

    @property
    def numbers(self) -> list[str]:
        """The names of the numbers that users write in brackets, such as ``["n", "times"]``."""
        *numbers, _depth = inspect.signature(self.build).parameters
        return numbers

    @property
    def form(self) -> str:
        """How users write it, such as ``sandwich(k)``."""
        if not self.numbers:
            return self.name
        return f"{self.name}({','.join(self.numbers)})"


_NAMED = (
    NamedOrder("sequential", sequential, "Layers 0 to depth - 1, as the model was built."),
    NamedOrder("backwards", backwards, "All layers in reverse sequence, from the last to layer 0."),
    NamedOrder("first", first, "The first k layers."),
    NamedOrder("evenly-spaced", evenly_spaced, "k layers, evenly spaced from layer 0."),
    NamedOrder("skip", skip, "The middle left out (arXiv 2407.09298)."),
    NamedOrder(
        "middle-repeat", middle_repeat, "The layer in the middle in place of all middle ones (arXiv 2407.09298)."
    ),
    NamedOrder("reverse", reverse, "The middle backwards (arXiv 2407.09298)."),
    NamedOrder("parallel", parallel, "All middle layers on the same input, averaged (arXiv 2407.09298)."),
    NamedOrder("looped-parallel", looped_parallel, "Like parallel, several times in a row (arXiv 2407.09298)."),
    NamedOrder("grouped", side_by_side, "The layers in sequence, in so many summed groups (arXiv 2203.09795)."),
    NamedOrder("swap", swap, "Two layers exchanged (arXiv 2406.19384)."),
    NamedOrder("ablate", ablate, "All layers but one (arXiv 2406.19384)."),
    NamedOrder("sequence", sequence, "Each layer visits / depth times in a row (arXiv 2104.06022)."),
    NamedOrder("cycle", cycle, "The layers in sequence, again and again, so many in all (arXiv 2104.06022)."),
    NamedOrder("cycle-rev", cycle_rev, "Like cycle, but the last visits run backwards (arXiv 2104.06022)."),
    NamedOrder("sublayers", sublayers, "The attention and the feed-forward half of each layer as steps of their own."),
    NamedOrder("sandwich", sandwich, "k attention halves first and k feed-forward halves last (arXiv 1911.03864)."),
)
NAMED = {order.name: order for order in _NAMED}
"""The named orders, by name."""

# A name, with numbers in brackets if it takes any, such as "sublayers" or "looped-parallel(2,3)".
_NAME = re.compile(r"([a-z-]{2,})(?:\(([0-9, -]*)\))?")


def parse_order(text: str, base_order: Order) -> Order:
    """The order that ``text`` means for a model whose base order is ``base_order``.

    Args:
        text: an order's text form, which names layers; or a name of NAMED with its numbers, such as ``cycle(6)``,
            ``looped-parallel(2,3)`` or ``sublayers``, which names the steps of the base order.
        base_order: the model's base order.

    Raises:
        UserError: if it is neither or the model can't run it.
    """
    # A text form names layers, so that the base order has no part in it.
    match = _NAME.fullmatch(text.strip())
    if match is None:
        return Order(text)

    # A named order speaks of the steps of the base order.
    name = match[1]
    if name not in NAMED:
        raise UserError(f"there is no order named {name}: choose from {', '.join(NAMED)}")
    order = NAMED[name]

    in_brackets = match[2] or ""
    numbers = [int(number) for number in re.findall(r"-?[0-9]+", in_brackets)]
    if len(numbers) != len(order.numbers) or min(numbers, default=0) < 0:
        raise UserError(f"'{text}' is not an order: write {order.form}, with a number for each word in brackets")
    try:
        return order.build(*numbers, len(base_order)).over(base_order)
    except UserError as error:
        # Several orders may have been asked for.
        raise UserError(f"{text.strip()}: {error}") from error
