"""The orders of the systems around LayerShuffle, and the names by which configs and command lines ask for them.

All are orders of a model's ``depth`` layers; ``parse_order`` puts the steps of a model's base order in their place.
"""

import inspect
import random
import re
from collections.abc import Callable

from layershuffle.errors import UserError
from layershuffle.orders.order import Order, OrderLike, Step, sequential


def permutation(depth: int, rng: random.Random) -> Order:
    """All layers in a uniformly random sequence (LayerShuffle, arXiv 2407.04513, section 3.1)."""
    return sequential(depth).shuffled(rng)


def backwards(depth: int) -> Order:
    """All layers in reverse sequence, from the last to layer 0."""
    return Order(range(depth - 1, -1, -1))


def first(k: int, depth: int) -> Order:
    """The first ``k`` of ``depth`` layers."""
    return sequential(_kept(k, depth))


def evenly_spaced(k: int, depth: int) -> Order:
    """``k`` of ``depth`` layers, evenly spaced from layer 0.

    Where LayerDrop's "every other" rule (arXiv 1909.11556, section 3.2: drop depth d, counted from 1, if
    d = 0 mod floor(1/p), with p = 1 - k/depth) leaves k layers, these are the same ones.
    """
    return Order(index * depth // _kept(k, depth) for index in range(k))


def random_subset(k: int, depth: int, rng: random.Random) -> Order:
    """A uniformly random choice of ``k`` of ``depth`` layers, in original sequence."""
    return Order(sorted(sequential(depth).shuffled(rng)[: _kept(k, depth)]))


def _kept(k: int, depth: int) -> int:
    if not 1 <= k <= depth:
        raise UserError(f"{k} layers can't be kept of {depth}: choose from 1 to {depth}")
    return k


def middle(n: int, depth: int) -> range:
    """The layers between the first n + 1 and the last n, which stay in place (Layers as Painters, arXiv 2407.09298).

    Raises:
        UserError: if there are none.
    """
    layers = range(n + 1, depth - n)
    if n < 0 or not layers:
        advice = f"choose n from 0 to {depth // 2 - 1}" if depth > 1 else "it takes at least 2"
        raise UserError(f"with n = {n}, {depth} layers have no middle between the first n + 1 and the last n: {advice}")
    return layers


def _with_middle(n: int, depth: int, steps: OrderLike) -> Order:
    return Order(range(n + 1)) + steps + range(depth - n, depth)


def skip(n: int, depth: int) -> Order:
    """The middle left out (arXiv 2407.09298)."""
    return _with_middle(n, depth, middle(n, depth)[:0])


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
    return _with_middle(n, depth, [f"({'|'.join(map(str, middle(n, depth)))})*{times}"])


def parallel(n: int, depth: int) -> Order:
    """All middle layers on the same input, their outputs averaged (arXiv 2407.09298)."""
    return looped_parallel(n, 1, depth)


def swap(one: int, other: int, depth: int) -> Order:
    """Two layers exchanged (arXiv 2406.19384)."""
    layers = list(range(depth))
    layers[one], layers[other] = _layer(other, depth), _layer(one, depth)
    return Order(layers)


def ablate(layer: int, depth: int) -> Order:
    """All layers but one (arXiv 2406.19384)."""
    return Order(other for other in range(depth) if other != _layer(layer, depth))


def _layer(layer: int, depth: int) -> int:
    if not 0 <= layer < depth:
        raise UserError(f"there is no layer {layer}: choose from 0 to {depth - 1}")
    return layer


def sequence(visits: int, depth: int) -> Order:
    """Each layer visits / depth times in a row (parameter sharing, arXiv 2104.06022)."""
    cycled = cycle(visits, depth)
    if visits % depth:
        raise UserError(f"sequence visits every layer equally often: {visits} is no multiple of {depth} layers")
    return Order(sorted(cycled))


def cycle(visits: int, depth: int) -> Order:
    """The layers in sequence, again and again, ``visits`` in all (parameter sharing, arXiv 2104.06022)."""
    if visits < depth:
        raise UserError(f"{visits} visits don't reach all of {depth} layers: give {depth} or more")
    return Order(visit % depth for visit in range(visits))


def cycle_rev(visits: int, depth: int) -> Order:
    """Like ``cycle``, but the last visits run the layers backwards (arXiv 2104.06022).

    At most ``depth`` visits run backwards, and the first ``depth`` visits always run forwards: 4 visits of 3 layers are
    0 1 2 2. This is what the authors' code does (github.com/takase/share_layer_params).
    """
    forwards = max(depth, visits - depth)
    return cycle(visits, depth)[:forwards] + backwards(depth)[: visits - forwards]


def sublayers(depth: int) -> Order:
    """The attention and the feed-forward half of each layer as steps of their own; runs what ``sequential`` runs."""
    return Order(f"{layer}{half}" for layer in range(depth) for half in "af")


def sandwich(k: int, depth: int) -> Order:
    """``k`` attention sublayers, then attention and feed-forward in turn, then ``k`` feed-forward ones.

    Either kind comes in the sequence of its layers, so that ``sandwich(0)`` is the ordinary model (arXiv 1911.03864).
    """
    if not 0 <= k <= depth:
        raise UserError(f"{depth} layers make no sandwich with k = {k}: choose from 0 to {depth}")
    # Feed-forward half i follows attention half i + k, or the last attention half if there is none.
    steps: list[Step] = sorted(sublayers(depth), key=lambda s: (s[0].layer + k * (s[0].half == "f"), s[0].half))
    return Order(steps)


NAMED: dict[str, Callable[..., Order]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        sequential, backwards, first, evenly_spaced, skip, middle_repeat, reverse, parallel, looped_parallel, swap,
        ablate, sequence, cycle, cycle_rev, sublayers, sandwich,
    )
}  # fmt: skip


def parse_order(text: str, own: Order) -> Order:
    """The order that ``text`` means for a model whose base order is ``own``.

    Args:
        text: an order's text form, which names layers; or a name of NAMED with its numbers, such as ``cycle(6)``,
            ``looped-parallel(2,3)`` or ``sublayers``, which names the steps of ``own``.
        own: the model's base order.

    Raises:
        UserError: if it is neither or the model can't run it.
    """
    match = re.fullmatch(r"([a-z-]{2,})(?:\(([0-9, ]*)\))?", text.strip())
    if match is None:
        return Order(text)
    name, numbers = match[1], [int(number) for number in re.findall(r"[0-9]+", match[2] or "")]
    if name not in NAMED:
        raise UserError(f"there is no order named {name}: choose from {', '.join(NAMED)}")
    if len(numbers) + 1 != len(inspect.signature(NAMED[name]).parameters):
        raise UserError(f"'{text}' is not an order: write {form(name)}, with a number for each word in brackets")
    return NAMED[name](*numbers, len(own)).over(own)


def form(name: str) -> str:
    """How a named order is written, such as ``sandwich(k)``; the last parameter, the depth, is the model's."""
    *words, _ = inspect.signature(NAMED[name]).parameters
    return f"{name}({','.join(words)})" if words else name
