"""Scores one model under many orders."""

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger

from layershuffle.commands.parser import Parser
from layershuffle.commands.studying import StudyCommand, study_parser
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.named import parse_order
from layershuffle.orders.protocols import PROTOCOLS, Settings, trials
from layershuffle.results.record import Results


def parser() -> Parser:
    """The options; everything that isn't given comes from the checkpoint."""
    parser = study_parser("layershuffle evaluate", "Score a model in sequential, arbitrary, pruned and other orders.")
    parser.add_argument(
        "--protocols",
        nargs="+",
        default=None,
        help=f"families of orders, from {', '.join(PROTOCOLS)} (default: sequential arbitrary pruned; with orders of "
        "your own: sequential given)",
    )
    parser.add_argument(
        "--orders",
        nargs="+",
        default=["10"],
        metavar="N | ORDER",
        help="how many orders to draw where they are random, or orders of your own such as '3 1 2' or 'sandwich(3)' "
        "(quoted; an order of one layer as '(3)')",
    )
    parser.add_argument(
        "--keep", nargs="+", type=int, default=None, help="numbers of layers to keep (default: quarters of the depth)"
    )
    parser.add_argument(
        "--ends",
        nargs="+",
        type=int,
        default=None,
        metavar="N",
        help="painters: the first N + 1 and the last N layers stay in place (default: every N there is)",
    )
    parser.add_argument(
        "--loops", nargs="+", type=int, default=[3], help="painters: how often looped-parallel runs its step"
    )
    parser.add_argument(
        "--logger", type=Logger | None, default=None, help="WandbLogger sends tables and the plot to W&B"
    )
    return parser


def evaluate_command(args: list[str] | None = None) -> Results:
    """Evaluate as ``args`` say, by default those of the process; prints a table, saves the results and a plot."""
    command = StudyCommand(parser(), args, shared=True)
    config, study, model = command.config, command.study, command.study.model
    settings, protocols = _settings(config, model)
    scores = study.score(trials(protocols, model.order, settings))
    used = {"protocols": protocols, "draws": settings.draws, "keep": config.keep}
    results = study.results(scores, used | {"ends": config.ends, "loops": config.loops})
    if study.fabric.is_global_zero:
        command.report(results)
    return results


def _settings(config: Namespace, model: OrderedViT) -> tuple[Settings, list[str]]:
    counts = [text for text in config.orders if text.strip().isdecimal()]
    orders = tuple(parse_order(text, model.order) for text in config.orders if text not in counts)
    if len(counts) > 1 or any(int(text) < 1 for text in counts) or any(len(order) == 0 for order in orders):
        raise UserError("--orders takes one number from 1 up, orders in quotes such as '3 1 2', or both")
    if twice := [order for order in orders if orders.count(order) > 1]:
        raise UserError(f"--orders names '{twice[0]}' more than once")
    settings = Settings(
        draws=int(counts[0]) if counts else 10,
        keep=tuple(dict.fromkeys(config.keep or ())),
        ends=tuple(dict.fromkeys(config.ends or ())),
        loops=tuple(dict.fromkeys(config.loops)),
        orders=orders,
        choices=model.choice.orders if model.choice else (),
        seed=config.seed,
    )
    protocols = config.protocols or (["sequential"] if orders else ["sequential", "arbitrary", "pruned"])
    return settings, list(dict.fromkeys(protocols + (["given"] if orders else [])))
