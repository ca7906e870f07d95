"""Scores one model under many orders."""

import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Sequence
from typing import get_args, get_origin

from lightning.pytorch.loggers import Logger

from layershuffle.commands.parser import Parser
from layershuffle.commands.studying import Study, study_parser
from layershuffle.errors import UserError
from layershuffle.evaluation.by_class import ByClass
from layershuffle.orders.named import parse_order
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import PROTOCOLS, find, trials
from layershuffle.results import EvaluationInfo, Results


def evaluate_parser(args: Sequence[str]) -> Parser:
    """The options, also those of the protocols that ``args`` name by their import path."""
    parser = study_parser("layershuffle evaluate", "Score a model in sequential, arbitrary, pruned and other orders.")
    parser.add_argument(
        "--protocols",
        nargs="+",
        help=f"families of orders, from {', '.join(PROTOCOLS)}, or the import path of one of your own such as "
        "my_module.backwards (default: sequential arbitrary pruned; with orders of your own: sequential given)",
    )
    parser.add_argument(
        "--orders",
        nargs="+",
        default=["10"],
        metavar="N | ORDER",
        help="how many orders to draw where they are random, or orders of your own such as '3 1 2' or 'sandwich(3)' "
        "(quoted; an order of one layer as '(3)')",
    )
    # A protocol of the user's own is imported first, so that its options are known too.
    early = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--protocols", nargs="*", default=[])
    for name in early.parse_known_args(args)[0].protocols:
        if "." in name:
            find(name)
    for protocol in PROTOCOLS.values():
        for option in protocol.options:
            kind, default = option.type, option.default
            several = get_origin(kind) in (tuple, list)  # which are given as several words
            try:
                parser.add_argument(
                    f"--{option.name}",
                    type=get_args(kind)[0] if several else kind,
                    nargs="+" if several else None,
                    default=list(default) or None if several else default,
                    metavar="N" if int in (kind, *get_args(kind)) else None,
                    help=f"{protocol.name}: {option.help}",
                )
            except ArgumentError as error:
                raise UserError(f"the protocol {protocol.name} can't have an option of that name: {error}") from error
    parser.add_argument("--logger", type=Logger | None, help="WandbLogger sends tables and the plot to W&B")
    return parser


def evaluate_command(args: list[str] | None = None) -> Results:
    """Evaluate as ``args`` say, by default those of the process; prints a table, saves the results and a plot."""
    args = sys.argv[1:] if args is None else args
    study = Study(evaluate_parser(args), args, shared=True)
    config, model = study.config, study.model
    draws, orders = _draws_and_orders(config.orders, model.order)
    protocols = config.protocols or (["sequential"] if orders else ["sequential", "arbitrary", "pruned"])
    protocols = list(dict.fromkeys(protocols + (["given"] if orders else [])))
    options = {option.name: config[option.name] for protocol in PROTOCOLS.values() for option in protocol.options}
    given = {
        name: tuple(dict.fromkeys(value)) if isinstance(value, list) else value
        for name, value in options.items()
        if value is not None
    }
    choices = model.choice.orders if model.choice else ()
    to_score = trials(protocols, model.order, draws, study.config.seed, orders, choices, **given)
    by_class = ByClass(to_score, study.data.num_classes).to(study.fabric.device)
    scores = study.score(to_score, on_output=by_class.add)
    used = EvaluationInfo(protocols=protocols, random_orders=draws, options=options)
    return study.report(scores, used, [by_class.counts()] if by_class.groups else [])


def _draws_and_orders(texts: list[str], own: Order) -> tuple[int, list[Order]]:
    """What --orders asks for: how many random orders, and which orders besides."""
    counts = [text for text in texts if text.strip().isdecimal()]
    orders = [parse_order(text, own) for text in texts if text not in counts]
    if len(counts) > 1 or any(int(text) < 1 for text in counts) or any(len(order) == 0 for order in orders):
        raise UserError("--orders takes one number from 1 up, orders in quotes such as '3 1 2', or both")
    if twice := [order for order in orders if orders.count(order) > 1]:
        raise UserError(f"--orders names '{twice[0]}' more than once")
    return int(counts[0]) if counts else 10, orders
