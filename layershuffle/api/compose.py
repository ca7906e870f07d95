"""Composes a run from its options: reads configs and options, and makes the model, the data and the trainer."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from layershuffle import private_apis
from layershuffle.checkpoints.checkpoint import read_checkpoint
from layershuffle.checkpoints.metadata import CheckpointMetadata
from layershuffle.config_parser import ConfigParser
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.hardware import fastest_precision
from layershuffle.options import add_options
from layershuffle.processes import usable_cores
from layershuffle.training import callbacks, checkpointing, resume, run_loggers
from layershuffle.training.directions import check_monitors, checked_mode
from layershuffle.training.module import FineTuner
from layershuffle.training.optimizer import PAPER_ADAM
from layershuffle.training.trainer_options import make_trainer

logger = logging.getLogger(__name__)

DEFAULTS = {
    "trainer.max_epochs": 20,
    # Lightning's summary says that a step takes no operations; ``fit`` says what is trained.
    "trainer.enable_model_summary": False,
    # ImageData divides the images between the processes itself.
    "trainer.use_distributed_sampler": False,
    "trainer.logger": {"class_path": "layershuffle.training.metrics_file.MetricsFile"},
    "model.optimizer": {"class_path": "torch.optim.Adam", "init_args": PAPER_ADAM},
    "checkpoint.filename": "best",
    "checkpoint.monitor": "val/loss",
    "checkpoint.enable_version_counter": False,
}
"""The defaults of options that are not those of Lightning and torch."""

REFUSED = {
    "BackboneFinetuning": "the optimizer and its schedule are made once, for all parameters",
    "LearningRateFinder": "the learning rate is an argument of the optimizer; an experiment's grid compares several",
}
"""Lightning's callbacks that don't work here, and why."""


@dataclass(frozen=True)
class Run:
    """A training that can begin.

    Attributes:
        model: what learns.
        data: what it learns from.
        trainer: what runs it.
        config: all options of the run.
        from_step: the number of steps that an earlier run has done, which this one continues; None for a new run.
        earlier: the run that this one resumes, if any.
    """

    model: FineTuner
    data: ImageData
    trainer: pl.Trainer
    config: Namespace
    from_step: int | None
    earlier: resume.EarlierRun | None = None


def run_parser(parser_class: type[ConfigParser] = ConfigParser) -> ConfigParser:
    """The parser of all options of a run."""
    parser = parser_class(
        prog="layershuffle train",
        usage="%(prog)s [CONFIG ...] [options]",
    )
    parser.add_argument(
        "-c", "--config", action="config", help="A file with some of these options, such as a data config."
    )
    add_options(parser, "seed", "resume", accelerator=None, precision=None)
    parser.add_class_arguments(pl.Trainer, "trainer", fail_untyped=False, instantiate=False, sub_configs=True)
    parser.add_class_arguments(FineTuner, "model", fail_untyped=False, sub_configs=True)
    parser.add_subclass_arguments(
        ImageData, "data", fail_untyped=False, required=True, help="Data set, by the name of its class."
    )
    parser.add_argument("--ckpt_path", type=str | None, help="Checkpoint of the same model to continue from.")
    parser.add_argument(
        "--save_every_n_steps",
        type=PositiveInt | None,
        help="Also write last.ckpt within an epoch, each time after this number of steps.",
    )
    parser.add_class_arguments(checkpointing.BestCheckpoint, "checkpoint", fail_untyped=False, sub_configs=True)
    parser.set_defaults(DEFAULTS)
    # There is one seed for everything, and how many classes the model has is known once the data set is made.
    parser.link_arguments("seed", "model.seed")
    parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
    return parser


def compose(args: Sequence[str] | None = None, parser_class: type[ConfigParser] = ConfigParser) -> Run:
    """Make the model, the data and the trainer of a run.

    Args:
        args: configs by name, then options, as ``layershuffle train`` takes them; by default those of the process.
        parser_class: what reads them.

    Raises:
        UserError: if an option is wrong, or options contradict each other.
    """
    parser = run_parser(parser_class)
    config = parser.parse_args(args)
    # Before anything is made: weights that no file brings are random.
    pl.seed_everything(config.seed, workers=True)
    _apply_shortcuts(config)
    if not config.checkpoint.monitor:
        raise UserError("--checkpoint.monitor names the metric that selects the best checkpoint, such as val/loss")
    # The saved options tell the mode, as those of earlier versions did, so that --resume finds their runs.
    config.checkpoint.mode = checked_mode(config.checkpoint.monitor, config.checkpoint.mode, "--checkpoint.mode")
    if config.resume and config.ckpt_path:
        raise UserError("--resume finds the checkpoint to continue from by itself: leave out --ckpt_path")

    # What the run's folder keeps is the config as it was asked for, before it changes in order to continue a run.
    saved_config = _saved(parser, config)
    from_step, metadata, earlier = _prepare_to_continue(parser, config, saved_config)

    objects = _make_objects(parser, config)
    if config.precision == "auto":
        # A resumed run keeps the precision that was measured when it began.
        recorded = metadata.precision if metadata else None
        precision = recorded or _fastest_precision(objects.model, objects.data, config)
        objects.trainer.precision = config.trainer.precision = precision
        logger.info("precision: %s, measured to be the faster one", precision)

    # The callbacks that the options name, which may be none, one, or a list, and then those that every run has.
    configured = objects.trainer.callbacks or []
    if not isinstance(configured, list):
        configured = [configured]
    added: list[Callback] = [objects.checkpoint, *_callbacks(config)]
    if not config.trainer.fast_dev_run:
        added.append(SaveConfig(saved_config, config))
    objects.trainer.callbacks = [*configured, *added]
    trainer = make_trainer(vars(objects.trainer))
    _check(trainer, config)
    _write_whole_checkpoints(trainer)
    return Run(objects.model, objects.data, trainer, config, from_step, earlier)


def _saved(parser: ConfigParser, config: Namespace) -> str:
    """The options as a run's folder keeps them, as YAML; raises UserError if YAML can't express one of them."""
    try:
        return str(parser.dump(config, skip_none=False))
    except ValueError as error:
        # Some classes have objects as defaults, such as the interval of Lightning's Timer. PyYAML's message names them.
        values = re.findall(r"cannot represent an object', (.*)\)", str(error)) or ["a value"]
        raise UserError(
            f"config.yaml can't record {values[0]}, an argument of a class that the options name: give it a plain value"
        ) from error


def _make_objects(parser: ConfigParser, config: Namespace) -> Namespace:
    """The model, the data, the trainer's arguments and the best checkpoint's callback, as ``config`` describes them.

    Raises UserError if a logger can't be made.
    """
    try:
        return parser.instantiate_classes(config)
    except ValueError as error:
        refused = run_loggers.refusal(error)
        if refused:
            raise refused from error
        raise


def _apply_shortcuts(config: Namespace) -> None:
    """Pass ``--accelerator`` and ``--precision``, which all commands have, to the trainer.

    The precision "auto" stays: it is measured once the model is made.
    """
    if config.accelerator:
        config.trainer.accelerator = config.accelerator
        config.accelerator = None
    if config.precision and config.precision != "auto":
        config.trainer.precision = config.precision
        config.precision = None


def _prepare_to_continue(
    parser: ConfigParser, config: Namespace, saved_config: str
) -> tuple[int | None, CheckpointMetadata | None, resume.EarlierRun | None]:
    """Find the checkpoint to continue from, if any, and change ``config`` so that the run continues there.

    Returns the number of steps that are done, the checkpoint's metadata, and the run that is resumed, all of them None
    for a new run.
    """
    resume.place_loggers(config)
    earlier = None
    if config.resume:
        defaults = parser.dump(parser.get_defaults(), skip_none=False, skip_validation=True)
        earlier = resume.find_earlier_run(config, saved_config, defaults)
        if earlier and earlier.checkpoint:
            config.ckpt_path = str(earlier.checkpoint)
    step = 0
    metadata = None
    if config.ckpt_path:
        checkpoint = read_checkpoint(config.ckpt_path, to_continue=True)
        step = checkpoint.global_step
        metadata = checkpoint.metadata
    if earlier:
        resume.continue_run(config, earlier, step)
    if not metadata:
        return None, None, earlier

    # A run that is resumed stays in its folder. One that goes on from another run's checkpoint gets a folder of its
    # own, so that the other run keeps what it has written.
    if earlier and not config.checkpoint.dirpath:
        config.checkpoint.dirpath = str(Path(config.ckpt_path).parent)
    for configured in resume.configured_loggers(config):
        run_loggers.continue_wandb(configured, metadata.wandb)
    return step, metadata, earlier


def _callbacks(config: Namespace) -> list[Callback]:
    """The callbacks that every run has besides the best checkpoint and those of its options."""
    added: list[Callback] = [
        callbacks.DescribeData(),
        callbacks.ThroughputLogger(),
        callbacks.GradientNorm(),
        # ModelCheckpoint's own save_last writes last.ckpt only when the best checkpoint changes.
        checkpointing.LastCheckpoint(config.checkpoint.dirpath, config.save_every_n_steps),
    ]
    has_bar = config.trainer.enable_progress_bar is not False
    added.append(callbacks.ProgressBar() if has_bar else callbacks.EpochLog())
    if not has_bar or not callbacks.can_show_a_bar():
        added.append(callbacks.UpdateLog())
    # Without a logger, Lightning refuses LearningRateMonitor.
    if config.trainer.logger is not False:
        added.append(LearningRateMonitor())
    return added


def _check(trainer: pl.Trainer, config: Namespace) -> None:
    """Raise a UserError if the trainer can't work here."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        reason = REFUSED.get(type(callback).__name__)
        if reason:
            raise UserError(f"{type(callback).__name__} can't be used here: {reason}")
    check_monitors(trainer.callbacks)  # type: ignore[attr-defined]
    cores = usable_cores()
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > max(8, cores):
        raise UserError(f"--trainer.devices {trainer.num_devices} would start as many processes on {cores} CPU cores")
    if config.precision == "auto" and trainer.world_size > 1:
        raise UserError("several processes could measure different precisions: give another --precision than auto")


