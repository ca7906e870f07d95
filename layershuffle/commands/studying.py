"""What the commands that study a model share: their options, and how they print and save their results."""

import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from layershuffle.checkpoints.authors import keep_classes
from layershuffle.checkpoints.loading import load, trained_on
from layershuffle.commands.parser import Parser
from layershuffle.config_parser import option_values
from layershuffle.data import DataConfig, ImageData, from_config
from layershuffle.errors import UserError
from layershuffle.evaluation.device import MOST_IMAGES, largest_evaluation_batch, make_fabric
from layershuffle.evaluation.scoring import evaluate
from layershuffle.files import write_whole
from layershuffle.hardware import device_name
from layershuffle.models.model import Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results import (
    DataInfo,
    Environment,
    EvaluationInfo,
    Measure,
    ModelInfo,
    Results,
    Score,
    figures,
    summarise,
    tables,
)
from layershuffle.training import wandb_runs
from layershuffle.training.resume import place
from layershuffle.version import __version__

LOWEST = 12
"""So many classes, those of the lowest accuracy, are printed; the CSV file has all."""


def study_parser(prog: str, description: str, split: str = "test") -> Parser:
    """The options that every study has. The data comes from the checkpoint unless it is given."""
    parser = Parser(prog=prog, description=description, usage="%(prog)s CHECKPOINT [CONFIG ...] [options]")
    parser.add_argument(
        "checkpoint",
        help="a checkpoint, a folder with one of the LayerShuffle authors' checkpoints, or the name of a timm model",
    )
    parser.add_argument("--config", action="config", help="a file with some of these options, such as a data config")
    parser.add_argument("--seed", type=int, default=0, help="decides everything random")
    parser.add_subclass_arguments(ImageData, "data", required=False, help="the data set (default: the checkpoint's)")
    parser.add_argument("--split", choices=["test", "val"], default=split, help="which of its images to use")
    parser.add_argument(
        "--pretrained", type=str | None, help="weights for a timm model, if not to be fetched: a file, or 'random'"
    )
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu", "mps"], default="auto", help="where to run")
    parser.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed", "16-mixed", "auto"],
        default="32-true",
        help="of the forward pass; auto: 32-true or bf16-mixed, whichever is measured to be faster for this model here",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the layers; it takes about a minute",
    )
    parser.add_argument(
        "--batch_size",
        type=PositiveInt | Literal["auto"] | None,
        help=f"images per batch; auto: the most that fit the GPU's memory, up to {MOST_IMAGES} (default: the data's "
        "eval_batch_size)",
    )
    parser.add_argument("--output", type=str | None, help="the results file (default: beside the checkpoint)")
    return parser


