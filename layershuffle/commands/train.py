"""Composes a run from configs and flags, on LightningCLI."""

import os
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from layershuffle.checkpoints.record import RECORD, read_checkpoint
from layershuffle.commands.parser import Parser
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.hardware import fastest_precision
from layershuffle.training import wandb_runs
from layershuffle.training.callbacks import BestCheckpoint, ThroughputLogger, WholeCheckpointIO
from layershuffle.training.last_checkpoint import LastCheckpoint, Preempted
from layershuffle.training.module import PAPER_ADAM, FineTuner
from layershuffle.training.resume import find, go_on, refuse_another


class LogConfig(SaveConfigCallback):
    """Saves the resolved config in the run's folder, and sends it to W&B where the run is logged there.

    ``asked`` is the config's text, before anything was changed in it to go on with a run.
    """

    def __init__(self, *args: Any, asked: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked = asked

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called on rank zero only."""
        # Beside or around the checkpoints; W&B runs have no other folder of their own.
        folder = Path(trainer.default_root_dir)
        if not trainer.loggers:
            folder /= "checkpoints"
        else:
            logger = trainer.loggers[0]
            version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
            folder = Path(logger.save_dir or folder) / str(logger.name) / version
        write_whole(folder / "config.yaml", self.asked)
        config = self.config.clone()
        config.pop("config", None)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                wandb_runs.forgiving(logger.experiment.config.update)(config.as_dict(), allow_val_change=True)


class TrainCLI(LightningCLI):
    """``model``, ``data`` and ``trainer`` from configs and flags; later ones win."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the three don't have: where to go on from, and which checkpoints to keep."""
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="A checkpoint of the same model to go on training from."
        )
        parser.add_argument(
            "--fastest_precision",
            type=bool,
            default=False,
            help="In place of trainer.precision, use 32-true or bf16-mixed, whichever is measured to be faster.",
        )
        parser.add_argument(
            "--resume",
            type=Literal["auto"] | None,
            default=None,
            help="auto: go on with the run that the same command has begun, or begin it.",
        )
        parser.add_argument(
            "--save_every_n_steps",
            type=int | None,
            default=None,
            help="Write last.ckpt also within an epoch, whenever so many steps are done.",
        )
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "model.optimizer": {"class_path": "torch.optim.Adam", "init_args": PAPER_ADAM},
                "checkpoint.filename": "best",
                "checkpoint.monitor": "val/loss",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)
        parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Find now what is wrong with the checkpoint to go on from: nothing has been started yet."""
        if not self.config.checkpoint.monitor:
            raise UserError("--checkpoint.monitor names the metric that selects the best checkpoint, such as val/loss")
        self.save_config_kwargs["asked"] = asked = self.parser.dump(self.config, skip_none=False)
        if self.config.resume and self.config.ckpt_path:
            raise UserError("--resume auto finds the checkpoint to go on from by itself: leave out --ckpt_path")
        begun = find(self.config, asked) if self.config.resume else None
        from_path = begun.last if begun else self.config.ckpt_path
        saved = read_checkpoint(from_path) if from_path else {}
        self.from_step, self.record = int(saved.get("global_step", 0)), saved.get(RECORD, {})
        if begun:
            go_on(self.config, begun, self.from_step)
            rank_zero_only(print)(f"going on with {begun.folder}" + ("" if begun.last else " (from the beginning)"))
        elif not self.config.ckpt_path:
            refuse_another(self.config)
        if self.config.ckpt_path:
            # Elsewhere Lightning would forget which checkpoint has been the best.
            self.config.checkpoint.dirpath = self.config.checkpoint.dirpath or str(Path(self.config.ckpt_path).parent)
            loggers = self.config.trainer.logger
            for logger in loggers if isinstance(loggers, list) else [loggers]:
                wandb_runs.continue_wandb(logger, self.record.get("wandb"))

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add the callbacks that depend on others, or that Lightning refuses where there is nothing for them to do."""
        # ModelCheckpoint's own save_last writes last.ckpt only when the best one changes.
        last = LastCheckpoint(self.config.checkpoint.dirpath, self.config.save_every_n_steps)
        self.trainer_defaults["callbacks"].append(last)
        if self.config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"].append(ProgressBar())
        if self.config.trainer.logger is not False:
            self.trainer_defaults["callbacks"].append(LearningRateMonitor())
        if self.config.fastest_precision:
            before = self.record.get("precision")
            kwargs["precision"] = self.config.trainer.precision = before or self._fastest_precision()
            print(f"precision: {kwargs['precision']}, measured to be the faster one")
        trainer = super().instantiate_trainer(**kwargs)
        if self.config.fastest_precision and trainer.world_size > 1:
            raise UserError("processes may not measure alike: name --trainer.precision in place of --fastest_precision")
        strategy: Any = trainer.strategy
        in_one_file = isinstance(strategy, ModelParallelStrategy) and not strategy._save_distributed_checkpoint
        if in_one_file or isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)):  # others write in their own way
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer

    def _fastest_precision(self) -> str:
        """For a training step of a small batch; leaves no trace but the time it took."""
        gpu = torch.cuda.is_available() and self.config.trainer.accelerator in ("auto", "gpu", "cuda")
        device = torch.device("cuda" if gpu else "cpu")
        model, count = self.model.model.to(device), min(self.datamodule.batch_size, 64 if gpu else 32)

        def step() -> None:
            model(torch.zeros(count, *model.image_shape, device=device), model.order).logits.sum().backward()
            model.zero_grad()

        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            return fastest_precision(step, device)


