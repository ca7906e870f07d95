"""Trains a model from configs and options."""

import logging
import shlex
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import layershuffle
from layershuffle.command_lines import words_before_options
from layershuffle.commands.parser import Parser, asks_for_help, short_help, word_after_help
from layershuffle.commands.terminal import wrapped_on_terminal
from layershuffle.config_files import find
from layershuffle.options import OPTIONS

if TYPE_CHECKING:  # It takes seconds to import.
    from layershuffle.api.train import TrainingStopped

logger = logging.getLogger(__name__)


DESCRIPTION = (
    "Fine-tune a model. CONFIG is a name that `layershuffle list` shows, or a file; later ones win, and so do options."
)

SHARED = ("seed", "resume", "accelerator", "precision")
"""Those of the options used most that other commands have too."""

COMMON = {
    "config": "A file with some of these options, such as a data config.",
    "print_config": "Print the options of the run, and exit.",
    **{name: OPTIONS[name].help for name in SHARED},
    "ckpt_path": "Checkpoint of the same model to continue from.",
    "save_every_n_steps": "Also write last.ckpt within an epoch, each time after this number of steps.",
    "checkpoint.monitor": "Metric that selects the best checkpoint (default: val/loss).",
    "checkpoint.save_weights_only": "Leave out of checkpoints what only continuing needs.",
    "trainer.max_epochs": "Epochs to train (default: 20).",
    "trainer.max_steps": "Optimizer steps to train.",
    "trainer.devices": "Devices to use, such as 2 or auto.",
    "trainer.gradient_clip_val": "Norm that gradients are clipped to.",
    "trainer.accumulate_grad_batches": "Batches whose gradients make one optimizer step.",
    "trainer.logger": "Where to log, such as WandbLogger.",
    "trainer.callbacks": "Callbacks of Lightning, or of your own.",
    "data": "Data set, by the name of its class.",
    "model.name": "Backbone, by the name of a timm vision transformer.",
    "model.pretrained": "Weights to begin with: true for timm's, a path, mini_glyphs, or false for random ones.",
    "model.sampler": "What samples the order of each training step, such as Shuffle.",
    "model.position": "Whether layers ignore the position at which they run (none), encode it or predict it.",
    "model.optimizer": "Optimizer, by the name of its class (default: Adam as in the paper).",
    "model.schedule.shape": "Course of the learning rate: constant, linear or cosine.",
    "model.schedule.warmup_steps": "Steps over which the learning rate first rises; below 1, their share of all steps.",
    "model.objective": "Loss: Classification, InstanceWise, Distillation or a class of your own.",
    "model.budget": "What max_epochs and max_steps limit: steps, or layer_executions.",
    "model.compile": "Compile the layers.",
    "model.timm_args": "Further arguments of timm.create_model, such as img_size.",
}
"""The options used most, and what each is for. They stand here because Lightning, which has some, takes seconds."""


class TrainParser(Parser):
    """The parser of ``layershuffle train``, which has hundreds of options."""

    common = COMMON

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # jsonargparse makes parsers of this class for parts of the options, with a description of their own.
        kwargs.setdefault("description", DESCRIPTION)
        super().__init__(*args, **kwargs)


def train_command(args: list[str] | None = None) -> "layershuffle.TrainedRun":
    """Fine-tune as ``args`` say, by default those of the process; prints where the checkpoints are."""
    args = sys.argv[1:] if args is None else args
    if asks_for_help(args) and not word_after_help(args):
        print(short_help("layershuffle train", DESCRIPTION, COMMON), end="")
        sys.exit(0)

    # A name that is mistyped is known before Lightning, which takes seconds, is imported.
    for config in words_before_options(args):
        find(config)
    # An experiment imports this module, and needn't wait for Lightning.
    from layershuffle.api.compose import compose
    from layershuffle.api.train import TrainingStopped, fit

    run = compose(args, TrainParser)
    try:
        trained = fit(run)
    except TrainingStopped as stop:
        exit_as(stop)

    logger.info("cost: %s", trained.compute)
    for name, path in (("best", trained.best), ("last", trained.last)):
        if path:
            print(f"{name} checkpoint: {path}")
    # A training without validation has no best checkpoint.
    to_evaluate = trained.best or trained.last
    if to_evaluate:
        logger.info("evaluate it with: layershuffle evaluate %s", shlex.quote(str(to_evaluate)))
    return trained


def exit_as(stop: "TrainingStopped") -> NoReturn:
    """Exit as a training that a signal has stopped, which has saved a checkpoint."""
    if stop.message:
        print(wrapped_on_terminal(stop.message), file=sys.stderr)
    # The exit code tells schedulers to start it again.
    sys.exit(stop.exit_code)
