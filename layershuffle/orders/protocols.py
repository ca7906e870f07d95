"""Protocols: named families of orders to evaluate, each with its options, its table and its picture."""

import importlib
import inspect
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from layershuffle.errors import UserError
from layershuffle.orders import named
from layershuffle.orders import recorded as event_log
from layershuffle.orders.order import Order, seeded

Pick = Literal["chosen", "oracle"]
"""One of the model's choices for each image: "chosen" is the one that the model takes, "oracle" is the best one.

The best has the lowest loss among the orders in which the image is classified rightly, or among all if there are none.
"""

SampleOrder = Callable[[random.Random], Order]
"""Samples an order for each batch. Only its argument may be a source of randomness."""

Orders = Iterator[tuple[Order | Pick | SampleOrder | None, dict[str, Any]]]
"""Orders to score, each with its variant, such as {"kept": 6, "strategy": "first"}.

None stands for a new random permutation in every batch. Orders of the same variant are samples of the same thing:
tables and pictures show their mean and spread.
"""


@dataclass(frozen=True)
class Trial:
    """One thing to score: a protocol, an order (see Pick and Orders for what else it can be) and its variant."""

    protocol: str
    order: Order | Pick | SampleOrder | None
    variant: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """A family of orders, and how its scores are shown.

    Attributes:
        name: the name of its function, with dashes.
        orders: the function. It can ask for the parameters in SUPPLIED: ``depth`` (the number of layers),
            ``random_orders`` (how many random orders stand for a random choice), ``seed``, ``orders`` (those that the
            user gave) and
            ``choices`` (the orders from which the images of an instance-wise model choose). Any other parameter is an
            option of the evaluate command: it needs a type, a default, and a line in the docstring under ``Args``.
        columns: the heading of a table with a column for each value of the variant's first entry; if empty, the table
            has a row for each variant.
        figure: the name of a drawing in ``layershuffle.results.figures.DRAWINGS``, a function of (results, title) that
            returns a matplotlib figure, or None for no picture. If empty, "lines" for tables with columns, else "bars".
        picture: the name of the picture's file. Protocols with the same one are drawn into the same picture.
        label: what the picture calls the protocol.
        xlabel: what the picture calls the number in the variant.
        names_layers: whether the orders name layers. Otherwise they name steps of the model's base order, which matters
            for models that run their layers repeatedly or by halves.
    """

    name: str
    orders: Callable[..., Orders]
    columns: str = ""
    figure: str | Callable[..., Any] | None = ""
    picture: str = ""
    label: str = ""
    xlabel: str = ""
    names_layers: bool = False

    @property
    def options(self) -> list[inspect.Parameter]:
        """The function's parameters that a user can set."""
        parameters = inspect.signature(self.orders, eval_str=True).parameters
        return [parameter for name, parameter in parameters.items() if name not in SUPPLIED]

    @property
    def description(self) -> str:
        """The first paragraph of the function's docstring."""
        return " ".join((inspect.getdoc(self.orders) or "").partition("\n\n")[0].split())


PROTOCOLS: dict[str, Protocol] = {}
SUPPLIED = ("depth", "random_orders", "seed", "orders", "choices")
"""The parameters of a protocol's function that aren't options."""


def protocol(**shown: Any) -> Callable[[Callable[..., Orders]], Callable[..., Orders]]:
    """Register a function as a protocol; ``shown`` are the attributes of Protocol that say how it is shown."""

    def register(orders: Callable[..., Orders]) -> Callable[..., Orders]:
        name = orders.__name__.replace("_", "-")
        if name in PROTOCOLS and PROTOCOLS[name].orders.__module__ != orders.__module__:
            raise UserError(f"there is already a protocol named {name}: rename the one in {orders.__module__}")
        made = Protocol(name, orders, **shown)
        for option in made.options:
            if option.empty in (option.default, option.annotation):
                raise UserError(f"the protocol {name} has an option {option.name}: give it a type and a default")
        PROTOCOLS[name] = made
        return orders

    return register


def find(name: str) -> Protocol:
    """The protocol of that name, or at an import path such as ``my_module.backwards``; raises UserError if it isn't."""
    module, _, function = name.rpartition(".")
    if module:
        try:
            importlib.import_module(module)
        except (ImportError, TypeError) as error:  # a TypeError if the name begins with a dot, as paths do
            raise UserError(f"the protocol {name} can't be imported: {error}") from error
    found = PROTOCOLS.get(function.replace("_", "-"))
    if not found or (module and found.orders.__module__ != module):
        advice = f"decorate it with {__name__}.protocol" if module else f"choose from {', '.join(PROTOCOLS)}"
        raise UserError(f"there is no protocol named {name}: {advice}")
    return found


