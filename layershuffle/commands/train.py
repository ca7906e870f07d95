"""Trains a model from configs and options."""

import logging
import shlex
import sys

import layershuffle
from layershuffle.commands.parser import Parser

logger = logging.getLogger(__name__)


class TrainParser(Parser):
    """The parser of ``layershuffle train``, which has hundreds of options."""

    common = (
        "config",
        "print_config",
        "seed",
        "resume",
        "ckpt_path",
        "save_every_n_steps",
        "checkpoint.monitor",
        "checkpoint.save_weights_only",
        "accelerator",
        "precision",
        "trainer.max_epochs",
        "trainer.max_steps",
        "trainer.devices",
        "trainer.gradient_clip_val",
        "trainer.accumulate_grad_batches",
        "trainer.logger",
        "trainer.callbacks",
        "data",
        "model.name",
        "model.pretrained",
        "model.sampler",
        "model.position",
        "model.optimizer",
        "model.schedule.shape",
        "model.schedule.warmup_steps",
        "model.objective",
        "model.budget",
        "model.compile",
        "model.timm_args",
    )


def train_command(args: list[str] | None = None) -> "layershuffle.TrainedRun":
    """Fine-tune as ``args`` say, by default those of the process; prints where the checkpoints are."""
    # An experiment imports this module, and needn't wait for Lightning.
    from layershuffle.api.compose import compose
    from layershuffle.api.train import TrainingStopped, fit

    run = compose(args, TrainParser)
    try:
        trained = fit(run)
    # A training that a signal has stopped has saved a checkpoint. The exit code tells schedulers to start it again.
    except TrainingStopped as stop:
        if stop.message:
            print(stop.message, file=sys.stderr)
        sys.exit(stop.exit_code)

    logger.info("cost: %s", trained.compute)
    checkpoints = {"best": trained.best, "last": trained.last}
    paths = {name: path for name, path in checkpoints.items() if path}
    for name, path in paths.items():
        print(f"{name} checkpoint: {path}")
    if paths:
        # The best checkpoint, or the last one of a training without validation.
        best = next(iter(paths.values()))
        logger.info("evaluate it with: layershuffle evaluate %s", shlex.quote(str(best)))
    return trained
