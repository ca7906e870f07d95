"""A study: a model, the images to study it on, and the device to run on."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.distributed import is_torchelastic_launched
from torch.utils.data import DataLoader

from layershuffle.checkpoints.loading import LoadedModel
from layershuffle.data import ImageData, Preprocess
from layershuffle.errors import UserError
from layershuffle.evaluation.scoring import evaluate
from layershuffle.hardware import device_name, fastest_precision, largest_batch
from layershuffle.models import OrderedViT
from layershuffle.orders.protocols import Trial
from layershuffle.results.record import Results, Score
from layershuffle.version import __version__

MOST_IMAGES = 2048
"""A GPU gains nothing from larger batches than this, and the first one takes longer to read."""


class Study:
    """A model, the images to study it on, and the device to run on.

    Args:
        loaded: the model and what is known of it.
        data: the data set, not yet set up.
        fabric: the device and the precision; of several processes each gets its part of the images.
        split: which images, "test" or "val".
        batch_size: images per batch of all processes together; "auto" for the most that fit into the GPU's memory, up
            to MOST_IMAGES for each process; None for the data's own.
        compile: compile the layers.
        seed: decides everything random.

    Raises:
        UserError: if the data can't be read or has another number of classes than the model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        data: ImageData,
        fabric: Fabric,
        split: Literal["val", "test"] = "test",
        batch_size: int | Literal["auto"] | None = None,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        self.record, self.model, self.data, self.fabric = loaded.record, loaded.model, data, fabric
        self.split, self.compiled, self.seed = split, compile, seed
        self.preprocess = Preprocess(*self.model.image_format)
        data.prepare_for(self.preprocess.size, fabric.device, fabric.world_size, fabric.global_rank)
        with fabric.rank_zero_first():
            data.prepare_data()
        data.setup("test" if split == "test" else "fit")
        if (classes := self.model.config["num_classes"]) != data.num_classes:
            raise UserError(
                f"the model tells {classes} classes apart, but the data has {data.num_classes}: give other --data"
            )
        self.batch_size = self._largest_batch() if batch_size == "auto" else batch_size or data.evaluation_batch
        if compile:
            self.model.compile()
        self.batches = data.loader(split, self.batch_size)

    def score(self, to_score: list[Trial], batches: DataLoader | None = None, what: str = "evaluating") -> list[Score]:
        """The scores of ``to_score`` on ``batches``, by default all of them, with a progress bar."""
        batches = batches or self.batches
        orders = {trial.order for trial in to_score if not isinstance(trial.order, str)}
        with self.progress(f"{what} {self.record['name']}", len(batches) * len(orders)) as (bar, task):
            return evaluate(
                self.model, self.preprocess, batches, to_score, self.fabric, self.seed, lambda: bar.advance(task)
            )

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "batch runs") -> Iterator[tuple[Progress, TaskID]]:
        """A progress bar that goes away when it is done."""
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
        console, disable = Console(stderr=True), not self.fabric.is_global_zero
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=disable) as bar:
            yield bar, bar.add_task(what, total=total)

    def results(self, scores: list[Score], evaluation: dict[str, Any], measures: dict[str, Any]) -> Results:
        """The record of what was found; ``evaluation`` says by which settings."""
        images = scores[0].images if scores else len(self.batches.dataset)  # type: ignore[arg-type]
        device = device_name(self.fabric.device)
        if self.fabric.device.type != "cuda":
            device = f"CPU: {device}, {torch.get_num_threads()} threads"
        return Results(
            model=self.record,
            data={"name": self.data.label, **self.data.config(), "split": self.split, "images": images},
            evaluation=evaluation | {"seed": self.seed, "batch_size": self.batch_size},
            environment={
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": device,
                "processes": self.fabric.world_size,
                "precision": self.fabric._precision.precision,  # the one asked for, or what the device has instead
                "compiled": self.compiled,
                "layershuffle": __version__,
                "torch": torch.__version__,
                "timm": version("timm"),
                "lightning": version("lightning"),
                "python": platform.python_version(),
            },
            scores=scores,
            measures=measures,
        )

    @torch.inference_mode()
    def _largest_batch(self) -> int:
        """What fits into the memory of all GPUs together. A CPU gains nothing from batches above the data's own."""
        model, fabric = self.model, self.fabric
        self.data.loader(self.split)  # This moves a set that is kept on the device, which takes memory too.
        start = max(1, self.data.evaluation_batch // fabric.world_size)
        if fabric.device.type != "cuda":
            return fabric.world_size * start
        model.to(fabric.device).eval()
        preprocess, images = self.preprocess.to(fabric.device), self.data.sets[self.split]
        image = torch.as_tensor(images[0][0]).to(fabric.device)

        def attempt(count: int) -> None:
            with fabric.autocast():
                state = model.embed(preprocess(image.expand(count, *image.shape).contiguous()))
                # The trie of orders holds one activation per step of an order, which may be longer than the model's.
                held = [state.tokens.clone() for _ in range(2 * len(model.order))]
                model.run(state, model.order)
                del held

        share = len(images) // fabric.world_size  # type: ignore[arg-type]
        return fabric.world_size * fabric.broadcast(largest_batch(attempt, start, min(MOST_IMAGES, share)))


def make_fabric(accelerator: str, precision: Any, model: OrderedViT, shared: bool = False) -> Fabric:
    """The device and the precision to run with, and all the processes if torchrun started several.

    Args:
        accelerator: "auto", "cpu", "gpu" or "mps".
        precision: "32-true", "bf16-mixed", "16-mixed", or "auto" to measure which of the first two is faster.
        model: the model to measure with.
        shared: whether several processes may share the work.

    Raises:
        UserError: if there is no such accelerator, or several processes can't do what is asked.
    """
    processes = int(os.environ["WORLD_SIZE"]) if is_torchelastic_launched() else 1
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if processes > 1 else 1
    if processes > 1 and not shared:
        raise UserError("only layershuffle evaluate shares its work between processes: run this without torchrun")
    if processes > 1 and precision == "auto":
        raise UserError("several processes could measure different precisions: name a --precision in place of auto")
    try:
        if precision == "auto":
            precision = _fastest_precision(model, Fabric(accelerator=accelerator, devices=1).device)
        fabric = Fabric(
            accelerator=accelerator,
            strategy="ddp" if processes > 1 else "auto",
            devices=here,
            num_nodes=processes // here,
            precision=precision,
        )
    except (RuntimeError, MisconfigurationException) as error:
        raise UserError(f"there is no {accelerator} to run on here: {error}") from error
    if processes > 1:
        fabric.launch()
    return fabric


@torch.inference_mode()
def _fastest_precision(model: OrderedViT, device: torch.device) -> str:
    """The faster precision for the forward pass of a batch, which is a small one on a CPU."""
    batch = torch.zeros(256 if device.type == "cuda" else 32, *model.image_shape, device=device)
    model.to(device).eval()
    return fastest_precision(lambda: model(batch, model.order), device)
