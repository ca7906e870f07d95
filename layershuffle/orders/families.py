"""The protocols of this package: the families of orders that papers evaluate, and those of our own."""

import itertools
import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Literal

from layershuffle.errors import UserError
from layershuffle.orders import named, width
from layershuffle.orders import recorded as event_log
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import Orders, protocol


@protocol("sequential", "The original order.", figure=None, by_class=True)
def sequential(depth: int) -> Orders:
    """The original order alone."""
    yield named.sequential(depth), {}


@protocol(
    "arbitrary",
    "Random permutations: a new one for every batch, as in the paper, and some that each run on all images.",
    figure="overview",
    by_class=True,
)
def arbitrary(depth: int, random_orders: int, seed: int) -> Orders:
    """Both readings of the arbitrary order of arXiv 2407.04513."""
    # None is a new random permutation for every batch, see ``Scorable``.
    yield None, {"reading": "per batch"}
    for number in range(random_orders):
        yield named.permutation(depth, seeded(seed, "arbitrary", number)), {"reading": "fixed"}


@protocol(
    "pruned",
    "Some layers left out, by each strategy, the others in original and in random sequence.",
    options={"depths": "Numbers of layers to keep (default: quarters of the depth)."},
    columns="layers kept",
    figure="overview",
)
def pruned(depth: int, random_orders: int, seed: int, depths: tuple[int, ...] = ()) -> Orders:
    """Layers left out by each strategy.

    Random layers in random sequence are also sampled anew for every batch, as in figure 1c of arXiv 2407.04513.
    """
    # A set, because quarters of a shallow model coincide.
    quarters = {max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)}
    for kept in depths or sorted(quarters):
        for strategy, sequence in itertools.product(("first", "even", "random"), ("original", "random")):
            variant = {"kept": kept, "strategy": strategy, "sequence": sequence}
            # Where nothing is random, every sample would be the same order.
            is_random = strategy == "random" or sequence == "random"
            samples = random_orders if is_random else 1
            for number in range(samples):
                # With a generator of its own, an order stays the same whichever others are asked for.
                rng = seeded(seed, "pruned", kept, strategy, sequence, number)
                order = _kept_layers(strategy, kept, depth, rng)
                if sequence == "random":
                    order = order.shuffled(rng)
                yield order, variant
        yield partial(_shuffled_subset, kept, depth), {"kept": kept, "strategy": "random", "sequence": "per batch"}


def _kept_layers(strategy: str, kept: int, depth: int, rng: random.Random) -> Order:
    """The layers that a strategy of ``pruned`` keeps, in original sequence."""
    if strategy == "first":
        return named.first(kept, depth)
    if strategy == "even":
        return named.evenly_spaced(kept, depth)
    return named.random_subset(kept, depth, rng)


def _shuffled_subset(kept: int, depth: int, rng: random.Random) -> Order:
    return named.random_subset(kept, depth, rng).shuffled(rng)


@protocol(
    "failing",
    "Each layer dead with a probability, as if it were a node that fails, and the others in a random sequence.",
    options={"dead": "Probabilities in percent with which a layer is dead."},
    xlabel="probability that a layer is dead",
)
def failing(depth: int, random_orders: int, seed: int, dead: tuple[int, ...] = (20, 30, 50)) -> Orders:
    """Each layer dead with each of the probabilities ``dead``, in percent; the others in random sequence."""
    for percent in dead:
        if not 0 <= percent < 100:
            raise UserError(f"a layer is dead with a probability from 0 to below 100%, not {percent}%")
        for number in range(random_orders):
            rng = seeded(seed, "failing", percent, number)
            alive = Order(layer for layer in range(depth) if rng.random() * 100 >= percent)
            yield alive.shuffled(rng), {"dead": f"{percent}%"}


