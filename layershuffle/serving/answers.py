"""The file of answers, to which pictures that are classified are appended, and which says what is left to do."""

import json
import os
from typing import Any

from layershuffle.errors import UserError
from layershuffle.serving.json_lines import JsonLines


class Answers(JsonLines):
    """Appends what a model says of pictures. The first line is about the model; each other one is about a picture.

    Args:
        path: the file, which may already have answers of the model.
        model: what is known of the model, as results files have it.
        weights: the fingerprint of its weights, by which it is known.

    Attributes:
        done: the pictures that have a line.
        unreadable: how many of them could not be read.

    Raises:
        UserError: if the file can't be written, is something else, is being written by another process, is
            damaged, or has answers of another model.
    """

    def __init__(self, path: str | os.PathLike, model: dict[str, Any], weights: str) -> None:
        super().__init__(path, "model", "a file of answers")
        self.done: set[str] = set()
        self.unreadable = 0
        try:
            has_lines = self._read(weights)
            if not has_lines:
                super().append({"model": model, "weights": weights})
        # The file is locked from here on, and a caller who gets an exception has nothing to close.
        except BaseException:
            self.close()
            raise

    def _read(self, weights: str) -> bool:
        """Read what the file already has, and return whether it has any line."""
        number = 0
        try:
            with open(self.path, encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    content = json.loads(line)
                    if number > 1:
                        self._count(content)
                    # A name is not enough: a training that goes on writes other weights to the same file.
                    elif content["weights"] != weights:
                        name = content["model"]["name"]
                        raise UserError(
                            f"{self.path} has answers of another model ({name}): give the name of a new file"
                        )
        except UserError:
            raise  # It is a ValueError, too.
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{self.path} is damaged: line {number} is not an answer") from error
        return number > 0

    def append(self, content: dict[str, Any]) -> None:
        """Append what is known of a picture, whose path is ``content["picture"]``; raises as ``JsonLines.append``."""
        super().append(content)
        self._count(content)

    def _count(self, content: dict[str, Any]) -> None:
        self.done.add(content["picture"])
        if "unreadable" in content:
            self.unreadable += 1
