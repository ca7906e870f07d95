"""Runs an experiment: does every run that is missing and skips those that are finished."""

import logging
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt
from rich.console import Console

from layershuffle.commands import analyse, evaluate, merge
from layershuffle.commands.interrupts import on_interrupt
from layershuffle.commands.logs import set_up_logging
from layershuffle.commands.parser import Parser
from layershuffle.commands.study_options import add_data
from layershuffle.commands.train import train_command
from layershuffle.config_files import find
from layershuffle.config_parser import ConfigParser
from layershuffle.errors import UserError
from layershuffle.experiments.actions import Action
from layershuffle.experiments.check import check
from layershuffle.experiments.definition import read
from layershuffle.experiments.execution import execute, is_finished
from layershuffle.experiments.runs import Run, list_runs, results_of
from layershuffle.experiments.slurm import submit
from layershuffle.options import add_options
from layershuffle.plurals import counted
from layershuffle.report import manifest
from layershuffle.report.manifest import Manifest

logger = logging.getLogger(__name__)


def parse_train(args: list[str], data: Any) -> Namespace:
    """Read the arguments of a training."""
    return _training_parser().parse_args(args)


@cache
def _training_parser() -> ConfigParser:
    """The parser of all options of a training. It takes as long to make as a training's options take to read."""
    from layershuffle.api.compose import run_parser

    return run_parser()


def parse_evaluate(args: list[str], data: Any) -> Namespace:
    """Read the arguments of an evaluation."""
    return _parse_with_data(evaluate.evaluate_parser(args), args, data)


def parse_analyse(args: list[str], data: Any) -> Namespace:
    """Read the arguments of a study."""
    return _parse_with_data(analyse.analyse_parser(), args, data)


def parse_merge(args: list[str], data: Any) -> Namespace:
    """Read the arguments of a merge."""
    return merge.merge_parser().parse_args(args)


def _parse_with_data(parser: Parser, args: list[str], data: Any) -> Namespace:
    """Read arguments; ``data`` is the data set that the model was trained on, which they don't have to name."""
    add_data(parser, args)
    if data:
        parser.set_defaults({"data": data})
    return parser.parse_args(args)


ACTIONS = {
    "train": Action(train_command, parse_train),
    "evaluate": Action(evaluate.evaluate_command, parse_evaluate),
    "analyse": Action(analyse.analyse_command, parse_analyse),
    "merge": Action(merge.merge_command, parse_merge),
}
"""What runs can do."""


def experiment_command(args: list[str] | None = None) -> None:
    """Run an experiment as ``args`` say, by default those of the process.

    Raises:
        UserError: if the experiment has a mistake, or runs stay missing.
    """
    args = sys.argv[1:] if args is None else args
    config = _parser().parse_args(args)
    path = find(config.experiment, experiment=True)
    folder = config.folder or Path("experiments") / path.stem
    experiment = read(path)
    runs = list_runs(experiment, config.seeds, config.only or ())
    # Pools of processes, and schedulers, start this command once more for each run.
    if config.run:
        perform(_named(config.run, runs), folder)
        return

    # A mistake should be known before the first training, not after it.
    missing = [run for run in runs if not is_finished(run, folder)]
    check(runs if config.dry_run else missing, folder, ACTIONS)
    if config.dry_run:
        print(f"{counted(len(runs), 'run')} in {folder}, {len(missing)} to run")
        for run in runs:
            print(f"{run.name}: {'to run' if run in missing else 'finished'}")
        return

    # The manifest names all runs, also those that --only leaves out, so that the report can say what is missing.
    title = experiment.title or folder.resolve().name
    manifest.write(folder, Manifest(title, results_of(list_runs(experiment, config.seeds))))
    logger.info(
        "%s in %s: %d finished, %d to run", counted(len(runs), "run"), folder, len(runs) - len(missing), len(missing)
    )
    if config.slurm is not None:
        submit(missing, folder, config.slurm, perform)
        return
    with on_interrupt("the same command continues; trainings have saved, and finished runs are kept"):
        _run_here(args, config, runs, missing, folder)


def _parser() -> Parser:
    parser = Parser(
        prog="layershuffle experiment",
        description="Train and evaluate the missing runs of an experiment. Finished runs are skipped, so that the "
        "command can be stopped at any point and started again.",
    )
    parser.add_argument("experiment", help="An experiment that `layershuffle list` shows, or a YAML file of your own.")
    add_options(parser, "seeds", "only", "folder")
    option = parser.add_argument
    option(
        "--jobs",
        type=PositiveInt | None,
        metavar="N",
        help="How many runs to execute at a time (default: one per GPU, or per core up to 4).",
    )
    option(
        "--dry_run", type=bool, default=False, help="Check the experiment, list its runs, and say which are missing."
    )
    option(
        "--slurm",
        type=dict[str, Any] | None,
        help="Submit a SLURM job per missing run, with these parameters of submitit's AutoExecutor, such as "
        "'{slurm_partition: gpu, gpus_per_node: 1, cpus_per_task: 16, timeout_min: 720}'.",
    )
    option(
        "--run",
        metavar="NAME",
        help="Execute this run alone, in this process; the runs that it starts from must be finished. This is for "
        "schedulers other than SLURM.",
    )
    return parser


def perform(run: Run, folder: Path) -> None:
    """Execute a run of the experiment in ``folder``; a SLURM job does so in a process that knows nothing else."""
    set_up_logging()
    execute(run, folder, ACTIONS)


def _named(name: str, runs: Sequence[Run]) -> Run:
    """The run of this name; raises UserError if there is none."""
    for run in runs:
        if run.name == name:
            return run
    raise UserError(f"no run is named {name}: --dry_run lists them all")


def _run_here(
    args: Sequence[str], config: Namespace, runs: Sequence[Run], missing: Sequence[Run], folder: Path
) -> None:
    """Execute the runs that are missing on this machine, and show what all runs have shown."""
    # torch and matplotlib take seconds to import, for which --help needn't wait.
    import torch

    from layershuffle.experiments import local
    from layershuffle.experiments.comparison import compare

    jobs = config.jobs or torch.cuda.device_count() or min(4, local.CORES)
    # Each run is a process of its own, so that one that crashes or fills the memory takes no other with it.
    command = [sys.executable, "-m", "layershuffle", "experiment", *args, "--run"]
    lost = local.run_all(missing, folder, jobs, command)
    console = Console(markup=False, highlight=False)
    # The setups, in the sequence of their first runs.
    setups = dict.fromkeys(run.setup for run in runs)
    for setup in setups:
        runs_of_setup = [run for run in runs if run.setup == setup]
        compare(setup, runs_of_setup, folder, console)
    console.print(f"a page of all results: layershuffle report {folder}", soft_wrap=True)
    if lost:
        raise UserError(f"{lost} of {counted(len(runs), 'run')} failed or never ran; the same command tries them again")
