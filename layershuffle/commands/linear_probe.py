"""Trains a linear classifier on the features of a frozen model."""

import layershuffle
from layershuffle.commands.study_options import parse_study, study_parser
from layershuffle.options import add_options


def linear_probe_command(args: list[str] | None = None) -> "layershuffle.Results":
    """Probe as ``args`` say, by default those of the process; prints the accuracies and saves the results."""
    parser = study_parser(
        "linear-probe",
        "Train a linear classifier on the features of a frozen model, which are computed once, and score it on the "
        "test images. A vote of the nearest training images is the yardstick. With --folder, the model with the linear "
        "classifier is exported there: every command takes it, so that it can be evaluated in any order.",
    )
    add_options(parser, "folder")
    command = parse_study(parser, args, "linear_probe", needs_classifier=False)

    from layershuffle.api.linear_probe import fit_linear_probe, write_linear_probe
    from layershuffle.checkpoints.export import check_new

    folder = command.config.folder
    if folder:
        check_new(folder)
    probed = fit_linear_probe(command.model, command.data, split=command.config.split, **command.options)
    # The results come first: if the disk has no room for the model, they are what is left.
    command.leave(probed.results)
    if folder:
        write_linear_probe(probed.model, folder)
        print(f"model: {folder}")
    return probed.results
