"""Uploads an exported folder to the Hugging Face hub."""

import glob
import logging
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from layershuffle.checkpoints.exported import (
    DESCRIPTION_FILE,
    MORE_WEIGHTS_FILE,
    REFINE_FILE,
    WEIGHTS_FILE,
    WIDE_FILE,
)
from layershuffle.checkpoints.programs import MANIFEST, program_files, read_manifest
from layershuffle.errors import UserError, is_network_error, last_line
from layershuffle.version import __version__

logger = logging.getLogger(__name__)

FILES = frozenset(
    {
        "README.md",
        "config.json",
        DESCRIPTION_FILE,
        MANIFEST,
        MORE_WEIGHTS_FILE,
        REFINE_FILE,
        WEIGHTS_FILE,
        WIDE_FILE,
    }
)
"""The files that ``layershuffle.export`` and ``prune`` write, but for programs, which are named in their manifest."""


@dataclass(frozen=True)
class PushedModel:
    """A model on the hub.

    Attributes:
        url: its page.
        is_private: whether only its owner can see it.
    """

    url: str
    is_private: bool


def push(
    folder: str | PathLike[str], name: str, *, public: bool = False, message: str = "Upload with layershuffle"
) -> PushedModel:
    """Upload a folder of ``layershuffle.export`` to the Hugging Face hub, as whoever is logged in there.

    Args:
        folder: the exported folder, or what ``layershuffle.export`` returned.
        name: the model's name on the hub, USER/NAME.
        public: whether everybody can see a new model. One that is there already stays as it is.
        message: the commit message.

    Raises:
        UserError: if the folder is no export, or the hub refuses it or can't be reached.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION_FILE).is_file() and not (folder / MANIFEST).is_file():
        raise UserError(f"{folder} is not a folder of layershuffle export")

    files = _files_to_upload(folder)

    # Slow to import, and not needed above.
    from huggingface_hub import HfApi

    hub = HfApi(library_name="layershuffle", library_version=__version__)
    try:
        repository = hub.create_repo(name, private=not public, exist_ok=True).repo_id
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, allow_patterns=files)
        is_private = hub.model_info(repository).private
    # The hub's client raises errors of several libraries, and which ones differs between its versions.
    except Exception as error:
        objection = _objection(error, name)
        if objection:
            raise UserError(objection) from error
        raise
    return PushedModel(f"{hub.endpoint}/{repository}", bool(is_private))


def _files_to_upload(folder: Path) -> list[str]:
    """The names of the files in an exported folder; those that export doesn't write are logged and left out."""
    written = set(FILES)
    if (folder / MANIFEST).is_file():
        written.update(program_files(read_manifest(folder)))
    files = []
    left_out = []
    for path in sorted(folder.iterdir()):
        # Whatever else lies there may be private, and a link may lead to anything.
        if path.name in written and path.is_file() and not path.is_symlink():
            files.append(glob.escape(path.name))
        else:
            left_out.append(path.name)
    if left_out:
        logger.warning("not uploaded, because export doesn't write them: %s", ", ".join(left_out))
    return files


def _objection(error: Exception, name: str) -> str | None:
    """What the hub objects to, or None if the error is not the hub's."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = last_line(error)
    if status == 401:
        return "the hub doesn't know who you are: run `hf auth login`, or set HF_TOKEN to a token that may write"
    if status == 403:
        return f"the hub doesn't let you write to {name}: use a token that may write, and a USER that is you or yours"
    if status:
        return f"the hub refused {name} (status {status}): {reason}"
    if type(error).__name__ == "HFValidationError":
        return f"{name} can't be a name on the hub, write USER/NAME: {reason}"
    if is_network_error(error):
        return f"the hub can't be reached ({type(error).__name__}: {reason}): try again when there is a network"
    return None
