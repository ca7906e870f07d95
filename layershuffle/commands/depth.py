"""Accuracy and time against the number of layers run, the same for all images or each image's own."""

import logging

import layershuffle
from layershuffle.commands.study_options import parse_study, study_parser
from layershuffle.options import add_options

logger = logging.getLogger(__name__)


def depth_command(args: list[str] | None = None) -> "layershuffle.Results":
    """Measure as ``args`` say, by default those of the process; saves the curve and its picture."""
    parser = study_parser(
        "depth",
        "Measure accuracy and time per image by the number of layers that run: the first, evenly spaced and random "
        "ones, and as many of the first as each image needs (early exit).",
    )
    add_options(parser, "repeats", "classifier", "neighbours", random_orders=10)
    command = parse_study(parser, args, "depth")
    config = command.config
    results = layershuffle.depth(
        command.model,
        command.data,
        split=config.split,
        random_orders=config.random_orders,
        repeats=config.repeats,
        classifier=config.classifier,
        neighbours=config.neighbours,
        **command.options,
    )
    command.leave(results)
    logger.info("choose a threshold for early exit on other images than those whose accuracy you report (--split val)")
    return results
