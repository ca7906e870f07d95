"""The options that every study of a model has, and the function arguments that they become."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from layershuffle.api.study_options import StudyOptions
from layershuffle.command_lines import option_values, words_before_options
from layershuffle.commands.parser import Parser, asks_for_help
from layershuffle.config_files import find, known
from layershuffle.errors import UserError
from layershuffle.options import add_options, add_positionals

if TYPE_CHECKING:  # These take seconds to import, for which --help needn't wait.
    from lightning.pytorch.loggers import Logger

    from layershuffle.checkpoints.loaded_model import LoadedModel
    from layershuffle.data import DataConfig, ImageData
    from layershuffle.results import Results

DATA_HELP = "Data set, by the name of its class (default: the one the model was trained on)."


@dataclass(frozen=True)
class StudyCommand:
    """What the command line of a study asks for, with the model loaded and the data set made.

    Attributes:
        config: all options as they were parsed, for those that only one study has.
        model: the model to study.
        data: the data set.
        options: how the study computes, as the functions in ``layershuffle.api`` take it.
        output: the results file; it is known that it can be written.
        logger: where else to send results, if anywhere.
    """

    config: Namespace
    model: LoadedModel
    data: ImageData
    options: StudyOptions
    output: Path
    logger: Logger | None

    def leave(self, results: Results) -> None:
        """Save what the study has found, print it, draw it, and send it to the logger."""
        from layershuffle.commands.results_files import leave

        leave(results, self.output, self.logger)


def study_parser(name: str, description: str, split: str = "test") -> Parser:
    """The parser of ``layershuffle NAME``, with the options of every study, to which the study adds those of its own.

    ``parse_study`` adds ``--data``.

    Args:
        name: the command.
        description: what its help says first.
        split: the default of ``--split``: a study that chooses something by the images takes "val".
    """
    parser = Parser(
        prog=f"layershuffle {name}",
        description=description,
        usage="%(prog)s CHECKPOINT [CONFIG ...] [options]",
    )
    add_positionals(parser, "checkpoint")
    parser.add_argument("--config", action="config", help="A file with some of these options, such as a data config.")
    add_options(parser, *StudyOptions.__annotations__, "pretrained", "img_size", "output", split=split)
    return parser


def parse_study(parser: Parser, args: list[str] | None, kind: str, needs_classifier: bool = True) -> StudyCommand:
    """Parse the command line of a study, load its model, and make its data set.

    All that can be wrong is found here, before the study begins, which may take hours.

    Args:
        parser: what ``study_parser`` returned, perhaps with more options.
        args: the command line, by default that of the process.
        kind: what the results file is named after if the command line doesn't name it, such as "evaluation".
        needs_classifier: whether weights without a classifier are refused, unless ``--classifier`` names another one.

    Raises:
        UserError: if there is no such model, an option is wrong, or the results can't be written.
    """
    args = sys.argv[1:] if args is None else args
    check_names(args)
    config = parse_with_data(parser, args)
    # These take seconds to import, for which --help needn't wait.
    import torch

    from layershuffle.checkpoints.loading import load
    from layershuffle.commands.results_files import choose_file
    from layershuffle.training import run_loggers
    from layershuffle.training.resume import place

    # A model with random weights gets them from the seed, and has as many classes as the data set.
    torch.manual_seed(config.seed)
    classes = None
    # Where the nearest training images classify, the model needs no classifier.
    if config.get("classifier", "own") != "own":
        needs_classifier = False
    if config.pretrained == "random":
        classes = parser.instantiate_classes(config).data.model_classes
    elif not needs_classifier:
        classes = 0
    loaded = load(config.checkpoint, config.pretrained, classes, config.img_size)
    output = choose_file(config.output, config.checkpoint, kind)

    # The logger continues the W&B run that trained the model. Which one that is, the checkpoint knows, so the parsed
    # options are completed before the logger is made of them.
    run_loggers.continue_wandb(config.get("logger"), loaded.wandb)
    place(config.get("logger"))
    objects = parser.instantiate_classes(config)
    options = StudyOptions(
        seed=config.seed,
        accelerator=config.accelerator,
        precision=config.precision,
        compile=config.compile,
        batch_size=config.batch_size,
    )
    return StudyCommand(config, loaded, objects.data, options, output, objects.get("logger"))


def check_names(args: Sequence[str], positionals: int = 1) -> None:
    """Raise a UserError if the checkpoint or a config isn't there, before anything that takes seconds is imported.

    Args:
        args: the command line, which begins with the checkpoint.
        positionals: how many words come before the configs.
    """
    words = words_before_options(args)
    for config in words[positionals:]:
        find(config)
    # Which names of models there are, only timm knows. What looks like a path is none of them: timm's own names with a
    # slash have a colon, as in hf-hub:user/name.
    name = words[0] if words else ""
    has_ending = name.endswith((".ckpt", ".pth", ".safetensors"))
    is_path = has_ending or (os.sep in name and ":" not in name)
    # A link that leads nowhere is there: its own error is a better one.
    if is_path and not os.path.lexists(name) and name not in known():
        raise UserError(f"there is no file or folder {name}: give the path of a checkpoint{_beside(Path(name))}")


def _beside(path: Path) -> str:
    """The checkpoints beside a file that isn't there. A short training may have written last.ckpt and no best.ckpt."""
    checkpoints = sorted(str(other) for other in path.parent.glob("*.ckpt"))
    if not checkpoints:
        return ""
    return f", such as {checkpoints[0]}"


