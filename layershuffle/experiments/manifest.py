"""The small file in an experiment's folder that says what it is called and which results it will have.

The report needs it to name what is missing.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from layershuffle.errors import UserError
from layershuffle.experiments.runs import Run
from layershuffle.files import read_json, write_whole

NAME = "experiment.json"


def write(folder: Path, title: str | None, runs: Iterable[Run]) -> None:
    """Keep the title, and the paths in ``folder`` of the results files that ``runs`` make."""
    # Only JSON files are results: trainings and merges leave checkpoints.
    results = []
    for run in runs:
        results += [f"{run.name}/{task.output}" for task in run.tasks if task.output.endswith(".json")]
    content = {"title": title or folder.resolve().name, "results": results}
    write_whole(folder / NAME, json.dumps(content, indent=1))


def read(folder: Path) -> tuple[str, list[str] | None]:
    """The title, and the paths of the results files that belong to the experiment but that ``folder`` lacks.

    A folder that ``layershuffle experiment`` didn't make has its own name for a title, and None in place of the paths.
    Raises UserError if the file is damaged.
    """
    if not (folder / NAME).is_file():
        return folder.resolve().name, None
    content = read_json(folder / NAME, most=16 << 20, what="the list of an experiment's results")
    try:
        missing = [path for path in content["results"] if not (folder / path).exists()]
        return str(content["title"]), missing
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{folder / NAME} is not the list of an experiment's results: remove it to do without it"
        ) from error
