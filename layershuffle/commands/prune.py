"""Finds which layers of a model to keep, and in which order, by validation images."""

from jsonargparse.typing import NonNegativeInt, PositiveInt

import layershuffle
from layershuffle.commands.export import print_exported
from layershuffle.commands.parser import Parser
from layershuffle.commands.study_options import parse_study, study_parser
from layershuffle.commands.train import exit_as
from layershuffle.errors import UserError
from layershuffle.options import add_options
from layershuffle.plurals import counted


def _parser() -> Parser:
    parser = study_parser(
        "prune",
        "Find the layers to keep, and their order, by the loss on one part of the validation images, and score them on "
        "the other part. Test images are never used.",
        split="val",
    )
    parser.add_argument("--keep", type=PositiveInt | None, help="How many layers to keep.")
    parser.add_argument(
        "--milliseconds", type=float | None, help="Keep as many layers as run in this time per image, measured here."
    )
    parser.add_argument(
        "--steps",
        type=int | None,
        help="In how many steps the layers may run at most, several side by side; they are grouped by the loss, too.",
    )
    parser.add_argument(
        "--beam", type=PositiveInt, default=8, help="How many choices of layers to pursue if there are too many to try."
    )
    add_options(parser, "rounds", "fraction", repeats=5)
    parser.add_argument(
        "--timings",
        type=bool,
        default=True,
        help="Measure how long each number of layers takes, which may take minutes.",
    )
    parser.add_argument("--export", type=str | None, help="Folder to export the pruned model to, a new one.")
    parser.add_argument(
        "--refine", type=NonNegativeInt, default=0, help="For how many epochs to train the exported model further."
    )
    return parser


def prune_command(args: list[str] | None = None) -> "layershuffle.PrunedModel":
    """Prune as ``args`` say, by default those of the process; prints and saves what was found and how it does."""
    command = parse_study(_parser(), args, "prune")
    config = command.config
    # What can't be exported or refined should be known before the search, which may take hours.
    if config.refine and not config.export:
        raise UserError("--refine trains the exported model: name a new folder for it with --export")
    if config.refine and config.steps:
        raise UserError("layers that are merged can't be refined: leave out --refine, or --steps")
    if config.export:
        # Here and not above, because it imports torch and Lightning, for which --help needn't wait.
        from layershuffle.api.prune import check_export

        check_export(command.model, config.export, is_refined=config.refine > 0)

    pruned = layershuffle.prune(
        command.model,
        command.data,
        split=config.split,
        keep=config.keep,
        milliseconds=config.milliseconds,
        steps=config.steps,
        beam=config.beam,
        rounds=config.rounds,
        fraction=config.fraction,
        timings=config.timings,
        repeats=config.repeats,
        **command.options,
    )
    command.leave(pruned.results)

    if config.timings:
        runs = f"{counted(config.repeats, 'run')} of a batch of {pruned.results.evaluation.batch_size}"
        print(
            f"ms / image: the shortest of {runs}; all numbers of layers take turns, and none counts as slower than a "
            "larger one"
        )
    tried = "all choices of layers" if pruned.tried_all else f"a beam search of width {config.beam}"
    print(f"chosen: {pruned.order} (by {tried}, then exchanges, on {counted(pruned.images, 'validation image')})")
    if config.export:
        _export(pruned, config.export, config.refine, config.accelerator)
    else:
        print(f'export it with: layershuffle export {config.checkpoint} FOLDER --order "{pruned.order}"')
    return pruned


def _export(pruned: "layershuffle.PrunedModel", folder: str, epochs: int, accelerator: str) -> None:
    """Export the pruned model, and train it for this number of epochs, or print how."""
    print_exported(pruned.export(folder))
    # These import Lightning, for which --help needn't wait.
    if epochs:
        from layershuffle.api.train import TrainingStopped

        try:
            best = layershuffle.refine(folder, epochs=epochs, accelerator=accelerator).best
        except TrainingStopped as stop:
            exit_as(stop)
        print(f"refined: {best}; export it with: layershuffle export {best} FOLDER")
    elif pruned.is_refinable:
        from layershuffle.api.prune import refine_options

        options = " ".join(refine_options(folder, epochs=1, accelerator=accelerator))
        print(f"refine it with: layershuffle train {options}")
