"""The small file in an experiment's folder that says what it is called and which results it will have.

``layershuffle experiment`` writes it, and the report needs it to name what is missing.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from layershuffle import typed_json
from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole

NAME = "experiment.json"


@dataclass(frozen=True)
class Manifest:
    """What the file says.

    Attributes:
        title: what the experiment is called.
        results: the paths in its folder of all results files that it will have.
    """

    title: str
    results: list[str]

    def missing(self, folder: Path) -> list[str]:
        """The results files that ``folder`` lacks."""
        return [path for path in self.results if not (folder / path).exists()]


def write(folder: Path, manifest: Manifest) -> None:
    """Write the file into an experiment's folder."""
    write_whole(folder / NAME, json.dumps(typed_json.write(manifest), indent=1))


def read(folder: Path) -> Manifest | None:
    """Read the file, which a folder that ``layershuffle experiment`` didn't make lacks.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    content = read_json(path, most=16 << 20, what="the list of an experiment's results")
    try:
        return typed_json.read(Manifest, content, NAME)
    except UserError as error:
        raise UserError(f"{path} is not the list of an experiment's results: remove it to do without it") from error