@protocol(
    "grouped",
    "Layers that run side by side, in fewer and fewer steps: in sequence, in random sequence, and with half left out.",
    options={
        "steps": "Numbers of steps (default: one layer, then 2, 3, 4, 6 and all layers at a time).",
        "combine": "What becomes of a group's results: sum adds their changes, mean averages their outputs.",
        "halves": "Whether to score groups of halves too: their attentions run side by side, then their feed-forwards.",
    },
    columns="steps",
    section="Layers side by side",
    descending=True,
)
def grouped(
    depth: int,
    random_orders: int,
    seed: int,
    steps: tuple[int, ...] = (),
    combine: Literal["sum", "mean"] = "sum",
    halves: bool = False,
) -> Orders:
    """Groups of layers on the same state (arXiv 2203.09795, 2502.02790), in any order."""
    averaged = combine == "mean"
    suffix = ", averaged" if averaged else ""
    # By default, from one layer at a time to all of them at once. A set, because in a small model several sizes of
    # groups lead to the same number of steps.
    sizes = (1, 2, 3, 4, 6, depth)
    default_steps = {math.ceil(depth / size) for size in sizes if size <= depth}
    for groups in steps or sorted(default_steps):
        in_sequence = width.grouped(named.sequential(depth), groups, averaged=averaged)
        yield in_sequence, {"steps": groups, "layers": f"in sequence{suffix}"}
        for number in range(random_orders):
            # With a generator of its own, an order stays the same whichever others are asked for.
            shuffled = named.permutation(depth, seeded(seed, "grouped", groups, number))
            order = width.grouped(shuffled, groups, averaged=averaged)
            yield order, {"steps": groups, "layers": f"random{suffix}"}
            if halves:
                order = width.grouped(shuffled, groups, halves=True, averaged=averaged)
                yield order, {"steps": groups, "layers": f"random halves{suffix}"}
            # Half of the layers can be too few for so many groups.
            kept = shuffled[: (depth + 1) // 2]
            if groups <= len(kept):
                order = width.grouped(kept, groups, averaged=averaged)
                yield order, {"steps": groups, "layers": f"random, half left out{suffix}"}


@protocol(
    "asynchronous",
    "Layers that don't wait for each other: each reads the newest state at its start and adds its change at its end.",
    options={"in_flight": "Numbers of layers that run at a time."},
    columns="in flight",
    xlabel="layers in flight",
    section="Layers that don't wait",
)
def asynchronous(depth: int, random_orders: int, seed: int, in_flight: tuple[int, ...] = (1, 2, 3, 4, 6)) -> Orders:
    """Random sequences and durations, see ``orders.width.without_waiting``."""
    for running in in_flight:
        for number in range(random_orders):
            rng = seeded(seed, "asynchronous", running, number)
            shuffled = named.permutation(depth, rng)
            yield width.without_waiting(shuffled, running, rng), {"in flight": running, "layers": "random"}
            kept = shuffled[: (depth + 1) // 2]
            half = width.without_waiting(kept, running, rng)
            yield half, {"in flight": running, "layers": "random, half left out"}


@protocol(
    "landscape",
    "Every choice of layers, in original sequence: 4,095 orders for 12 layers.",
    columns="layers kept",
    figure="scatter",
    section="Every subset of the layers",
)
def landscape(depth: int) -> Orders:
    """Every choice of layers, of models of up to 16 layers."""
    if depth > 16:
        raise UserError(f"the landscape of {depth} layers has {2**depth - 1:,} orders: it is for models of up to 16")
    for kept in range(1, depth + 1):
        for layers in itertools.combinations(range(depth), kept):
            yield Order(layers), {"kept": kept}


@protocol("given", "The orders that the user gives.", names_layers=True, by_class=True)
def given(depth: int, orders: Sequence[Order]) -> Orders:
    """The orders that the user gives."""
    if not orders:
        raise UserError("the protocol given scores the orders that you give: name them after --order")
    for order in orders:
        yield order, {"order": str(order)}


@protocol(
    "painters",
    "The middle layers skipped, repeated, reversed, shuffled, in parallel and looped (arXiv 2407.09298).",
    options={
        "ends": "The first N + 1 and the last N layers stay in place (default: every N there is).",
        "loops": "How many times in a row looped-parallel runs its step.",
    },
    columns="layers affected",
)
def painters(
    depth: int, random_orders: int, seed: int, ends: tuple[int, ...] = (), loops: tuple[int, ...] = (3,)
) -> Orders:
    """The experiments of Transformer Layers as Painters (arXiv 2407.09298)."""
    # A model of one layer has no middle for any n. It is tried with 0 all the same, so that the user gets the error of
    # ``named.middle`` and no empty evaluation.
    for n in ends or range(max(1, depth // 2)):
        affected = len(named.middle(n, depth))
        for strategy in ("skip", "middle-repeat", "reverse", "parallel"):
            order = named.NAMED[strategy].build(n, depth)
            yield order, {"affected": affected, "strategy": strategy}
        for times in loops:
            order = named.looped_parallel(n, times, depth)
            yield order, {"affected": affected, "strategy": f"looped-parallel {times}x"}
        for number in range(random_orders):
            order = named.random_middle(n, depth, seeded(seed, "painters", n, number))
            yield order, {"affected": affected, "strategy": "random"}


@protocol(
    "ablations",
    "Each layer left out by itself (arXiv 2406.19384).",
    columns="left out",
    picture="layers",
    label="layer left out",
    xlabel="layer",
)
def ablations(depth: int) -> Orders:
    """Each layer left out by itself (arXiv 2406.19384)."""
    for layer in range(depth):
        yield named.ablate(layer, depth), {"layer": layer}


@protocol(
    "swaps",
    "Each layer exchanged with the next (arXiv 2406.19384).",
    columns="swapped with next",
    picture="layers",
    label="layer exchanged with the next",
    xlabel="layer",
)
def swaps(depth: int) -> Orders:
    """Each layer exchanged with the next (arXiv 2406.19384)."""
    for layer in range(depth - 1):
        yield named.swap(layer, layer + 1, depth), {"layer": layer}


@protocol(
    "swap-matrix",
    "Every two layers exchanged, and the original order for comparison.",
    figure="matrix",
    label="two layers exchanged",
    xlabel="layer",
)
def swap_matrix(depth: int) -> Orders:
    """Every two layers exchanged; a layer exchanged with itself is the original order."""
    for one, other in itertools.combinations_with_replacement(range(depth), 2):
        yield named.swap(one, other, depth), {"one": one, "other": other}


@protocol(
    "sublayers",
    "Attention and feed-forward halves: sandwich orders of every k, and random permutations (arXiv 1911.03864).",
    figure="lines",
    xlabel="k attention sublayers first, k feed-forward sublayers last",
    names_layers=True,
)
def sublayers(depth: int, random_orders: int, seed: int) -> Orders:
    """The experiments of sandwich transformers (arXiv 1911.03864)."""
    for k in range(depth + 1):
        yield named.sandwich(k, depth), {"strategy": "sandwich", "k": k}
    for number in range(random_orders):
        yield named.sublayers(depth).shuffled(seeded(seed, "sublayers", number)), {"strategy": "random"}


@protocol(
    "instancewise",
    "Each image in the order it chooses, in the best of them, and all in each of them (IOT, arXiv 2103.03457).",
    figure="choices",
    names_layers=True,
)
def instancewise(depth: int, choices: Sequence[Order]) -> Orders:
    """The orders of a model with instance-wise reordering (arXiv 2103.03457)."""
    if not choices:
        raise UserError("this model's images choose no orders: instancewise is for models trained with model.choices")
    # The scorer picks an order for each image, see ``Pick``.
    yield "chosen", {"order": "chosen"}
    yield "oracle", {"order": "oracle"}
    for number, order in enumerate(choices, 1):
        yield order, {"order": f"{number} of {len(choices)}"}


@protocol(
    "recorded",
    "Orders that a cluster or a simulation ran, as often as it ran them: a new one for every batch, and fixed ones.",
    options={"recorded_orders": "Event log of layershuffle serve or layershuffle simulate."},
)
def recorded(depth: int, random_orders: int, seed: int, recorded_orders: str = "") -> Orders:
    """Orders from an event log."""
    if not recorded_orders:
        raise UserError(
            "recorded orders are read from a log: name that of layershuffle serve or simulate after --recorded_orders"
        )
    yield partial(event_log.sample, recorded_orders), {"reading": "per batch"}
    for number in range(random_orders):
        order = event_log.sample(recorded_orders, seeded(seed, "recorded", number)).check(depth)
        yield order, {"reading": "fixed", "missed": depth - len(order.layers)}
