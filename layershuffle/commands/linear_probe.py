"""Trains a linear classifier on the features of a frozen model."""

import layershuffle
from layershuffle.commands.study_options import parse_study, study_parser


def linear_probe_command(args: list[str] | None = None) -> "layershuffle.Results":
    """Probe as ``args`` say, by default those of the process; prints the accuracies and saves the results."""
    parser = study_parser(
        "linear-probe",
        "Train a linear classifier on the features of a frozen model, which are computed once, and score it on the "
        "test images. A vote of the nearest training images is the yardstick.",
    )
    command = parse_study(parser, args, "linear_probe", needs_classifier=False)
    results = layershuffle.linear_probe(command.model, command.data, split=command.config.split, **command.options)
    command.leave(results)
    return results