def trials(
    protocols: Sequence[str],
    own: Order | int,
    random_orders: int = 10,
    seed: int = 0,
    orders: Sequence[Order] = (),
    choices: Sequence[Order] = (),
    **options: Any,
) -> list[Trial]:
    """Everything that ``protocols`` (names or import paths) ask to be scored.

    ``own`` is the model's base order, or the depth of a model that runs its layers in sequence. Each protocol gets what
    it asks for of the rest, see Protocol. Raises UserError if there is no such protocol or the model can't do it.
    """
    own = named.sequential(own) if isinstance(own, int) else own
    found = []
    for wanted in [find(name) for name in protocols]:
        depth = 1 + max(own.layers, default=-1) if wanted.names_layers else len(own)
        given = dict(zip(SUPPLIED, (depth, random_orders, seed, orders, choices)), **options)
        parameters = inspect.signature(wanted.orders).parameters
        for order, variant in wanted.orders(**{name: given[name] for name in parameters if name in given}):
            if isinstance(order, Order) and not wanted.names_layers:
                order = order.over(own)
            elif callable(order) and not wanted.names_layers:
                order = partial(_sample_over, order, own)
            found.append(Trial(wanted.name, order, variant))
    if not found:
        raise UserError(f"there is nothing to score: {', '.join(protocols)} asks for no order")
    return found


def _sample_over(sample: SampleOrder, base_order: Order, rng: random.Random) -> Order:
    return sample(rng).over(base_order)


@protocol(figure=None)
def sequential(depth: int) -> Orders:
    """The original order."""
    yield named.sequential(depth), {}


@protocol(figure="overview")
def arbitrary(depth: int, random_orders: int, seed: int) -> Orders:
    """Random permutations: a new one for every batch, as in the paper, and some that each run on all images."""
    yield None, {"reading": "per batch"}
    for number in range(random_orders):
        yield named.permutation(depth, seeded(seed, "arbitrary", number)), {"reading": "fixed"}


@protocol(columns="layers kept", figure="overview")
def pruned(depth: int, random_orders: int, seed: int, keep: tuple[int, ...] = ()) -> Orders:
    """Some layers left out, by each strategy, the others in original and in random sequence.

    Random layers in random sequence are also drawn anew for every batch, as in figure 1c of arXiv 2407.04513.

    Args:
        keep: numbers of layers to keep (default: quarters of the depth)
    """
    for kept in keep or sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)}):
        for strategy, sequence in itertools.product(("first", "even", "random"), ("original", "random")):
            variant = {"kept": kept, "strategy": strategy, "sequence": sequence}
            for number in range(1 if strategy != "random" and sequence == "original" else random_orders):
                rng = seeded(seed, "pruned", kept, strategy, sequence, number)
                if strategy == "random":
                    order = named.random_subset(kept, depth, rng)
                else:
                    order = (named.first if strategy == "first" else named.evenly_spaced)(kept, depth)
                yield order if sequence == "original" else order.shuffled(rng), variant
        yield partial(_shuffled_subset, kept, depth), {"kept": kept, "strategy": "random", "sequence": "per batch"}


def _shuffled_subset(kept: int, depth: int, rng: random.Random) -> Order:
    return named.random_subset(kept, depth, rng).shuffled(rng)


@protocol()
def failing(depth: int, random_orders: int, seed: int, dead: tuple[int, ...] = (20, 30, 50)) -> Orders:
    """Each layer dead with a probability, as if it were a node that fails, and the others in a random sequence.

    Args:
        dead: the probabilities in percent
    """
    for percent in dead:
        if not 0 <= percent < 100:
            raise UserError(f"a layer is dead with a probability from 0 to below 100%, not {percent}%")
        for number in range(random_orders):
            rng = seeded(seed, "failing", percent, number)
            alive = Order(layer for layer in range(depth) if rng.random() * 100 >= percent)
            yield alive.shuffled(rng), {"dead": f"{percent}%"}