def train(args: list[str] | None = None) -> pl.Trainer:
    """Fine-tune as ``args`` say, by default those of the process; returns the trainer when it is done."""
    cli = TrainCLI(
        FineTuner,
        ImageData,
        subclass_mode_data=True,
        save_config_callback=LogConfig,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        trainer_defaults={
            "max_epochs": 20,
            "use_distributed_sampler": False,  # ImageData shares out the images itself
            "callbacks": [ThroughputLogger()],
            "logger": {"class_path": "layershuffle.metrics_file.MetricsFile"},
        },
        save_config_kwargs={"save_to_log_dir": False},
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
    cli.datamodule.image_size = cli.model.model.image_format.size
    trainer = cli.trainer
    wandb_runs.prepare(trainer, cli.from_step if cli.config.ckpt_path else None)
    try:
        trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path, weights_only=True)
    except (Preempted, SIGTERMException) as stop:
        saved = stop.path if isinstance(stop, Preempted) else None
        number = stop.signal if isinstance(stop, Preempted) else signal.SIGTERM
        where = f"saved {os.path.relpath(saved)}" if saved else "nothing to save yet"
        if trainer.is_global_zero:
            print(
                f"{number.name}: stopped after step {trainer.global_step}, {where}; the same command with "
                "--resume auto goes on",
                file=sys.stderr,
            )
        # What starts the processes kills the first one when another fails, perhaps before it has ended its W&B run.
        sys.exit(128 + number if trainer.is_global_zero else 0)
    except SystemExit:  # how Lightning ends a fit that was interrupted
        saved = checkpoint_paths(trainer).get("last")
        how = "the same command goes on" if cli.config.resume else f"go on with --ckpt_path {saved}"
        print(f"interrupted{f'; {how} from the last checkpoint' if saved else ''}", file=sys.stderr)
        sys.exit(130)
    wandb_runs.finish(trainer)
    return trainer


def train_command(args: list[str] | None = None) -> None:
    """Fine-tune as ``args`` say, by default those of the process, then tell what to do with the result."""
    trainer = train(args)
    if trainer.is_global_zero:
        paths = checkpoint_paths(trainer)
        for name, path in paths.items():
            print(f"{name} checkpoint: {path}")
        if paths:
            print(f"evaluate it with: layershuffle evaluate {path}")


def checkpoint_paths(trainer: pl.Trainer) -> dict[str, str]:
    """What a run has saved, relative to the working folder: "last" and, once it was validated, "best"."""
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    paths = [os.path.relpath(callback.best_model_path) for callback in kept if callback.best_model_path]
    return {Path(path).stem: path for path in sorted(paths, reverse=True)}


class ProgressBar(RichProgressBar):
    """Without the logger's version, which says nothing of the run, and with numbers only as fresh as the loggers'.

    Lightning's own shows new ones after every step, for which it waits until the device is done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, int | str | float | dict[str, float]] = {}

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """The metrics beside the bar."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not trainer.training or trainer.is_last_batch or (every and trainer.global_step % every == 0):
            fresh = super().get_metrics(trainer, pl_module)
            loss = trainer.callback_metrics.get("train/loss")
            self.shown = {} if loss is None else {"train/loss": float(loss)}
            self.shown |= {name: value for name, value in fresh.items() if name != "v_num"}
        return self.shown
