"""Trains a model: composes a run from configs and flags, with LightningCLI."""

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from layershuffle import private_apis
from layershuffle.checkpoints.loading import RECORD, read_checkpoint
from layershuffle.commands.parser import Parser
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.hardware import fastest_precision
from layershuffle.models import OrderedViT
from layershuffle.training import callbacks, checkpointing, resume, wandb_runs
from layershuffle.training.module import FineTuner
from layershuffle.training.optimizer import PAPER_ADAM

COMMON = (
    *("config", "print_config", "seed_everything", "ckpt_path", "resume", "save_every_n_steps"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.accelerator", "trainer.devices", "trainer.precision"),
    *("trainer.gradient_clip_val", "trainer.accumulate_grad_batches", "trainer.logger", "trainer.callbacks"),
    *("data", "model.name", "model.pretrained", "model.sampler", "model.position", "model.optimizer"),
    *("model.schedule", "model.objective", "model.budget", "model.compile", "model.timm_args"),
)
"""The options that --help shows."""
REFUSED = {
    "BackboneFinetuning": "the optimizer and its schedule are made once, for all parameters",
    "LearningRateFinder": "the learning rate is an argument of the optimizer; an experiment's grid compares several",
}
"""Lightning's callbacks that don't work here, and why."""


class LogConfig(SaveConfigCallback):
    """Saves the config in the run's folder as ``asked`` for, before it was changed to go on with a run.

    If the run is logged at W&B, all options are sent there.
    """

    def __init__(self, *args: Any, asked: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked = asked

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called in the first process only."""
        write_whole(resume.run_folder(trainer) / "config.yaml", self.asked)
        options = {name: value for name, value in self.config.as_dict().items() if name != "config"}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                wandb_runs.forgiving(logger.experiment.config.update)(options, allow_val_change=True)


class TrainCLI(LightningCLI):
    """Makes ``model``, ``data`` and ``trainer`` from configs and flags, of which later ones win."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        options: dict[str, tuple[Any, str]] = {
            "ckpt_path": (str | None, "A checkpoint of the same model to go on training from."),
            "resume": (Literal["auto"] | None, "auto: go on with the run that the same command began, or begin it."),
            "save_every_n_steps": (int | None, "Also write last.ckpt within an epoch, after every so many steps."),
            "fastest_precision": (bool, "Use 32-true or bf16-mixed, whichever is measured to be faster."),
        }
        for name, (kind, help) in options.items():
            parser.add_argument(f"--{name}", type=kind, default=False if kind is bool else None, help=help)
        parser.add_lightning_class_args(checkpointing.BestCheckpoint, "checkpoint")
        best = {"filename": "best", "monitor": "val/loss", "enable_version_counter": False}
        parser.set_defaults({f"checkpoint.{name}": value for name, value in best.items()})
        parser.common = COMMON  # type: ignore[attr-defined]
        parser.set_defaults({"model.optimizer": {"class_path": "torch.optim.Adam", "init_args": PAPER_ADAM}})
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Check the options, and find the checkpoint to go on from, before anything is started."""
        if not self.config.checkpoint.monitor:
            raise UserError("--checkpoint.monitor names the metric that selects the best checkpoint, such as val/loss")
        self.save_config_kwargs["asked"] = asked = self.parser.dump(self.config, skip_none=False)
        if self.config.resume and self.config.ckpt_path:
            raise UserError("--resume auto finds the checkpoint to go on from by itself: leave out --ckpt_path")
        resume.place_loggers(self.config)
        defaults = self.parser.dump(self.parser.get_defaults(), skip_none=False, skip_validation=True)
        earlier = resume.find_earlier_run(self.config, asked, defaults) if self.config.resume else None
        path = earlier.checkpoint if earlier else self.config.ckpt_path
        saved = read_checkpoint(path) if path else {}
        self.from_step, self.record = int(saved.get("global_step", 0)), saved.get(RECORD, {})
        if earlier:
            resume.continue_run(self.config, earlier, self.from_step)
            rank_zero_only(print)(f"going on with {earlier.folder}" + ("" if path else " (from the beginning)"))
        if self.config.ckpt_path:
            # In another folder Lightning would forget which checkpoint is the best.
            self.config.checkpoint.dirpath = self.config.checkpoint.dirpath or str(Path(self.config.ckpt_path).parent)
            for logger in resume.configured_loggers(self.config):
                wandb_runs.continue_wandb(logger, self.record.get("wandb"))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        added = self.trainer_defaults["callbacks"]
        # ModelCheckpoint's own save_last writes last.ckpt only when the best checkpoint changes.
        added.append(checkpointing.LastCheckpoint(self.config.checkpoint.dirpath, self.config.save_every_n_steps))
        if self.config.trainer.enable_progress_bar is not False:
            added.append(callbacks.ProgressBar())
        if self.config.trainer.logger is not False:  # Without a logger, Lightning refuses LearningRateMonitor.
            added.append(LearningRateMonitor())
        if self.config.fastest_precision:
            precision = self.record.get("precision") or self._fastest_precision()  # a resumed run keeps its own
            kwargs["precision"] = self.config.trainer.precision = precision
            print(f"precision: {precision}, measured to be the faster one")
        trainer = super().instantiate_trainer(**kwargs)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if advice := REFUSED.get(type(callback).__name__):
                raise UserError(f"{type(callback).__name__} can't be used here: {advice}")
        cores = len(os.sched_getaffinity(0))
        if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > max(8, cores):
            raise UserError(
                f"--trainer.devices {trainer.num_devices} would start as many processes on {cores} CPU cores"
            )
        if self.config.fastest_precision and trainer.world_size > 1:
            raise UserError("several processes could measure different precisions: name a --trainer.precision instead")
        strategy: Any = trainer.strategy
        in_one_file = isinstance(strategy, ModelParallelStrategy) and not private_apis.saves_many_files(strategy)
        if in_one_file or isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):  # the others write several files
            strategy.checkpoint_io = checkpointing.WholeCheckpointIO()
        return trainer

    def _fastest_precision(self) -> str:
        """The precision in which a training step of a small batch takes less time."""
        gpu = torch.cuda.is_available() and self.config.trainer.accelerator in ("auto", "gpu", "cuda")
        device = torch.device("cuda" if gpu else "cpu")
        model, count = self.model.model.to(device), min(self.datamodule.batch_size, 64 if gpu else 32)

        def step() -> None:
            model(torch.zeros(count, *model.image_shape, device=device), model.order).logits.sum().backward()
            model.zero_grad()

        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            return fastest_precision(step, device)


def configured(args: list[str] | None = None) -> TrainCLI:
    """Make the model, the data and the trainer that ``args`` describe, by default the process's arguments."""
    return TrainCLI(
        FineTuner,
        ImageData,
        subclass_mode_data=True,
        save_config_callback=LogConfig,
        save_config_kwargs={"save_to_log_dir": False},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={
            "max_epochs": 20,
            "enable_model_summary": False,  # It says that a step takes no operations; see ``_introduce``.
            "use_distributed_sampler": False,  # ImageData divides the images between the processes itself
            "callbacks": [callbacks.DescribeData(), callbacks.ThroughputLogger()],
            "logger": {"class_path": "layershuffle.training.metrics_file.MetricsFile"},
        },
        parser_class=Parser,
        parser_kwargs={
            "prog": "layershuffle train",
            "usage": "%(prog)s [CONFIG ...] [options]",
            "description": "Fine-tune a model. CONFIG is a name that `layershuffle list` shows, or a file; later ones "
            "win, and so do options.",
        },
        args=args,
        run=False,
    )


def train(args: list[str] | None = None) -> pl.Trainer:
    """Fine-tune with the options ``args``, by default the process's; returns the trainer when it is done."""
    cli = configured(args)
    cli.datamodule.prepare_for(*cli.model.model.image_format)
    cli.model.objective.load(cli.model.model)  # so that the path of a teacher fails before the data are read
    trainer, ckpt_path = cli.trainer, cli.config.ckpt_path
    rank_zero_only(_introduce)(cli.model.model, cli.config.ckpt_path or cli.config.model.pretrained)
    if not ckpt_path:
        resume.refuse_to_overwrite(trainer, cli.config.checkpoint.dirpath)
    wandb_runs.prepare(trainer, cli.from_step if ckpt_path else None)
    folder = resume.run_folder(trainer)
    is_new = not folder.exists()
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, weights_only=True)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, checkpointing.LastCheckpoint) and callback.received:
                raise checkpointing.Preempted(signal.Signals(callback.received), callback.best_model_path)
    except (checkpointing.Preempted, SIGTERMException) as stop:
        number, path = (stop.number, stop.path) if isinstance(stop, checkpointing.Preempted) else (signal.SIGTERM, None)
        if not trainer.is_global_zero:
            sys.exit(0)  # If it failed, the launcher could kill the first process before that has ended its W&B run.
        saved = f"saved {os.path.relpath(path)}" if path else "nothing to save yet"
        done = f"{number.name}: stopped after step {trainer.global_step}, {saved}"
        print(f"{done}; the same command with --resume auto goes on", file=sys.stderr)
        sys.exit(128 + number)
    except SystemExit:  # Lightning ends an interrupted fit like this.
        last = checkpoint_paths(trainer).get("last")
        how = "the same command goes on" if cli.config.resume else f"go on with --ckpt_path {last}"
        print(f"interrupted{f'; {how} from the last checkpoint' if last else ''}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if is_new and trainer.is_global_zero:
            resume.remove_empty(folder)
        if str(error).startswith("Early stopping conditioned on metric"):
            raise UserError(
                str(error).replace("Pass in or modify your `EarlyStopping` callback to", "Instead,")
            ) from error
        raise
    wandb_runs.finish(trainer)
    return trainer


def _introduce(model: OrderedViT, weights: bool | str) -> None:
    """Print in one line what is trained, and where its weights come from."""
    source = "timm's weights" if weights is True else f"weights of {weights}" if weights else "random weights"
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    print(f"model: {model.config['name']}, {model.depth} layers, {size:.3g}M parameters, {source}")


def train_command(args: list[str] | None = None) -> None:
    """Fine-tune as ``args`` say, by default those of the process, then print where the checkpoints are."""
    trainer = train(args)
    rank_zero_only(print)(f"used up: {trainer.lightning_module.compute}")
    paths = checkpoint_paths(trainer) if trainer.is_global_zero else {}
    for name, path in paths.items():
        print(f"{name} checkpoint: {path}")
    if paths:
        print(f"evaluate it with: layershuffle evaluate {shlex.quote(str(path))}")


def checkpoint_paths(trainer: pl.Trainer) -> dict[str, str]:
    """The paths of a run's "last" and, once it was validated, "best" checkpoint, relative to the working folder."""
    kept = [getattr(callback, "best_model_path", "") for callback in trainer.checkpoint_callbacks]
    return {Path(path).stem: os.path.relpath(path) for path in sorted(filter(None, kept), reverse=True)}