@protocol(columns="layers kept", figure="scatter")
def landscape(depth: int) -> Orders:
    """Every choice of layers, in original sequence: 4,095 orders for 12 layers."""
    if depth > 16:
        raise UserError(f"the landscape of {depth} layers has {2**depth - 1:,} orders: it is for models of up to 16")
    for kept in range(1, depth + 1):
        for layers in itertools.combinations(range(depth), kept):
            yield Order(layers), {"kept": kept}


@protocol(names_layers=True)
def given(depth: int, orders: Sequence[Order]) -> Orders:
    """The orders that the user gives."""
    if not orders:
        raise UserError("the protocol given scores orders of your own: name them after --orders")
    for order in orders:
        yield order, {"order": str(order)}


@protocol(columns="layers affected")
def painters(
    depth: int, random_orders: int, seed: int, ends: tuple[int, ...] = (), loops: tuple[int, ...] = (3,)
) -> Orders:
    """The middle layers skipped, repeated, reversed, shuffled, in parallel and looped (arXiv 2407.09298).

    Args:
        ends: the first N + 1 and the last N layers stay in place (default: every N there is)
        loops: how often looped-parallel runs its step
    """
    for n in ends or range(max(1, depth // 2)):
        affected = len(named.middle(n, depth))
        for strategy in ("skip", "middle-repeat", "reverse", "parallel"):
            yield named.NAMED[strategy](n, depth), {"affected": affected, "strategy": strategy}
        for times in loops:
            order = named.looped_parallel(n, times, depth)
            yield order, {"affected": affected, "strategy": f"looped-parallel {times}x"}
        for number in range(random_orders):
            order = named.random_middle(n, depth, seeded(seed, "painters", n, number))
            yield order, {"affected": affected, "strategy": "random"}


@protocol(columns="left out", picture="layers", label="layer left out", xlabel="layer")
def ablations(depth: int) -> Orders:
    """Each layer left out by itself (arXiv 2406.19384)."""
    for layer in range(depth):
        yield named.ablate(layer, depth), {"layer": layer}


@protocol(columns="swapped with next", picture="layers", label="layer exchanged with the next", xlabel="layer")
def swaps(depth: int) -> Orders:
    """Each layer exchanged with the next (arXiv 2406.19384)."""
    for layer in range(depth - 1):
        yield named.swap(layer, layer + 1, depth), {"layer": layer}


@protocol(figure="matrix", label="two layers exchanged", xlabel="layer")
def swap_matrix(depth: int) -> Orders:
    """Every two layers exchanged, and the original order for comparison."""
    for one, other in itertools.combinations_with_replacement(range(depth), 2):
        yield named.swap(one, other, depth), {"one": one, "other": other}


@protocol(figure="lines", xlabel="k attention sublayers first, k feed-forward sublayers last", names_layers=True)
def sublayers(depth: int, random_orders: int, seed: int) -> Orders:
    """Attention and feed-forward halves: sandwich orders of every k, and random permutations (arXiv 1911.03864)."""
    for k in range(depth + 1):
        yield named.sandwich(k, depth), {"strategy": "sandwich", "k": k}
    for number in range(random_orders):
        yield named.sublayers(depth).shuffled(seeded(seed, "sublayers", number)), {"strategy": "random"}


@protocol(figure="choices", names_layers=True)
def instancewise(depth: int, choices: Sequence[Order]) -> Orders:
    """Each image in the order it chooses, in the best of them, and all in each of them (IOT, arXiv 2103.03457)."""
    if not choices:
        raise UserError("this model's images choose no orders: instancewise is for models trained with model.choices")
    yield "chosen", {"order": "chosen"}
    yield "oracle", {"order": "oracle"}
    for number, order in enumerate(choices, 1):
        yield order, {"order": f"{number} of {len(choices)}"}


@protocol()
def recorded(depth: int, random_orders: int, seed: int, log: str = "") -> Orders:
    """Orders that a cluster or a simulation ran, as often as it ran them: a new one for every batch, and fixed ones.

    Args:
        log: the event log of layershuffle serve or layershuffle simulate
    """
    if not log:
        raise UserError("recorded orders are read from a log: name that of layershuffle serve or simulate after --log")
    yield partial(event_log.sample, log), {"reading": "per batch"}
    for number in range(random_orders):
        order = event_log.sample(log, seeded(seed, "recorded", number)).check(depth)
        yield order, {"reading": "fixed", "missed": depth - len(order.layers)}
