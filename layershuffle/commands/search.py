"""Finds an order on one part of the validation images and scores it on the other."""

from typing import get_args

import layershuffle
from layershuffle.choices import Strategy
from layershuffle.commands.study_options import parse_study, study_parser
from layershuffle.options import add_options


def search_command(args: list[str] | None = None) -> "layershuffle.Results":
    """Search as ``args`` say, by default those of the process; prints and saves what was found and how it does."""
    parser = study_parser(
        "search", "Find an order on one part of the validation images and score it on the other.", split="val"
    )
    parser.add_argument(
        "--strategy",
        choices=get_args(Strategy),
        default="greedy",
        help="How to search: append the best next layer, exchange two layers while that helps, or rank the layers by "
        "their spectra.",
    )
    parser.add_argument("--start", type=str | None, help="Order that climb begins with (default: the model's own).")
    add_options(parser, "rounds", "fraction")
    command = parse_study(parser, args, "search")
    config = command.config
    results = layershuffle.search(
        command.model,
        command.data,
        split=config.split,
        strategy=config.strategy,
        start=config.start,
        rounds=config.rounds,
        fraction=config.fraction,
        **command.options,
    )
    command.leave(results)
    for score in results.of("search"):
        print(f"{score.variant['strategy']}: {score.order}")
    return results
