"""A training by ``layershuffle train``'s own loop, in a process of its own, that benchmarks let run step by step."""

import multiprocessing
import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from layershuffle.commands.logs import set_up_logging
from layershuffle.hardware import wait
from layershuffle.training.callbacks import ThroughputLogger
from layershuffle.training.module import FineTuner


class Repeat(IterableDataset):
    """Yields the same batch for ever."""

    def __init__(self, batch: tuple[Tensor, ...]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield self.batch


class TrainingRun:
    """Training as ``layershuffle train`` does it, with Lightning's loop and logging; each call runs one step.

    It runs in another process: in a thread, its OpenMP threads would compete with those of the others.
    """

    def __init__(self, **settings: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, childs_end = context.Pipe()
        context.Process(target=_train, args=(childs_end, settings), daemon=True).start()
        self._wait()

    def _wait(self) -> None:
        """Wait until the training has ended a step; raises what it has raised."""
        error = self.pipe.recv()
        if not error:
            return
        if "OutOfMemoryError" in error:
            raise torch.OutOfMemoryError(error)
        raise RuntimeError(error)

    def __call__(self) -> None:
        """Run from the end of one step to the end of the next."""
        self.pipe.send(None)
        self._wait()


class Turns(pl.Callback):
    """Makes training wait after every step until the other side of the pipe asks for the next."""

    def __init__(self, pipe: Any, device: torch.device) -> None:
        self.pipe = pipe
        self.device = device

    def on_train_start(self, *_: Any) -> None:
        """Wait for the first turn."""
        self._wait()

    def on_train_batch_end(self, *_: Any) -> None:
        """Wait for the next turn."""
        self._wait()

    def _wait(self) -> None:
        """Say that a step has ended, and wait until the next one is asked for."""
        wait(self.device)
        self.pipe.send(None)
        self.pipe.recv()


def _train(pipe: Any, settings: dict[str, Any]) -> None:
    """The process of a ``TrainingRun``: train for ever, a step for each message from the pipe."""
    set_up_logging()
    # Lightning warns of few workers and of steps that aren't logged, which is as it should be here.
    warnings.filterwarnings("ignore", module="lightning")
    device = torch.device(settings["device"])
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1 if device.type == "cpu" else [device.index or 0],
        precision=settings["precision"],
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[Turns(pipe, device), ThroughputLogger()],
        logger=CSVLogger(settings["folder"]),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # It stays on the device, as the other contenders' batch does, so that reading and moving images isn't timed.
    batch = tuple(part.to(device) for part in settings["batch"])
    try:
        trainer.fit(FineTuner(compile=True, **settings["model"]), DataLoader(Repeat(batch), batch_size=None))
    except EOFError:  # the benchmark has ended
        pass
    except Exception as error:
        # The other process raises it: nobody sees what happens here.
        pipe.send(repr(error))
