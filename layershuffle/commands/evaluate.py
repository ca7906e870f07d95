"""evaluate.py: scores one model under many orders."""

import platform
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
from jsonargparse import Namespace
from lightning.fabric import Fabric
from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layershuffle.commands import Parser, continue_wandb, option_values, refuse_secrets
from layershuffle.data import ImageData, Preprocess, from_config
from layershuffle.data.preprocessing import image_size
from layershuffle.errors import UserError
from layershuffle.evaluation import PROTOCOLS, Settings, evaluate, trials
from layershuffle.loading import Subject, load
from layershuffle.orders import Order
from layershuffle.report import plots, tables
from layershuffle.results import Results, summarise
from layershuffle.version import __version__


def parser() -> Parser:
    """The options; everything that isn't given comes from the checkpoint."""
    parser = Parser(prog="evaluate.py", description="Score a model in sequential, arbitrary and pruned order.")
    parser.add_argument(
        "checkpoint",
        help="a checkpoint of train.py, a folder with one of the LayerShuffle authors' checkpoints, or a timm model",
    )
    parser.add_argument("--config", action="config", help="a file with some of these options, such as a data config")
    parser.add_argument(
        "--protocols",
        nargs="+",
        default=None,
        help=f"families of orders, from {', '.join(PROTOCOLS)} (default: sequential arbitrary pruned; with orders of "
        "your own: sequential given)",
    )
    parser.add_argument(
        "--orders",
        nargs="+",
        default=["10"],
        metavar="N | ORDER",
        help="how many orders to draw where they are random, or orders of your own such as '3 1 2' (quoted; an "
        "order of one layer as '(3)')",
    )
    parser.add_argument(
        "--keep", nargs="+", type=int, default=None, help="numbers of layers to keep (default: quarters of the depth)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the random orders")
    parser.add_subclass_arguments(ImageData, "data", required=False, help="the data set (default: the checkpoint's)")
    parser.add_argument("--split", choices=["test", "val"], default="test", help="which of its images to score on")
    parser.add_argument(
        "--pretrained", type=str | None, default=None, help="weights for a timm model, if not to be fetched"
    )
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu", "mps"], default="auto", help="where to run")
    precisions = ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]
    parser.add_argument("--precision", choices=precisions, default="32-true", help="of the forward pass")
    parser.add_argument(
        "--output", type=str | None, default=None, help="the results file (default: beside the checkpoint)"
    )
    parser.add_argument(
        "--logger", type=Logger | None, default=None, help="WandbLogger sends tables and the plot to W&B"
    )
    return parser


def evaluate_command(args: list[str] | None = None) -> Results:
    """Evaluate as ``args`` say, by default those of the process; prints a table, saves the results and a plot."""
    args = sys.argv[1:] if args is None else args
    command = parser()
    source = args[0] if args and not args[0].startswith("-") else None
    # What the options of --data mean depends on the checkpoint's own data set, so it is read first.
    subject = load(source, next(iter(option_values(args, "--pretrained")), None)) if source else None
    if subject and subject.data and not option_values(args, "--data"):
        made = from_config(subject.data)
        path = f"{type(made).__module__}.{type(made).__qualname__}"
        command.set_defaults({"data": {"class_path": path, "init_args": made.config()["args"]}})
    config = command.parse_args(args)
    if subject is None:
        subject = load(config.checkpoint, config.pretrained)
    if not config.data:
        raise UserError(
            f"{config.checkpoint} doesn't say which data to evaluate on: give --config configs/data/... or --data"
        )
    refuse_secrets(config.as_dict())
    continue_wandb(config.logger, subject.wandb)
    output = _output(config)
    made = command.instantiate_classes(config)
    results = run(subject, made.data, config)
    _report(results, output, made.logger)
    return results


def run(subject: Subject, data: ImageData, config: Namespace) -> Results:
    """Score ``subject`` on ``data`` with a progress bar."""
    settings, protocols = _settings(config)
    to_score = trials(protocols, subject.model.depth, settings)
    data.image_size = image_size(subject.model)
    data.prepare_data()
    data.setup("test" if config.split == "test" else "fit")
    classes = subject.model.config["num_classes"]
    if classes != data.num_classes:
        raise UserError(
            f"the model tells {classes} classes apart, but the data has {data.num_classes}: give other --data"
        )
    batches = data.test_dataloader() if config.split == "test" else data.val_dataloader()
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    runs = len(batches) * len({trial.order for trial in to_score})
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("batch runs"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"evaluating {subject.record['name']}", total=runs)
        scores = evaluate(
            subject.model,
            Preprocess.for_model(subject.model),
            batches,
            to_score,
            fabric,
            settings.seed,
            on_output=lambda: progress.advance(task),
        )
    used = {"protocols": protocols, "draws": settings.draws, "keep": config.keep, "seed": settings.seed}
    return Results(
        model=subject.record,
        data={"name": data.label, **data.config(), "split": config.split, "images": scores[0].images},
        evaluation=used | {"batch_size": batches.batch_size},
        environment=_environment(fabric, config.precision),
        scores=scores,
    )


def _settings(config: Namespace) -> tuple[Settings, list[str]]:
    counts = [text for text in config.orders if text.strip().isdecimal()]
    orders = tuple(Order(text) for text in config.orders if text not in counts)
    if len(counts) > 1 or any(int(text) < 1 for text in counts) or any(len(order) == 0 for order in orders):
        raise UserError("--orders takes one number from 1 up, orders in quotes such as '3 1 2', or both")
    keep = tuple(dict.fromkeys(config.keep or ()))
    settings = Settings(draws=int(counts[0]) if counts else 10, keep=keep, orders=orders, seed=config.seed)
    protocols = config.protocols or (["sequential"] if orders else ["sequential", "arbitrary", "pruned"])
    return settings, list(dict.fromkeys(protocols + (["given"] if orders else [])))


def _environment(fabric: Fabric, precision: str) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else _processor(),
        "precision": precision,
        "layershuffle": __version__,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _output(config: Namespace) -> Path:
    """Where the results go, found and tried before the work: never over earlier ones, unless their name was given.

    Raises:
        UserError: if nothing can be written there.
    """
    path = Path(config.output) if config.output else _unused(config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}): give another --output") from error


def _unused(config: Namespace) -> Path:
    source = Path(config.checkpoint)
    folder, name = (source.parent, source.stem) if source.is_file() else (Path(), source.name.replace(":", "_"))
    candidates = (folder / f"{name}.evaluation{f'-{n}' if n > 1 else ''}.json" for n in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


def _report(results: Results, output: Path, logger: Logger | None) -> None:
    title = f"{results.label} on {results.data['images']} images ({results.data['name']}, {results.data['split']})"
    console = Console()
    found = {name: table(results) for name, table in (("orders", tables.full_depth), ("pruned", tables.by_kept))}
    for name, (header, rows) in found.items():
        if rows:
            console.print(tables.terminal(header, rows, title if name == "orders" else "Pruned: top-1 %"))
    results.save(output)
    plots.overview([results], output.with_suffix(".png"), title)
    console.print(f"results: {output}\nplot: {output.with_suffix('.png')}", soft_wrap=True, highlight=False)
    if isinstance(logger, WandbLogger):
        for name, (header, rows) in found.items():
            if rows:
                logger.log_table(f"evaluation/{name}", columns=header, data=rows)
        logger.log_image("evaluation/overview", [str(output.with_suffix(".png"))])
        for group, scores in results.groups().items():
            logger.experiment.summary["/".join(map(str, ("evaluation", *group)))] = summarise(
                score.top1 for score in scores
            ).mean
        logger.experiment.finish()
