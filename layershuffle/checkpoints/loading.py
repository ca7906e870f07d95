"""Loads any model: a checkpoint, an exported folder, one of the authors' checkpoints, or a model by its name."""

import logging
import os
from dataclasses import replace
from pathlib import Path

from layershuffle.checkpoints.authors import load_authors_folder
from layershuffle.checkpoints.checkpoint import is_file_path, read_checkpoint
from layershuffle.checkpoints.exported import DESCRIPTION_FILE, is_exported, load_exported, read_description
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.named import is_config, load_config, load_timm
from layershuffle.checkpoints.programs import MANIFEST
from layershuffle.checkpoints.training_data import class_names
from layershuffle.config_files import nearest
from layershuffle.data import DataConfig
from layershuffle.errors import UserError
from layershuffle.files import sha256
from layershuffle.models.fitting import create_fitting
from layershuffle.models.timm_models import is_timm_model
from layershuffle.published_models import PUBLISHED, folder_of
from layershuffle.results import ModelInfo

logger = logging.getLogger(__name__)


def load(
    source: str | os.PathLike[str],
    pretrained: str | None = None,
    num_classes: int | None = None,
    img_size: int | None = None,
) -> LoadedModel:
    """Load a model to use it; ``layershuffle.load`` is this function.

    Args:
        source: a checkpoint of ``layershuffle train``, a folder of ``layershuffle export``, a folder with one of the
            LayerShuffle authors' checkpoints (config.json and model.safetensors or pytorch_model.bin), or a name: of a
            published model, such as ``mini_glyphs``, of a timm model, or of a model's config, such as ``vit_b16``.
            ``hf-hub:USER/NAME`` downloads such a folder from the Hugging Face hub. What ``layershuffle.train``,
            ``merge`` and ``export`` return stands for its checkpoint or its folder.
        pretrained: for a timm model or a config, a path to its weights, whose classes it then has, or "random"; by
            default they are fetched from the Hugging Face hub.
        num_classes: the number of classes of a timm model or a config with random weights or a random classifier.
            With 0 the classifier is left out, and the logits are the features that it would read.
        img_size: the height and the width of the images of a timm model or a config, in pixels; by default those of
            its weights. Any other model keeps the size that it was trained with.

    Raises:
        UserError: if it is none of these or can't be read.
    """
    name = os.fspath(source)
    if not name.strip():
        raise UserError("the model has an empty name: give the path of a checkpoint, or a name")
    if "://" in name:
        raise UserError(f"{name} is an address: fetch the file first, and give its path")
    path = Path(name)

    # A file or folder comes before a model of the same name.
    is_there = os.path.exists(path)
    folder = None
    if not is_there:
        folder = folder_of(name)

    # Only timm's models can be made for another size: those in files have position embeddings of a fixed length.
    if img_size is not None and (is_there or folder):
        raise UserError(
            f"{name} keeps the images' size of its training, only timm's models take an img_size: leave it out"
        )
    if folder:
        loaded = _load_folder(folder)
        # Results name the model, which says more than the folder in some cache that its name stands for.
        return replace(loaded, info=replace(loaded.info, name=name, source=name))
    if os.path.isdir(path):
        return _load_folder(path)
    if not is_there and is_config(name):
        return load_config(name, pretrained, num_classes, img_size)
    if is_file_path(name):
        return _load_checkpoint(path)
    if not is_timm_model(name):
        suggestion = nearest(name, PUBLISHED)
        raise UserError(
            f"there is no file or folder {name}, and timm has no model named {name}{suggestion}: give the path "
            "of a checkpoint, or a name that `layershuffle list models` or timm.list_models('vit*') shows"
        )
    return load_timm(name, pretrained, num_classes, None if img_size is None else {"img_size": img_size})


def trained_on(source: str | Path) -> DataConfig | None:
    """The ``data`` that ``load(source)`` would have, without loading the model; None if unknown."""
    folder = None
    if not os.path.exists(source):
        folder = folder_of(source)
    if folder is None:
        folder = Path(source)

    if is_exported(folder):
        return read_description(folder / DESCRIPTION_FILE).data
    if is_file_path(source):
        return read_checkpoint(source).metadata.data
    return None


def _load_folder(folder: Path) -> LoadedModel:
    """Load the model of an exported folder or of one with a checkpoint of the authors."""
    if is_exported(folder):
        return load_exported(folder)
    if (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} holds programs, which have no layers to change: its README.md says how to run them, and the "
            "checkpoint that they were exported from is a model"
        )
    return load_authors_folder(folder)


def _load_checkpoint(path: Path) -> LoadedModel:
    """Load the model of a checkpoint of ``layershuffle train`` or ``layershuffle merge``."""
    checkpoint = read_checkpoint(path)
    metadata = checkpoint.metadata
    if checkpoint.is_averaged:
        logger.info("%s: using the averaged weights, not the raw ones", path)
    # Lightning's module holds the model under this name.
    weights = {name.removeprefix("model."): value for name, value in checkpoint.weights.items()}
    model = create_fitting(weights, str(path), **metadata.model).eval()
    training = {
        "method": metadata.method,
        "sampler": metadata.sampler,
        "position_loss": metadata.position_loss,
        "seed": metadata.seed,
        "version": metadata.version,
        "merged": metadata.merged,
        "compute": metadata.compute,
    }
    # Results files always have these keys, with the value null where the checkpoint doesn't say it.
    info = ModelInfo(
        name=path.stem,
        source=str(path),
        sha256=sha256(path),
        **training,  # type: ignore[arg-type]
        config=model.config,
        thresholds=metadata.thresholds,
        nulls=frozenset(name for name, value in training.items() if value is None),
    )
    names = class_names(metadata.data, info.num_classes)
    return LoadedModel(model, info, metadata.data, metadata.wandb, class_names=names)
