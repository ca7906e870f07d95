"""The published models, which ``layershuffle.load`` and every command know by their names, and where their folders are.

A published model is a folder of ``layershuffle export``, with its card as README.md. Small ones travel with the
package; others are on the Hugging Face hub. Nothing is downloaded unless ``hf-hub:`` stands before the name.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from layershuffle.errors import UserError, is_network_error, last_line
from layershuffle.files import sha256

PACKAGED = Path(__file__).parent / "models" / "pretrained"
"""The folders of the models that travel with the package, with their names."""
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")
"""The names that the weights have in the folder of a model; the first that is there is read."""
HUB = "hf-hub:"
"""Stands before the name of a model that may be downloaded, as timm has it: ``hf-hub:USER/NAME``."""
FILES_ON_HUB = ("*.json", "README.md", "model.safetensors", "layershuffle.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class PublishedModel:
    """A model that anybody can use by its name.

    Attributes:
        name: its name, which is also that of its folder.
        summary: what it is, in a sentence.
        in_sequence: the accuracy on the test images in the original order, in percent.
        any_order: the same in random orders.
        half_dead: the same in random orders with each layer left out with a probability of 1/2.
        four_steps: the same in random orders whose layers run in four groups.
        license: of the weights.
        sha256: of model.safetensors, in hexadecimal.
        repository: its name on the Hugging Face hub, USER/NAME; None if it travels with the package.
    """

    name: str
    summary: str
    in_sequence: float
    any_order: float
    half_dead: float
    four_steps: float
    license: str
    sha256: str
    repository: str | None = None

    def __str__(self) -> str:
        """What it is and how good, in a line."""
        return (
            f"{self.summary} {self.in_sequence:.1f}% in sequence, {self.any_order:.1f}% in any order, "
            f"{self.half_dead:.1f}% with half of the layers dead, {self.four_steps:.1f}% in 4 steps."
        )


MODELS = (
    PublishedModel(
        name="mini_glyphs",
        summary="12 layers of width 48 that read 500 letters, trained in sequence.",
        in_sequence=94.00,
        any_order=0.30,
        half_dead=1.52,
        four_steps=5.28,
        license="apache-2.0",
        sha256="ddc8c44f9b37bdd9e9a032d41f162c784565c6d3968e3f63fc5e12526e16ea1d",
    ),
    PublishedModel(
        name="mini_glyphs_any_width",
        summary="The same, trained further for any order, any layers and any width.",
        in_sequence=91.20,
        any_order=91.62,
        half_dead=86.08,
        four_steps=91.40,
        license="apache-2.0",
        sha256="72e537a71ba5a3c1a1b71a87754de26468ae91774c5d68628d298cbd06b88cc9",
    ),
)
"""The published models. docs/guides/extend.md says how to add one."""

PUBLISHED = {model.name: model for model in MODELS}
"""The same, by name."""


def folder_of(source: str | Path) -> Path | None:
    """The folder of a model that is known by its name, or None if ``source`` is no such name.

    Args:
        source: a published model's name, or ``hf-hub:USER/NAME``, which is downloaded unless it is on this machine.

    Raises:
        UserError: if a published model is not on this machine, the download fails, or its weights are others.
    """
    name = str(source)
    if name.startswith(HUB):
        return _downloaded(name.removeprefix(HUB))
    model = PUBLISHED.get(name)
    if model is None:
        return None
    return PACKAGED / name if model.repository is None else _cached(model, model.repository)


def weights_file(path: str | Path) -> Path:
    """The file of weights that ``path`` means: itself, or that of a folder or of a model that is known by its name."""
    # Unlike Path.is_file, os.path.isfile is False for a name that is too long to be a path.
    if os.path.isfile(path):
        return Path(path)
    folder = Path(path) if os.path.isdir(path) else folder_of(path)
    if folder is None:
        return Path(path)
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{path} is a folder without {' or '.join(WEIGHTS_FILES)}")


def _cached(model: PublishedModel, repository: str) -> Path:
    """The folder that an earlier download of a published model left on this machine."""
    import huggingface_hub as hub

    # Looking into the cache needs no network. A name alone never downloads anything.
    weights = hub.try_to_load_from_cache(repository, WEIGHTS_FILES[0])
    if not isinstance(weights, str):
        raise UserError(f"{model.name} is not on this machine: the name {HUB}{repository} downloads it")
    # Whoever owns the repository can put other weights there, which the scores here are not of.
    if sha256(weights) != model.sha256:
        raise UserError(f"{weights} holds other weights than those that were published as {model.name}: delete it")
    return Path(weights).parent


def _downloaded(repository: str) -> Path:
    """The folder of a model on the hub, which is downloaded or, without a network, was downloaded before."""
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(repository, allow_patterns=list(FILES_ON_HUB)))
    # The hub's client raises errors of several libraries, and which ones differs between its versions.
    except Exception as error:
        if not is_network_error(error):
            raise
        raise UserError(
            f"{repository} could not be fetched from the Hugging Face hub ({type(error).__name__}): {last_line(error)}"
        ) from error