def _write_whole_checkpoints(trainer: pl.Trainer) -> None:
    """Let a trainer whose checkpoint is one file write it whole or not at all."""
    # A sharded checkpoint is a folder to which each process writes a part: Lightning's own plugin has to do that.
    strategy: Any = trainer.strategy
    if isinstance(strategy, ModelParallelStrategy):
        is_one_file = not private_apis.saves_many_files(strategy)
    else:
        is_one_file = isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))
    if is_one_file:
        strategy.checkpoint_io = checkpointing.WholeCheckpointIO()


def _fastest_precision(module: FineTuner, data: ImageData, config: Namespace) -> str:
    """The precision in which a training step of a small batch takes less time."""
    is_gpu = torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if is_gpu else "cpu")
    model = module.model.to(device)
    # A few images tell which is faster, and don't take the memory and the time of a large batch.
    most_images = 64 if is_gpu else 32
    images = torch.zeros(min(data.batch_size, most_images), *model.image_shape, device=device)

    def step() -> None:
        model(images, model.order).logits.sum().backward()
        model.zero_grad()

    # The measurement must not use up random numbers of the training, nor compile layers for a precision that is then
    # not chosen.
    with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        return fastest_precision(step, device)


class SaveConfig(Callback):
    """Saves a run's options in its folder, and sends them to its loggers.

    Args:
        text: the options as they were asked for, which the file holds.
        config: the options as they are, which the loggers get.
    """

    def __init__(self, text: str, config: Namespace) -> None:
        self.text = text
        self.config = config

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save before anything is trained; the other processes wait for the first one."""
        if trainer.is_global_zero:
            write_whole(resume.run_folder(trainer) / "config.yaml", self.text)
            options = {name: value for name, value in self.config.as_dict().items() if name != "config"}
            run_loggers.log_options(trainer, options)
        trainer.strategy.barrier()
