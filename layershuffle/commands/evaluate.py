"""Scores one model under many orders."""

import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from typing import Any, get_args, get_origin

import layershuffle
from layershuffle.commands.parser import Parser, asks_for_help
from layershuffle.commands.study_options import check_names, parse_study, study_parser
from layershuffle.errors import UserError
from layershuffle.options import add_options
from layershuffle.orders.protocols import PROTOCOLS, Option, find

SHARED = ("depths", "recorded_orders")
"""The options of protocols that ``layershuffle.options`` defines."""


def evaluate_command(args: list[str] | None = None) -> "layershuffle.Results":
    """Evaluate as ``args`` say, by default those of the process; prints a table, saves the results and a plot."""
    args = sys.argv[1:] if args is None else args
    check_names(args)
    command = parse_study(evaluate_parser(args), args, "evaluation")
    config = command.config
    # --order 3 1 2 is three orders of one layer each, which nobody means.
    for order in config.order or []:
        if order.strip().isdecimal():
            raise UserError(
                f"--order {order} has one layer: quote the layers of an order, as in '3 1 2', write '({order})' if one "
                "is meant, and --random_orders for a number of random orders"
            )
    # An option of a protocol has the same name on the command line and as an argument of ``layershuffle.evaluate``.
    options = {}
    for protocol in PROTOCOLS.values():
        for option in protocol.options:
            options[option.name] = config[option.name]
    results = layershuffle.evaluate(
        command.model,
        command.data,
        split=config.split,
        protocols=config.protocols,
        orders=config.order or [],
        random_orders=config.random_orders,
        classifier=config.classifier,
        neighbours=config.neighbours,
        **options,
        **command.options,
    )
    command.leave(results)
    return results


def evaluate_parser(args: Sequence[str]) -> Parser:
    """The parser, with the options of all protocols, also of those that ``args`` name by their import path."""
    parser = study_parser("evaluate", "Score a model in sequential, arbitrary, pruned and other orders.")
    parser.add_argument(
        "--protocols",
        nargs="+",
        help=f"Families of orders, from {', '.join(PROTOCOLS)}, or the import path of one of your own such as "
        "my_module.backwards (default: sequential arbitrary pruned; with orders of your own: sequential given).",
    )
    add_options(parser, "order", "classifier", "neighbours", random_orders=10)
    _import_protocols(args)
    for protocol in PROTOCOLS.values():
        for option in protocol.options:
            try:
                _add_option(parser, protocol.name, option)
            except ArgumentError as error:
                raise UserError(f"the protocol {protocol.name} can't have an option of that name: {error}") from error
    # Lightning takes seconds to import.
    logger: Any = str
    if not asks_for_help(args):
        from lightning.pytorch.loggers import Logger

        logger = Logger
    parser.add_argument("--logger", type=logger | None, help="Where to send tables and the plot, such as WandbLogger.")
    return parser


def _import_protocols(args: Sequence[str]) -> None:
    """Import the user's own protocols that ``args`` name, so that their options are known."""
    # The full parser can't be made yet: which options it has depends on the answer.
    early = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--protocols", nargs="*", default=[])
    known, _ = early.parse_known_args(args)
    # Finding a protocol by its import path imports its module, which registers it.
    for name in known.protocols:
        if "." in name:
            find(name)


def _add_option(parser: Parser, protocol: str, option: Option) -> None:
    """Add the option of a protocol: the shared one of that name, if there is one, or one of its own."""
    if option.name in SHARED:
        add_options(parser, option.name)
        return
    # Options with several values are given as several words.
    is_sequence = get_origin(option.type) in (tuple, list)
    value_type = get_args(option.type)[0] if is_sequence else option.type
    default = option.default
    if is_sequence:
        default = list(default) or None
    parser.add_argument(
        f"--{option.name}",
        type=value_type,
        nargs="+" if is_sequence else None,
        default=default,
        metavar="N" if value_type is int else None,
        help=f"Option of the protocol {protocol}. {option.help}",
    )
