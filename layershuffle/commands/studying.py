"""What the commands that study a model share: their options, and how they print and save their results."""

import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console

from layershuffle.checkpoints.loading import load, trained_on
from layershuffle.commands.parser import Parser, option_values
from layershuffle.data import ImageData, from_config
from layershuffle.errors import UserError
from layershuffle.evaluation.study import MOST_IMAGES, Study, make_fabric
from layershuffle.results import overview, tables
from layershuffle.results.record import Results, Score, summarise
from layershuffle.training import wandb_runs


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
    parser.add_argument("--pretrained", type=str | None, help="weights for a timm model, if not to be fetched")
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu", "mps"], default="auto", help="where to run")
    parser.add_argument(
        "--precision",
        choices=["32-true", "bf16-mixed", "16-mixed", "auto"],
        default="32-true",
        help="of the forward pass; auto: 32-true or bf16-mixed, whichever is measured to be faster for this model here",
    )
    parser.add_argument("--compile", action="store_true", help="compile the layers: worth its minute on large runs")
    parser.add_argument(
        "--batch_size",
        type=PositiveInt | Literal["auto"] | None,
        help=f"images per batch; auto: the most that fit the GPU's memory, up to {MOST_IMAGES} (default: the data's "
        "eval_batch_size)",
    )
    parser.add_argument("--output", type=str | None, help="the results file (default: beside the checkpoint)")
    return parser


class StudyCommand(Study):
    """The study that a command line asks for. It reports its results to the terminal, to files and to W&B.

    Args:
        parser: made by ``study_parser``.
        args: the command line, by default that of the process.
        kind: what the results file is named after.
        shared: whether the processes that torchrun starts share the images; otherwise there must be just one.

    Raises:
        UserError: in one sentence for everything a user can get wrong.
    """

    def __init__(
        self, parser: Parser, args: list[str] | None = None, kind: str = "evaluation", shared: bool = False
    ) -> None:
        self.config = config = _parse(parser, sys.argv[1:] if args is None else args)
        self.kind = kind
        loaded = load(config.checkpoint, config.pretrained)
        wandb_runs.continue_wandb(config.get("logger"), loaded.wandb)
        self._check_output()
        made = parser.instantiate_classes(config)
        self.logger = made.get("logger")
        fabric = make_fabric(config.accelerator, config.precision, loaded.model, shared)
        super().__init__(loaded, made.data, fabric, config.split, config.batch_size, config.compile, config.seed)

    def report(
        self, scores: list[Score], evaluation: dict[str, Any], measures: dict[str, Any] | None = None
    ) -> Results:
        """Make the results of what was found. The first process prints and saves them, and sends them to W&B.

        Takes the arguments of ``results``.
        """
        results = self.results(scores, evaluation, measures or {})
        if not self.fabric.is_global_zero:
            return results
        output = self._output()
        results.save(output)
        console = Console(markup=False)
        title = f"{results.label} on {results.data['images']} images ({results.data['name']}, {results.data['split']})"
        found = tables.of(results)
        drawn = overview.draw(results, output, title)
        for name, (header, rows) in found.items():
            console.print(tables.terminal(header, rows, title if name == "orders" else f"{name}: top-1 %"))
        for line in (f"results: {output}", *(f"plot: {path}" for path in drawn.values())):
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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            raise UserError(f"{path} can't be written ({error.strerror}): give another --output") from error


def _parse(parser: Parser, args: list[str]) -> Namespace:
    """Parse the command line, with the data set that the checkpoint records as the default of --data.

    That default decides which options --data has, so it is looked up before the options are parsed. A class outside the
    package has to be named with --data, and the recorded arguments are its defaults then too.
    """
    args = parser.expanded(args)
    named = next(reversed(option_values(args, "--data")), None)
    wanted = args and not args[0].startswith("-") and (named is None or "." in named)
    recorded = trained_on(args[0]) if wanted else None
    missing = None
    if recorded and named in (None, recorded.get("class") if isinstance(recorded, dict) else None):
        try:
            data = from_config(recorded, trusted=named)
            path = f"{type(data).__module__}.{type(data).__qualname__}"
            parser.set_defaults({"data": {"class_path": path, "init_args": data.config()["args"]}})
        except UserError as error:
            if named or not option_values(args, "--config"):  # a config may name the data set
                raise
            missing = error
    config = parser.parse_args(args)
    if not config.data:
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
        mean = summarise(score.top1 for score in scores).mean
        logger.experiment.summary["/".join(map(str, ("evaluation", *group)))] = mean
    logger.experiment.finish()
