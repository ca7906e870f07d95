"""Runs an experiment: trains and evaluates every cell that is missing and skips those that are finished."""

import sys
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console

from layershuffle.commands.analyse import analyse_command
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.merge import merge_command
from layershuffle.commands.parser import Parser
from layershuffle.commands.train import train_command
from layershuffle.config_files import find
from layershuffle.errors import UserError
from layershuffle.experiments import cells, plan, runner
from layershuffle.experiments.definition import Cell, list_cells, read

COMMANDS = {"train": train_command, "evaluate": evaluate_command, "analyse": analyse_command, "merge": merge_command}


def experiment_command(args: list[str] | None = None) -> None:
    """Run an experiment as ``args`` say, by default those of the process; raises UserError if cells stay missing."""
    parser = Parser(
        prog="layershuffle experiment",
        description="Train and evaluate what an experiment lacks. Finished cells are skipped: it can be stopped at any "
        "point and started again.",
    )
    option = parser.add_argument
    option("--scale", default="mini", help="an experiment that `layershuffle list` shows, or a YAML file of your own")
    option("--seeds", nargs="+", type=NonNegativeInt, help="one run of every method for each (default: the scale's)")
    option(
        "--only",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="just the cells with such names ('vit_b16_cifar100/*/seed0', or a part such as layershuffle or "
        "layershuffle/seed0), and those that they start from",
    )
    option("--output", type=Path | None, help="checkpoints, results and logs (default: experiments/SCALE)")
    option("--jobs", type=PositiveInt | None, help="cells to run at a time (default: one per GPU, or per core up to 4)")
    option("--dry_run", action="store_true", help="list the cells and which are missing")
    option(
        "--slurm",
        type=dict[str, Any] | None,
        help="submit a SLURM job per missing cell, with these parameters of submitit's AutoExecutor, such as "
        "'{slurm_partition: gpu, gpus_per_node: 1, cpus_per_task: 16, timeout_min: 720}'",
    )
    option(
        "--cell",
        help="run this one cell and no other, in this process; those that it starts from must be finished. For "
        "schedulers other than SLURM",
    )
    args = sys.argv[1:] if args is None else args
    config = parser.parse_args(args)
    path = find(config.scale, experiment=True)
    folder = config.output or Path("experiments") / path.stem
    experiment = read(path)
    wanted = list_cells(experiment, config.seeds, config.only)
    if config.cell:
        chosen = next((cell for cell in wanted if cell.name == config.cell), None)
        if not chosen:
            raise UserError(f"no cell is named {config.cell}: --dry_run lists them all")
        perform(chosen, folder)
        return
    missing = [cell for cell in wanted if not cells.finished(cell, folder)]
    console = Console(markup=False, highlight=False)
    if config.dry_run:
        console.print(runner.plan(wanted, missing, folder))
        return
    plan.write(folder, experiment.title, list_cells(experiment, config.seeds))
    console.print(f"{len(wanted)} cells in {folder}: {len(wanted) - len(missing)} finished, {len(missing)} to run")
    if config.slurm is not None:
        runner.submit(missing, folder, config.slurm, console, perform)
        return
    jobs = config.jobs or torch.cuda.device_count() or min(4, runner.CORES)
    again = [sys.executable, "-m", "layershuffle", "experiment", *args, "--cell"]
    lost = runner.run(missing, folder, jobs, console, again)
    for setup in dict.fromkeys(cell.name.partition("/")[0] for cell in wanted):
        runner.compare(setup, [cell for cell in wanted if cell.name.startswith(f"{setup}/")], folder, console)
    if lost:
        raise UserError(f"{lost} of {len(wanted)} cells are missing; the same command tries them again")


def perform(cell: Cell, folder: Path) -> None:
    """Run a cell of the experiment in ``folder``."""
    cells.run(cell, folder, COMMANDS)
