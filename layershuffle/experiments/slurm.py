"""Submits the runs of an experiment as SLURM jobs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from layershuffle.errors import UserError
from layershuffle.experiments.runs import Run
from layershuffle.files import write_whole

logger = logging.getLogger(__name__)

JOB = "slurm_job"
"""This file in a run's folder holds the number of its job."""


def submit(
    runs: Sequence[Run], folder: Path, parameters: Mapping[str, Any], execute: Callable[[Run, Path], None]
) -> None:
    """Submit one SLURM job per run, each to start once the runs that it needs have succeeded.

    Args:
        runs: the runs, each after those it needs. A run whose job hasn't ended gets no other one.
        folder: of the experiment.
        parameters: of submitit's AutoExecutor.
        execute: what a job does with its run and the folder.

    Raises:
        UserError: if submitit is not installed, there is no SLURM here, or it refuses the parameters.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("SLURM jobs need submitit: pip install 'layershuffle[slurm]'") from error

    # Absolute, because jobs may start in another folder.
    logs = folder.absolute() / "slurm"
    jobs: dict[str, str] = {}
    try:
        executor = submitit.AutoExecutor(logs, cluster="slurm")
        for run in runs:
            # A run that an earlier call of the same command has submitted may still wait for its turn.
            path = folder / run.name / JOB
            earlier: Any = submitit.SlurmJob(logs, path.read_text()) if path.is_file() else None
            if earlier and not earlier.done():
                jobs[run.name] = earlier.job_id
                logger.info("%s: job %s has not ended", run.name, earlier.job_id)
                continue

            # A needed run without a job is finished: only the missing ones are submitted.
            needed = [jobs[name] for name in run.needs if name in jobs]
            executor.update_parameters(**_job_parameters(run, parameters, needed))
            jobs[run.name] = executor.submit(execute, run, folder.absolute()).job_id
            write_whole(path, jobs[run.name])
            logger.info("%s: job %s", run.name, jobs[run.name])
    # What submitit raises where there is no sbatch, a parameter is unknown or has a wrong type, or SLURM refuses a job.
    except (RuntimeError, NameError, TypeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"SLURM took {len(jobs)} of {len(runs)} jobs, then: {error}") from error
    logger.info("the same command without --slurm runs what they leave undone, and shows the results")


def _job_parameters(run: Run, parameters: Mapping[str, Any], needed: Sequence[str]) -> dict[str, Any]:
    """The parameters of a run's job, which starts after the jobs ``needed``."""
    # The user may have parameters of this kind, too.
    additional = dict(parameters.get("slurm_additional_parameters") or {})
    if needed:
        additional["dependency"] = f"afterok:{':'.join(needed)}"
    return {"name": run.name.replace("/", "-"), **parameters, "slurm_additional_parameters": additional}
