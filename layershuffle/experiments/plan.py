"""What an experiment is called and which results it will have, for its report; a small file in its folder."""

import json
from collections.abc import Iterable
from pathlib import Path

from layershuffle.errors import UserError
from layershuffle.experiments.definition import Cell
from layershuffle.files import read_json, write_whole

NAME = "experiment.json"


def write(folder: Path, title: str | None, cells: Iterable[Cell]) -> None:
    """Keep the title, and the paths in ``folder`` of the results files that ``cells`` make."""
    results = [f"{cell.name}/{task.output}" for cell in cells for task in cell.tasks if task.output.endswith(".json")]
    write_whole(folder / NAME, json.dumps({"title": title or folder.resolve().name, "results": results}, indent=1))


def read(folder: Path) -> tuple[str, list[str] | None]:
    """The title, and the paths of the results files that the experiment asked for but ``folder`` lacks.

    A folder that ``layershuffle experiment`` didn't make has its own name for a title, and None in place of the paths.
    Raises UserError if the file is damaged.
    """
    if not (folder / NAME).is_file():
        return folder.resolve().name, None
    content = read_json(folder / NAME, most=16 << 20, what="the plan of an experiment")
    try:
        return str(content["title"]), [path for path in content["results"] if not (folder / path).exists()]
    except (TypeError, KeyError) as error:
        raise UserError(f"{folder / NAME} is not the plan of an experiment: remove it to do without it") from error