def add_data(parser: Parser, args: Sequence[str], help: str = DATA_HELP) -> None:
    """Add ``--data`` to a parser that is to parse ``args``.

    Its classes take seconds to import. Where the help is asked for, the option stands there without them.
    """
    if asks_for_help(args):
        parser.add_argument("--data", help=help, metavar="CLASS")
        return
    from layershuffle.data import ImageData

    parser.add_subclass_arguments(ImageData, "data", required=False, help=help)


def parse_with_data(parser: Parser, args: Sequence[str], is_required: bool = True, help: str = DATA_HELP) -> Namespace:
    """Parse a command line, with the data set that the checkpoint records as the default of ``--data``.

    That default decides which options ``--data`` has, so it is looked up before the options are parsed. A class outside
    the package has to be named with ``--data``, and the recorded arguments are its defaults then too.

    Args:
        parser: a parser whose first positional argument is the checkpoint. It gets the option ``--data``.
        args: the command line.
        is_required: whether there must be data; otherwise ``config.data`` is None if they are not known.
        help: the help text of ``--data``.

    Raises:
        UserError: if an option is wrong, or there is no data set and there must be one.
    """
    add_data(parser, args, help)
    if asks_for_help(args):
        return parser.parse_args(args)

    from layershuffle.checkpoints.loading import load
    from layershuffle.data import from_config

    args = parser.expanded(args)
    # Of several, the last one counts, as for every option.
    data_classes = option_values(args, "--data")
    data_class = data_classes[-1] if data_classes else None

    # That the recorded data set can't be made, because a package or a folder is not here, is an error only if no other
    # one is named: a config may name one, which is known once the options are parsed.
    error_of_recorded = None
    recorded = _recorded_data(args, data_class)
    if recorded is not None:
        try:
            _set_default_data(parser, from_config(recorded, trusted=data_class))
        except UserError as error:
            may_be_in_config = bool(option_values(args, "--config"))
            if data_class or (is_required and not may_be_in_config):
                raise
            error_of_recorded = error

    config = parser.parse_args(args)
    if is_required and not config.data:
        # If there is no such model either, its error is the one to show.
        load(config.checkpoint, config.pretrained)
        raise error_of_recorded or UserError(
            f"{config.checkpoint} doesn't say which data it was trained on: name a data config, such as imagenet, "
            "after it"
        )
    return config


def _recorded_data(args: list[str], data_class: str | None) -> DataConfig | None:
    """The data set in the checkpoint's metadata, if that is to be the default of ``--data``.

    Args:
        args: the expanded command line, which begins with the checkpoint.
        data_class: what the command line says after ``--data``, if anything.
    """
    # The parser will refuse a command line without a checkpoint.
    if not args or args[0].startswith("-"):
        return None
    # Who names a class of the package means it with its usual defaults, not with those of the checkpoint.
    if data_class is not None and "." not in data_class:
        return None
    from layershuffle.checkpoints.loading import trained_on

    recorded = trained_on(args[0])
    if recorded is None or data_class is None:
        return recorded

    # The recorded arguments are those of the recorded class, and mean nothing to another one.
    if recorded.name != data_class:
        return None
    return recorded


def _set_default_data(parser: Parser, data: ImageData) -> None:
    """Make a data set the default of ``--data``."""
    path = f"{type(data).__module__}.{type(data).__qualname__}"
    parser.set_defaults({"data": {"class_path": path, "init_args": data.config().args}})
