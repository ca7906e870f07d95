"""What the command lines that study a model share: which model, on which data, where, and where the results go."""

import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.distributed import is_torchelastic_launched
from torch.utils.data import DataLoader, Dataset

from layershuffle.checkpoints.loading import Subject, load
from layershuffle.commands import Parser, continue_wandb, option_values, refuse_secrets
from layershuffle.data import ImageData, Preprocess, from_config
from layershuffle.errors import UserError
from layershuffle.evaluation.scoring import evaluate
from layershuffle.hardware import device_name, fastest_precision, largest_batch
from layershuffle.models.model import OrderedViT
from layershuffle.orders.protocols import Trial
from layershuffle.results import overview as plots
from layershuffle.results import tables
from layershuffle.results.record import Results, Score, summarise
from layershuffle.training import wandb_runs
from layershuffle.version import __version__

MOST_IMAGES = 2048
"""A GPU gains nothing by larger batches than this, and the first one takes the longer to read."""


def study_parser(prog: str, description: str, split: str = "test") -> Parser:
    """The options that every study has; everything that isn't given comes from the checkpoint."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument(
        "checkpoint",
        help="a checkpoint of train.py, a folder with one of the LayerShuffle authors' checkpoints, or a timm model",
    )
    parser.add_argument("--config", action="config", help="a file with some of these options, such as a data config")
    parser.add_argument("--seed", type=int, default=0, help="decides everything random")
    parser.add_subclass_arguments(ImageData, "data", required=False, help="the data set (default: the checkpoint's)")
    parser.add_argument("--split", choices=["test", "val"], default=split, help="which of its images to use")
    parser.add_argument(
        "--pretrained", type=str | None, default=None, help="weights for a timm model, if not to be fetched"
    )
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu", "mps"], default="auto", help="where to run")
    precisions = ["32-true", "bf16-mixed", "16-mixed", "auto"]
    parser.add_argument(
        "--precision",
        choices=precisions,
        default="32-true",
        help="of the forward pass; auto: 32-true or bf16-mixed, whichever is measured to be faster for this model here",
    )
    parser.add_argument("--compile", action="store_true", help="compile the layers: worth its minute on large runs")
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        type=PositiveInt | Literal["auto"] | None,
        default=None,
        help=f"images per batch; auto: the most that fit the GPU's memory, up to {MOST_IMAGES} (default: the data's "
        "eval_batch_size)",
    )
    parser.add_argument(
        "--output", type=str | None, default=None, help="the results file (default: beside the checkpoint)"
    )
    return parser


@dataclass
class Study:
    """A model, the images to study it on, and where to run.

    Attributes:
        config: the parsed options.
        subject: the model and what is known of it.
        data: the data set, set up.
        batches: its images, see ``config.split``.
        fabric: the device and the precision.
        output: the results file, which can be written.
        kind: what it is named after where no name was given.
        made: what the options describe by their class, such as a logger.
    """

    config: Namespace
    subject: Subject
    data: ImageData
    batches: DataLoader
    fabric: Fabric
    output: Path
    kind: str
    made: Namespace

    def score(self, to_score: list[Trial], batches: DataLoader | None = None, what: str = "evaluating") -> list[Score]:
        """The scores of ``to_score`` on ``batches``, by default all of them, with a progress bar."""
        batches = batches or self.batches
        model = self.subject.model
        orders = {trial.order for trial in to_score if not isinstance(trial.order, str)}
        with self.progress(f"{what} {self.subject.record['name']}", len(batches) * len(orders)) as (bar, task):
            return evaluate(
                model,
                Preprocess(*model.image_format),
                batches,
                to_score,
                self.fabric,
                self.config.seed,
                on_output=lambda: bar.advance(task),
            )

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "batch runs") -> Iterator[tuple[Progress, TaskID]]:
        """A progress bar that goes away when it is done."""
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
        ]
        quiet = not self.fabric.is_global_zero
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=quiet) as bar:
            yield bar, bar.add_task(what, total=total)

    def results(
        self, scores: list[Score], evaluation: dict[str, Any], measures: dict[str, Any] | None = None
    ) -> Results:
        """The record of what was found; ``evaluation`` says by which settings."""
        images = scores[0].images if scores else len(self.batches.dataset)  # type: ignore[arg-type]
        return Results(
            model=self.subject.record,
            data={"name": self.data.label, **self.data.config(), "split": self.config.split, "images": images},
            evaluation=evaluation
            | {"seed": self.config.seed, "batch_size": self.data.eval_batch_size or 2 * self.data.batch_size},
            environment=_environment(self.fabric, self.config.compile),
            scores=scores,
            measures=measures or {},
        )

    def report(self, results: Results) -> None:
        """Print the tables, save the results and the plots, and send them to W&B where the run is logged there."""
        output = self.output if self.config.output else _unused(self.config, self.kind)  # one may be there by now
        results.save(output)
        console = Console(markup=False)
        title = f"{results.label} on {results.data['images']} images ({results.data['name']}, {results.data['split']})"
        found = tables.of(results)
        drawn = plots.draw(results, output, title)
        for name, (header, rows) in found.items():
            console.print(tables.terminal(header, rows, title if name == "orders" else f"{name}: top-1 %"))
        console.print(f"results: {output}", soft_wrap=True, highlight=False)
        for path in drawn.values():
            console.print(f"plot: {path}", soft_wrap=True, highlight=False)
        logger = self.made.get("logger")
        if isinstance(logger, WandbLogger):
            wandb_runs.begin(logger)
            wandb_runs.forgiving(_send)(logger, results, found, drawn)


def _send(
    logger: WandbLogger,
    results: Results,
    found: Mapping[str, tuple[list[str], list[list[str]]]],
    drawn: Mapping[str, Path],
) -> None:
    for name, (header, rows) in found.items():
        logger.log_table(f"evaluation/{name}", columns=header, data=rows)
    for name, path in drawn.items():
        logger.log_image(f"evaluation/{name}", [str(path)])
    for group, scores in results.groups().items():
        mean = summarise(score.top1 for score in scores).mean
        logger.experiment.summary["/".join(map(str, ("evaluation", *group)))] = mean
    logger.experiment.finish()


def open_study(command: Parser, args: list[str] | None = None, kind: str = "evaluation", shared: bool = False) -> Study:
    """Parse ``args``, by default those of the process, load the model and set up its data.

    Args:
        command: made by ``study_parser``.
        args: the command line.
        kind: what the results file is named after.
        shared: whether the processes that torchrun starts share the images; otherwise there must be just one.

    Raises:
        UserError: (a ValueError) in one sentence for everything a user can get wrong.
    """
    args = sys.argv[1:] if args is None else args
    source = args[0] if args and not args[0].startswith("-") else None
    # What the options of --data mean depends on the checkpoint's own data set, so it is read first.
    subject = load(source, next(iter(option_values(args, "--pretrained")), None)) if source else None
    if subject and subject.data and not option_values(args, "--data"):
        known = from_config(subject.data)
        path = f"{type(known).__module__}.{type(known).__qualname__}"
        command.set_defaults({"data": {"class_path": path, "init_args": known.config()["args"]}})
    config = command.parse_args(args)
    if subject is None:
        subject = load(config.checkpoint, config.pretrained)
    if not config.data:
        raise UserError(
            f"{config.checkpoint} doesn't say which data to evaluate on: give --config configs/data/... or --data"
        )
    refuse_secrets(config.as_dict())
    continue_wandb(config.get("logger"), subject.wandb)
    output = _output(config, kind)
    made = command.instantiate_classes(config)
    data: ImageData = made.data
    data.image_size = subject.model.image_format.size
    fabric = _fabric(config, subject.model, shared)
    with fabric.rank_zero_first():
        data.prepare_data()
    data.processes = (fabric.world_size, fabric.global_rank)
    data.setup("test" if config.split == "test" else "fit")
    classes = subject.model.config["num_classes"]
    if classes != data.num_classes:
        raise UserError(
            f"the model tells {classes} classes apart, but the data has {data.num_classes}: give other --data"
        )
    model, images = subject.model, data.sets[config.split]
    data.device = fabric.device
    loader = data.test_dataloader if config.split == "test" else data.val_dataloader
    if config.batch_size == "auto":
        loader()  # which moves a set that is to live on the device
        start = max(1, (data.eval_batch_size or 2 * data.batch_size) // fabric.world_size)
        data.eval_batch_size = fabric.world_size * fabric.broadcast(_largest_batch(model, images, fabric, start))
    elif config.batch_size:
        data.eval_batch_size = config.batch_size
    if config.compile:
        model.compile()
    return Study(config, subject, data, loader(), fabric, output, kind, made)


def _fabric(config: Namespace, model: OrderedViT, shared: bool) -> Fabric:
    processes = int(os.environ["WORLD_SIZE"]) if is_torchelastic_launched() else 1
    if processes > 1 and not shared:
        raise UserError("only evaluate.py shares its work between processes: run this without torchrun")
    if processes > 1 and config.precision == "auto":
        raise UserError("processes may not measure alike: name a --precision in place of auto")
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if processes > 1 else 1
    try:
        if config.precision == "auto":
            config.precision = _fastest_precision(model, Fabric(accelerator=config.accelerator, devices=1).device)
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=here,
            num_nodes=processes // here,
            strategy="ddp" if processes > 1 else "auto",
            precision=config.precision,
        )
    except (RuntimeError, MisconfigurationException) as error:
        raise UserError(f"there is no {config.accelerator} to run on here: {error}") from error
    if processes > 1:
        fabric.launch()
    return fabric


@torch.inference_mode()
def _fastest_precision(model: OrderedViT, device: torch.device) -> str:
    """For the forward pass of a batch, a small one on a CPU."""
    size, channels = model.image_format.size, model.vit.patch_embed.proj.in_channels
    batch = torch.zeros(256 if device.type == "cuda" else 32, channels, size, size, device=device)
    model.to(device).eval()
    return fastest_precision(lambda: model(batch, model.order), device)


@torch.inference_mode()
def _largest_batch(model: OrderedViT, images: Dataset, fabric: Fabric, start: int) -> int:
    """What fits the GPU's memory; on a CPU, where larger batches gain nothing, ``start``."""
    if fabric.device.type != "cuda":
        return start

    def attempt(count: int) -> None:
        with fabric.autocast():
            tokens = model.embed(_batch(model, images, count, fabric.device))
            # The prefix tree holds one activation for each step of an order, which may be longer than the model's own.
            held = [tokens.clone() for _ in range(2 * len(model.order))]
            model.run(tokens, model.order)
            del held

    model.to(fabric.device).eval()
    return largest_batch(attempt, start, min(MOST_IMAGES, len(images) // fabric.world_size))  # type: ignore[arg-type]


def _batch(model: OrderedViT, images: Dataset, count: int, device: torch.device) -> torch.Tensor:
    one = torch.as_tensor(images[0][0]).to(device)
    return Preprocess(*model.image_format).to(device)(one.expand(count, *one.shape).contiguous())


def _environment(fabric: Fabric, compiled: bool) -> dict[str, Any]:
    device = device_name(fabric.device)
    threads = "" if fabric.device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device if not threads else f"CPU: {device}{threads}",
        "processes": fabric.world_size,
        "precision": fabric._precision.precision,  # what was asked for, or what the device has instead
        "compiled": compiled,
        "layershuffle": __version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }


def _output(config: Namespace, kind: str) -> Path:
    """Where the results go, found and tried before the work: never over earlier ones, unless their name was given.

    Raises:
        UserError: if nothing can be written there.
    """
    path = Path(config.output) if config.output else _unused(config, kind)
    if path.suffix != ".json" or path.is_dir():
        raise UserError(f"--output {path} is not the name of a file that ends in .json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}): give another --output") from error


def _unused(config: Namespace, kind: str) -> Path:
    source = Path(config.checkpoint)
    folder, name = (source.parent, source.stem) if source.is_file() else (Path(), source.name.replace(":", "_"))
    candidates = (folder / f"{name}.{kind}{f'-{n}' if n > 1 else ''}.json" for n in range(1, 10_000))
    return next(path for path in candidates if not path.exists())
