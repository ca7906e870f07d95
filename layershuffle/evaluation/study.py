"""A study: a model, the images to study it on, and the device to run on."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import lightning
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


@dataclass
class Study:
    """A model, the images to study it on, and where to run.

    Attributes:
        loaded: the model and what is known of it.
        data: the data set, set up.
        split: which of its images, "test" or "val".
        batches: these images.
        batch_size: images per batch of all processes together.
        fabric: the device and the precision.
        seed: decides everything random.
        compiled: whether the layers are compiled.
    """

    loaded: LoadedModel
    data: ImageData
    split: Literal["val", "test"]
    batches: DataLoader
    batch_size: int
    fabric: Fabric
    seed: int = 0
    compiled: bool = False

    @property
    def model(self) -> OrderedViT:
        """The model."""
        return self.loaded.model

    @property
    def preprocess(self) -> Preprocess:
        """Makes the model's input from uint8 images."""
        return Preprocess(*self.model.image_format)

    def score(self, to_score: list[Trial], batches: DataLoader | None = None, what: str = "evaluating") -> list[Score]:
        """The scores of ``to_score`` on ``batches``, by default all of them, with a progress bar."""
        batches = batches or self.batches
        orders = {trial.order for trial in to_score if not isinstance(trial.order, str)}
        with self.progress(f"{what} {self.loaded.record['name']}", len(batches) * len(orders)) as (bar, task):
            return evaluate(
                self.model, self.preprocess, batches, to_score, self.fabric, self.seed, lambda: bar.advance(task)
            )

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "batch runs") -> Iterator[tuple[Progress, TaskID]]:
        """A progress bar that goes away when it is done."""
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
        quiet = not self.fabric.is_global_zero
        with Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, disable=quiet
        ) as bar:
            yield bar, bar.add_task(what, total=total)

    def results(
        self, scores: list[Score], evaluation: dict[str, Any], measures: dict[str, Any] | None = None
    ) -> Results:
        """The record of what was found; ``evaluation`` says by which settings."""
        images = scores[0].images if scores else len(self.batches.dataset)  # type: ignore[arg-type]
        return Results(
            model=self.loaded.record,
            data={"name": self.data.label, **self.data.config(), "split": self.split, "images": images},
            evaluation=evaluation | {"seed": self.seed, "batch_size": self.batch_size},
            environment=_environment(self.fabric, self.compiled),
            scores=scores,
            measures=measures or {},
        )


def open_study(
    loaded: LoadedModel,
    data: ImageData,
    fabric: Fabric,
    split: Literal["val", "test"] = "test",
    batch_size: int | Literal["auto"] | None = None,
    compile: bool = False,
    seed: int = 0,
) -> Study:
    """Set up the data for a model and the device of ``fabric``.

    Args:
        loaded: the model and what is known of it.
        data: the data set, not yet set up.
        fabric: the device and the precision; of several processes each gets its part of the images.
        split: which images.
        batch_size: images per batch of all processes together; "auto" for the most that fit into the GPU's memory, up
            to MOST_IMAGES for each; None for the data's own.
        compile: compile the layers.
        seed: decides everything random.

    Raises:
        UserError: if the data can't be read or has another number of classes than the model.
    """
    model = loaded.model
    data.prepare_for(model.image_format.size, fabric.device, fabric.world_size, fabric.global_rank)
    with fabric.rank_zero_first():
        data.prepare_data()
    data.setup("test" if split == "test" else "fit")
    if (classes := model.config["num_classes"]) != data.num_classes:
        raise UserError(
            f"the model tells {classes} classes apart, but the data has {data.num_classes}: give other --data"
        )
    if batch_size == "auto":
        batch_size = _largest_batch(model, data, split, fabric)
    batch_size = batch_size or data.evaluation_batch
    if compile:
        model.compile()
    return Study(loaded, data, split, data.loader(split, batch_size), batch_size, fabric, seed, compile)


def make_fabric(accelerator: str, precision: Any, model: OrderedViT, shared: bool = False) -> Fabric:
    """The device to run on and the precision; all processes that torchrun started, where there are several.

    Args:
        accelerator: "auto", "cpu", "gpu" or "mps".
        precision: "32-true", "bf16-mixed", "16-mixed", or "auto" for the faster of the first two, which is measured.
        model: what it is measured for.
        shared: whether several processes may share the work.

    Raises:
        UserError: if there is no such accelerator, or several processes can't do what is asked.
    """
    processes = int(os.environ["WORLD_SIZE"]) if is_torchelastic_launched() else 1
    if processes > 1 and not shared:
        raise UserError("only evaluate.py shares its work between processes: run this without torchrun")
    if processes > 1 and precision == "auto":
        raise UserError("processes may not measure alike: name a --precision in place of auto")
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if processes > 1 else 1
    strategy = "ddp" if processes > 1 else "auto"
    try:
        if precision == "auto":
            precision = _fastest_precision(model, Fabric(accelerator=accelerator, devices=1).device)
        fabric = Fabric(
            accelerator=accelerator,
            strategy=strategy,
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
    """For the forward pass of a batch, a small one on a CPU."""
    batch = torch.zeros(256 if device.type == "cuda" else 32, *model.image_shape, device=device)
    model.to(device).eval()
    return fastest_precision(lambda: model(batch, model.order), device)


@torch.inference_mode()
def _largest_batch(model: OrderedViT, data: ImageData, split: Literal["val", "test"], fabric: Fabric) -> int:
    """What fits into the memory of all GPUs together; on a CPU, where larger batches gain nothing, the data's own."""
    data.loader(split)  # This moves a set that is kept on the device, which takes memory too.
    start = max(1, data.evaluation_batch // fabric.world_size)
    if fabric.device.type != "cuda":
        return fabric.world_size * start
    model.to(fabric.device).eval()
    preprocess = Preprocess(*model.image_format).to(fabric.device)
    image = torch.as_tensor(data.sets[split][0][0]).to(fabric.device)

    def attempt(count: int) -> None:
        with fabric.autocast():
            state = model.embed(preprocess(image.expand(count, *image.shape).contiguous()))
            # The prefix tree holds one activation for each step of an order, which may be longer than the model's own.
            held = [state.tokens.clone() for _ in range(2 * len(model.order))]
            model.run(state, model.order)
            del held

    images = len(data.sets[split]) // fabric.world_size  # type: ignore[arg-type]
    return fabric.world_size * fabric.broadcast(largest_batch(attempt, start, min(MOST_IMAGES, images)))


def _environment(fabric: Fabric, compiled: bool) -> dict[str, Any]:
    device = device_name(fabric.device)
    threads = "" if fabric.device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device if not threads else f"CPU: {device}{threads}",
        "processes": fabric.world_size,
        "precision": fabric._precision.precision,  # the one asked for, or what the device has instead
        "compiled": compiled,
        "layershuffle": __version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }
