"""Runs an experiment: trains and evaluates every cell that is missing and skips those that are finished."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from layershuffle.commands.analyse import analyse_command
from layershuffle.commands.errors import run
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.merge import merge_command
from layershuffle.commands.parser import Parser
from layershuffle.commands.train import train
from layershuffle.config_files import find
from layershuffle.errors import UserError
from layershuffle.reproduction import cells, runner
from layershuffle.reproduction.experiments import Cell, list_cells, read

COMMANDS = {"train": train, "evaluate": evaluate_command, "analyse": analyse_command, "merge": merge_command}


def parser() -> Parser:
    """The options."""
    parser = Parser(
        prog="layershuffle experiment",
        description="Train and evaluate what an experiment lacks. Finished cells are skipped: it can be stopped at any "
        "point and started again.",
    )
    parser.add_argument(
        "--scale", default="mini", help="an experiment that `layershuffle list` shows, or a YAML file of your own"
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=None, help="one run of every method for each (default: the scale's)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="just the cells with such names ('vit_b16_cifar100/*/seed0', or a part such as layershuffle or "
        "layershuffle/seed0), and those that they start from",
    )
    parser.add_argument(
        "--output", type=Path | None, default=None, help="checkpoints, results and logs (default: experiments/SCALE)"
    )
    parser.add_argument(
        "--jobs",
        type=int | None,
        default=None,
        help="cells to run at a time (default: one per GPU, or per core up to 4)",
    )
    parser.add_argument("--dry_run", action="store_true", help="list the cells and which are missing")
    parser.add_argument(
        "--slurm",
        type=dict[str, Any] | None,
        default=None,
        help="submit a SLURM job per missing cell, with these parameters of submitit's AutoExecutor, such as "
        "'{slurm_partition: gpu, gpus_per_node: 1, cpus_per_task: 16, timeout_min: 720}'",
    )
    return parser


def experiment_command(args: list[str] | None = None) -> None:
    """Run an experiment as ``args`` say, by default those of the process.

    Raises:
        UserError: before anything runs, if the arguments or the experiment's file are wrong; after everything has run,
            if cells are still missing.
    """
    config = parser().parse_args(args)
    path = find(config.scale, experiment=True)
    folder = config.output or Path("experiments") / path.stem
    if config.jobs is not None and config.jobs < 1:
        raise UserError(f"--jobs is how many cells to run at a time, from 1 up, not {config.jobs}")
    wanted = list_cells(read(path), config.seeds, config.only)
    missing = [cell for cell in wanted if not cells.finished(cell, folder)]
    console = Console(markup=False, highlight=False)
    if config.dry_run:
        console.print(runner.plan(wanted, missing, folder))
        return
    console.print(f"{len(wanted)} cells in {folder}: {len(wanted) - len(missing)} finished, {len(missing)} to run")
    if config.slurm is not None:
        runner.submit(missing, folder, config.slurm, console, perform)
        return
    jobs = config.jobs or torch.cuda.device_count() or min(4, runner.CORES)
    lost = runner.run(missing, folder, jobs, console, perform_logged)
    for setup in dict.fromkeys(cell.name.partition("/")[0] for cell in wanted):
        runner.compare(setup, [cell for cell in wanted if cell.name.startswith(f"{setup}/")], folder, console)
    if lost:
        raise UserError(f"{lost} of {len(wanted)} cells are missing; the same command tries them again")


def perform(cell: Cell, folder: Path) -> None:
    """Run a cell of the experiment in ``folder``."""
    cells.run(cell, folder, COMMANDS)


def perform_logged(cell: Cell, folder: Path) -> None:
    """Run a cell in a process of its own, whose output goes to the cell's log."""
    (folder / cell.name).mkdir(parents=True, exist_ok=True)
    with (folder / cell.name / "log.txt").open("a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    run(lambda: perform(cell, folder))
