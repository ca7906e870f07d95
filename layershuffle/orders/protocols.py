"""Protocols: named families of orders to evaluate, each with its options, its table and its picture.

This file says what a protocol is and turns protocols into orders to score. The protocols themselves are in
``layershuffle.orders.families``.
"""

import importlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from layershuffle.errors import UserError
from layershuffle.orders.order import Order, sequential

Pick = Literal["chosen", "oracle"]
"""One of the model's choices for each image: "chosen" is the one that the model takes, "oracle" is the best one.

The best has the lowest loss among the orders in which the image is classified rightly, or among all if there are none.
"""

SampleOrder = Callable[[random.Random], Order]
"""Samples an order for each batch. Only its argument may be a source of randomness."""

Scorable = Order | Pick | SampleOrder | None
"""What can be scored. None stands for a new random permutation in every batch."""

Orders = Iterator[tuple[Scorable, dict[str, Any]]]
"""Orders to score, each with its variant, such as {"kept": 6, "strategy": "first"}.

Orders of the same variant are samples of the same thing: tables and pictures show their mean and spread.
"""

SUPPLIED = ("depth", "random_orders", "seed", "orders", "choices")
"""The parameters of a protocol's function that aren't options."""


@dataclass(frozen=True)
class Trial:
    """One thing to score.

    Attributes:
        protocol: the name of the protocol.
        order: the order, or what stands for orders.
        variant: what tells this order from the others of the protocol.
    """

    protocol: str
    order: Scorable
    variant: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """What a user can set of a protocol.

    Attributes:
        name: the name of the parameter of the protocol's function.
        type: its type, such as ``str`` or ``tuple[int, ...]``.
        default: the value that it has if the user doesn't set it.
        help: the help text, a whole phrase.
    """

    name: str
    type: Any
    default: Any
    help: str


@dataclass(frozen=True)
class Protocol:
    """A family of orders, and how its scores are shown.

    Attributes:
        name: its name on the command line and in results files.
        orders: the function that lists its orders, see ``protocol``.
        caption: what its orders are, in a sentence: the caption of its picture and its line in ``layershuffle list``.
        options: what a user can set.
        columns: the heading of a table with a column for each value of the variant's first entry; if empty, the table
            has a row for each variant.
        figure: the name of a drawing in ``layershuffle.results.figures.DRAWINGS``, a function of (results, title) that
            returns a matplotlib figure, or None for no picture. If empty, "lines" for tables with columns, else "bars".
        picture: the name of the picture's file. Protocols with the same one are drawn into the same picture.
        label: what the picture calls the protocol.
        xlabel: what the picture calls the number in the variant, or what stands beside bars in place of a number.
        section: the title of the report's section that shows the scores of all models together; if empty, the report
            shows the picture of each model.
        by_class: whether results count by class how the images were classified in its fixed orders, and say how far
            these disagree. For a protocol of thousands of orders that would take too much time and memory.
        names_layers: whether the orders name layers. Otherwise they name steps of the model's base order, which matters
            for models that run their layers repeatedly or by halves.
        descending: whether the picture's numbers descend from left to right, as where fewer steps take less time.
    """

    name: str
    orders: Callable[..., Orders]
    caption: str = ""
    options: tuple[Option, ...] = ()
    columns: str = ""
    figure: str | Callable[..., Any] | None = ""
    picture: str = ""
    label: str = ""
    xlabel: str = ""
    section: str = ""
    by_class: bool = False
    names_layers: bool = False
    descending: bool = False


PROTOCOLS: dict[str, Protocol] = {}
"""The protocols that are registered, by name."""


def protocol(
    name: str,
    caption: str,
    *,
    options: Mapping[str, str] | None = None,
    columns: str = "",
    figure: str | Callable[..., Any] | None = "",
    picture: str = "",
    label: str = "",
    xlabel: str = "",
    section: str = "",
    by_class: bool = False,
    names_layers: bool = False,
    descending: bool = False,
) -> Callable[[Callable[..., Orders]], Protocol]:
    """Make a protocol of a function, and register it.

    The function can ask for the parameters in SUPPLIED: ``depth`` (the number of layers), ``random_orders`` (how many
    random orders stand for a random choice), ``seed``, ``orders`` (those that the user gave) and ``choices`` (the
    orders from which the images of an instance-wise model choose). Any other parameter is an option of the evaluate
    command: it needs a type, a default and a help text.

    Args:
        name: see ``Protocol``, like all that aren't named here.
        caption: see ``Protocol``.
        options: the help text of each option, by the name of its parameter.
        columns: see ``Protocol``.
        figure: see ``Protocol``.
        picture: see ``Protocol``.
        label: see ``Protocol``.
        xlabel: see ``Protocol``.
        section: see ``Protocol``.
        by_class: see ``Protocol``.
        names_layers: see ``Protocol``.
        descending: see ``Protocol``.

    Returns:
        A decorator that puts the protocol in the function's place. It raises UserError if another module has a protocol
        of that name, or an option lacks its type, default or help text.
    """

    def register(orders: Callable[..., Orders]) -> Protocol:
        # The same module may define it again when it is reloaded, as notebooks do.
        if name in PROTOCOLS and PROTOCOLS[name].orders.__module__ != orders.__module__:
            raise UserError(f"there is already a protocol named {name}: rename the one in {orders.__module__}")
        PROTOCOLS[name] = Protocol(
            name=name,
            orders=orders,
            caption=caption,
            options=_options(name, orders, options or {}),
            columns=columns,
            figure=figure,
            picture=picture,
            label=label,
            xlabel=xlabel,
            section=section,
            by_class=by_class,
            names_layers=names_layers,
            descending=descending,
        )
        return PROTOCOLS[name]

    return register