class Study:
    """What a command line asks to study: a model, images and a device. Its results go to the terminal, files and W&B.

    Args:
        parser: made by ``study_parser``.
        args: the command line, by default that of the process.
        kind: what the results file is named after.
        shared: whether the processes that torchrun starts share the images; otherwise there must be just one.

    Attributes:
        output: the results file, once ``report`` has written it.
    """

    def __init__(
        self, parser: Parser, args: list[str] | None = None, kind: str = "evaluation", shared: bool = False
    ) -> None:
        self.config = config = parse(parser, sys.argv[1:] if args is None else args)
        self.kind = kind
        torch.manual_seed(config.seed)
        classes = parser.instantiate_classes(config).data.num_classes if config.pretrained == "random" else None
        loaded = load(config.checkpoint, config.pretrained, classes)
        self.record = loaded.record
        self.model = model = loaded.model
        wandb_runs.continue_wandb(config.get("logger"), loaded.wandb)
        place(config.get("logger"))
        self._check_output()
        made = parser.instantiate_classes(config)
        self.logger = made.get("logger")
        self.fabric = fabric = make_fabric(config.accelerator, config.precision, model, shared)
        self.data: ImageData = made.data
        self.data.device, self.data.ranks, self.data.rank = fabric.device, fabric.world_size, fabric.global_rank
        self.preprocess = self.data.prepare_for(*(loaded.image_format or model.image_format))
        with fabric.rank_zero_first():
            self.data.prepare_data()
        self.data.setup("test" if config.split == "test" else "fit")
        classes, needed = model.config["num_classes"], self.data.num_classes
        if loaded.authors and classes > needed:
            keep_classes(model, needed)
            self.record["config"]["num_classes"] = needed
            self.record["classes"] = f"the first {needed} of {classes}"
            if fabric.is_global_zero:
                print(f"of the {classes} classes of the authors' checkpoint, the first {needed} are evaluated")
        elif classes != needed:
            raise UserError(f"the model tells {classes} classes apart, but the data has {needed}: give other --data")
        self.batch_size = config.batch_size or self.data.evaluation_batch
        if config.batch_size == "auto":
            self.batch_size = largest_evaluation_batch(model, self.data, config.split, fabric)
        if config.compile:
            model.compile()
        self.batches = self.data.loader(config.split, self.batch_size)

    def score(
        self,
        to_score: list[Trial],
        batches: DataLoader | None = None,
        what: str = "evaluating",
        on_output: Callable[[Order, Output, Tensor], None] = lambda *_: None,
    ) -> list[Score]:
        """The scores of ``to_score`` on ``batches``, by default all of them, with a progress bar; see ``evaluate``."""
        batches = batches or self.batches
        orders = {trial.order for trial in to_score if not isinstance(trial.order, str)}

        def advance(*output: Any) -> None:
            on_output(*output)
            bar.advance(task)

        with self.progress(f"{what} {self.record['name']}", len(batches) * len(orders)) as (bar, task):
            return evaluate(self.model, self.preprocess, batches, to_score, self.fabric, self.config.seed, advance)

    @contextmanager
    def progress(self, what: str, total: int, unit: str = "batch runs") -> Iterator[tuple[Progress, TaskID]]:
        """A progress bar that goes away when it is done."""
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit)]
        console = Console(stderr=True)
        disable = not (self.fabric.is_global_zero and console.is_terminal)  # In a file, rich would leave an empty line.
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=disable) as bar:
            yield bar, bar.add_task(what, total=total)

    def report(self, scores: list[Score], used: EvaluationInfo, measures: Sequence[Measure] = ()) -> Results:
        """Make the results of what was found with the settings ``used``.

        The first process also prints them, saves them, and sends them to W&B.
        """
        config, device = self.config, device_name(self.fabric.device)
        if self.fabric.device.type != "cuda":
            device = f"CPU: {device}, {torch.get_num_threads()} threads"
        images = scores[0].images if scores else len(self.batches.dataset)
        data = self.data.config()
        results = Results(
            model=ModelInfo.from_json(self.record),
            data=DataInfo(
                name=self.data.label,
                data_class=data.name,
                args=data.args,
                split=config.split,
                images=images,
                classes=self.data.class_names,
            ),
            evaluation=replace(used, seed=config.seed, batch_size=self.batch_size),
            environment=Environment(
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                device=device,
                processes=self.fabric.world_size,
                precision=self.fabric._precision.precision,  # the one asked for, or what the device has instead
                compiled=config.compile,
                layershuffle=__version__,
                torch=torch.__version__,
                timm=version("timm"),
                lightning=version("lightning"),
                python=platform.python_version(),
            ),
            scores=scores,
            measures=tuple(measures),
        )
        if not self.fabric.is_global_zero:
            return results
        self.output = output = self._output()
        results.save(output)
        console = Console(markup=False)
        if len(trained := self.model.order.layers) < self.model.depth:
            console.print(
                f"note: the model was trained with {len(trained)} of its {self.model.depth} layers, so all layers "
                f"means those of its base order: {self.model.order}",
                highlight=False,
            )
        title = f"{results.label} on {results.data.images} images ({results.data.name}, {results.data.split})"
        found = tables.of(results)
        drawn = figures.draw(results, output, title)
        for name, (header, rows) in found.items():
            shown = rows[:LOWEST] if name == "classes" else rows
            heading = title if name == "orders" else f"{name}: top-1 %"
            heading += f", the lowest {LOWEST} of {len(rows)}" if len(shown) < len(rows) else ""
            console.print(tables.terminal(header, shown, heading))
        if any("±" in cell for _, rows in found.values() for row in rows for cell in row):
            console.print(tables.ONE_SEED)
        if nan := [score for score in scores if score.nan]:
            each = [f"{s.nan} in order {s.order or tables.name_of((s.protocol, *s.variant.values()))}" for s in nan]
            more = f", and some in {len(nan) - 3} more, which the results file names" if len(nan) > 3 else ""
            what = f"of {images} images these count as wrong, because their logits are not numbers (NaN)"
            print(f"warning: {what}: {', '.join(each[:3])}{more}", file=sys.stderr)
        saved: dict[Path, tables.Table] = {}
        for measure in results.measures:
            for name, table in measure.files(results).items():
                saved[output.with_suffix(f".{name}.csv")] = table
        for path, table in saved.items():
            write_whole(path, tables.as_csv(*table))
        lines = [f"plot: {path}" for path in drawn.values()] + [f"table: {path}" for path in saved]
        for line in (f"results: {output}", *lines):
            console.print(line, soft_wrap=True, highlight=False)
        if isinstance(self.logger, WandbLogger):
            wandb_runs.begin(self.logger)
            wandb_runs.forgiving(_send)(self.logger, results, found, drawn)
        return results

    def _output(self) -> Path:
        """The results file: what --output names, or else a new file beside the checkpoint."""
        if self.config.output:
            return Path(self.config.output)
        source = Path(self.config.checkpoint)
        stem = source.with_suffix("") if source.is_file() else source.name.replace(":", "_")
        paths = (Path(f"{stem}.{self.kind}{f'-{n}' if n > 1 else ''}.json") for n in count(1))
        return next(path for path in paths if not path.exists())

    def _check_output(self) -> None:
        """Raise a UserError before the work begins if the results can't be written."""
        path = self._output()
        if path.suffix != ".json" or path.is_dir():
            raise UserError(f"--output {path} is not the name of a file that ends in .json")
        if path.exists():
            try:
                Results.load(path)
            except UserError as error:
                raise UserError(f"{path} exists and is no results file: give another --output") from error
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}): give another --output") from error


def parse(parser: Parser, args: list[str], required: bool = True) -> Namespace:
    """Parse the command line, with the data set that the checkpoint records as the default of --data.

    That default decides which options --data has, so it is looked up before the options are parsed. A class outside the
    package has to be named with --data, and the recorded arguments are its defaults then too. If the data is not
    ``required`` and not known, there is none.
    """
    args = parser.expanded(args)
    named = next(reversed(option_values(args, "--data")), None)
    wanted = args and not args[0].startswith("-") and (named is None or "." in named)
    recorded = trained_on(args[0]) if wanted else None
    missing = None
    if recorded and named in (None, recorded.get("class") if isinstance(recorded, dict) else None):
        try:
            data = from_config(DataConfig.from_dict(recorded), trusted=named)
            path = f"{type(data).__module__}.{type(data).__qualname__}"
            parser.set_defaults({"data": {"class_path": path, "init_args": data.config().args}})
        except UserError as error:
            # A config may name the data set.
            if named or (required and not option_values(args, "--config")):
                raise
            missing = error
    config = parser.parse_args(args)
    if required and not config.data:
        load(config.checkpoint, config.pretrained)  # If there is no such model, the error should say that instead.
        raise missing or UserError(
            f"{config.checkpoint} doesn't say which data to evaluate on: name a data config, such as imagenet, after it"
        )
    return config


def _send(logger: WandbLogger, results: Results, found: dict[str, Any], drawn: dict[str, Path]) -> None:
    for name, (header, rows) in found.items():
        logger.log_table(f"evaluation/{name}", columns=header, data=rows)
    for name, path in drawn.items():
        logger.log_image(f"evaluation/{name}", [str(path)])
    for group, scores in results.groups().items():
        name = "/".join(map(str, group))
        logger.experiment.summary[f"evaluation/{name}"] = summarise(score.top1 for score in scores).mean
        calibration = fmean(score.ece for score in scores if score.ece is not None)
        logger.experiment.summary[f"evaluation ECE/{name}"] = calibration
    logger.experiment.finish()