def _options(name: str, orders: Callable[..., Orders], helps: Mapping[str, str]) -> tuple[Option, ...]:
    """The options of a protocol: those parameters of its function that aren't supplied."""
    options = []
    # eval_str also evaluates annotations that are texts, as "from __future__ import annotations" makes them.
    for parameter in inspect.signature(orders, eval_str=True).parameters.values():
        if parameter.name in SUPPLIED:
            continue
        if parameter.empty in (parameter.default, parameter.annotation):
            raise UserError(f"the protocol {name} has an option {parameter.name}: give it a type and a default")
        if parameter.name not in helps:
            raise UserError(f"the protocol {name} has an option {parameter.name}: give it a help text")
        options.append(Option(parameter.name, parameter.annotation, parameter.default, helps[parameter.name]))

    unknown = helps.keys() - {option.name for option in options}
    if unknown:
        raise UserError(f"the protocol {name} has help texts of {', '.join(sorted(unknown))}, which are no options")
    return tuple(options)


def find(name: str) -> Protocol:
    """The protocol of that name, or at an import path such as ``my_module.backwards``.

    Raises:
        UserError: if there is none.
    """
    # Without a dot, it is a name. Users may write swap_matrix for swap-matrix.
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        registered = PROTOCOLS.get(name.replace("_", "-"))
        if registered is None:
            raise UserError(f"there is no protocol named {name}: choose from {', '.join(PROTOCOLS)}")
        return registered

    try:
        module = importlib.import_module(module_name)
    except (ImportError, TypeError) as error:  # a TypeError if the name begins with a dot, as paths do
        raise UserError(f"the protocol {name} can't be imported: {error}") from error
    imported = getattr(module, attribute, None)
    if not isinstance(imported, Protocol):
        raise UserError(f"there is no protocol named {name}: decorate it with {__name__}.protocol")
    return imported


def trials(
    protocols: Sequence[str],
    base_order: Order | int,
    random_orders: int = 10,
    seed: int = 0,
    orders: Sequence[Order] = (),
    choices: Sequence[Order] = (),
    **options: Any,
) -> list[Trial]:
    """List everything that protocols want to be scored.

    Args:
        protocols: their names or import paths.
        base_order: the model's base order, or the depth of a model that runs its layers in sequence.
        random_orders: how many random orders stand for a random choice.
        seed: the seed of random orders.
        orders: orders that the user gave.
        choices: the orders from which the images of an instance-wise model choose.
        options: options of protocols, by name. Each protocol gets those that it has.

    Raises:
        UserError: if there is no such protocol, the model can't do it, a variant that needs an entry has none, or there
            is nothing to score.
    """
    if isinstance(base_order, int):
        base_order = sequential(base_order)
    arguments = options | {
        "random_orders": random_orders,
        "seed": seed,
        "orders": orders,
        "choices": choices,
    }

    to_score = []
    for family in [find(name) for name in protocols]:
        # For most protocols, layer n means step n of the base order. A protocol that names layers is told how many
        # layers there are, which is another number where the base order repeats or splits them.
        depth = len(base_order)
        if family.names_layers:
            depth = 1 + max(base_order.layers, default=-1)
        arguments["depth"] = depth

        # A protocol's function gets only those arguments that it has parameters for.
        parameters = inspect.signature(family.orders).parameters
        needed = {name: arguments[name] for name in parameters if name in arguments}
        for listed, variant in family.orders(**needed):
            # Without an entry a score has no column. After the evaluation it would be too late to say so.
            if family.columns and not variant:
                raise UserError(f"the protocol {family.name} has columns: give each of its variants an entry")
            order = listed if family.names_layers else _over(listed, base_order)
            to_score.append(Trial(family.name, order, variant))
    if not to_score:
        raise UserError(f"there is nothing to score: {', '.join(protocols)} lists no order")
    return to_score


def _over(order: Scorable, base_order: Order) -> Scorable:
    """What is to be scored, with its orders translated into the steps of ``base_order``, see ``Order.over``."""
    if isinstance(order, Order):
        return order.over(base_order)
    if callable(order):
        return partial(_sample_over, order, base_order)
    # What is left, None and the picks, the scorer itself applies to the model's base order or choices.
    return order


def _sample_over(sample: SampleOrder, base_order: Order, rng: random.Random) -> Order:
    """Sample an order, and translate it into the steps of ``base_order``."""
    return sample(rng).over(base_order)
