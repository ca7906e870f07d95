"""Loads any model: a checkpoint of ours, an exported folder, one of the authors' checkpoints, or a timm model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layershuffle.checkpoints import export
from layershuffle.checkpoints.authors import load_reference
from layershuffle.errors import UserError
from layershuffle.files import sha256
from layershuffle.models.create import classes_of, create_fitting, create_model
from layershuffle.models.model import ImageFormat, OrderedViT
from layershuffle.models.weights import read_file

RECORD = "layershuffle"
"""The key of the record in a checkpoint, which tells how to make its model and its data again."""


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is known about it.

    Attributes:
        model: the model.
        record: its name, its source and how to make it again, as the results have it.
        data: the data it was trained on, as ``ImageData.config`` describes it; None if unknown.
        wandb: the id and the project of the W&B run that trained it, if any.
        authors: whether it is one of the LayerShuffle authors' checkpoints.
        image_format: how timm preprocesses images for it, if it is a timm model as timm has it.
    """

    model: OrderedViT
    record: dict[str, Any]
    data: dict[str, Any] | None = None
    wandb: dict[str, str] | None = None
    authors: bool = False
    image_format: ImageFormat | None = None


def load(source: str, pretrained: str | None = None, num_classes: int | None = None) -> LoadedModel:
    """Load a model.

    Args:
        source: a checkpoint of ``layershuffle train``, a folder of ``layershuffle export``, a folder with one of the
            LayerShuffle authors' checkpoints (config.json and model.safetensors or pytorch_model.bin), or the name of a
            timm model.
        pretrained: for a timm model, a path to its weights, whose classes it then has, or "random"; by default they are
            fetched from the Hugging Face hub.
        num_classes: the classes of a timm model with random weights.

    Raises:
        UserError: if it is none of these or can't be read.
    """
    path = Path(source)
    if (path / export.RECORD_FILE).is_file():
        return LoadedModel(*export.read(path))
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not files or not (path / "config.json").is_file():
            raise UserError(f"{path} has no config.json with a model.safetensors or pytorch_model.bin beside it")
        model = load_reference(files[0], path / "config.json")
        about = {"name": path.name, "source": str(files[0]), "sha256": sha256(files[0]), "config": model.config}
        return LoadedModel(model, about, authors=True)
    if _is_checkpoint(source):
        content = read_checkpoint(path)
        record = content[RECORD]
        weights = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
        model = create_fitting(weights, str(path), **record["model"])
        kept = {key: record.get(key) for key in ("method", "sampler", "position_loss", "seed", "version", "merged")}
        about = {"name": path.stem, "source": str(path), "sha256": sha256(path), **kept, "config": model.config}
        return LoadedModel(model, about, record.get("data"), record.get("wandb"))
    import timm  # Slow to import, and not needed above.

    classes = getattr(timm.get_pretrained_cfg(source) if timm.is_model(source) else None, "num_classes", 1000)
    if pretrained == "random":
        model = create_model(source, num_classes or classes)
        about = {"name": source, "source": "random weights", "config": model.config}
        return LoadedModel(model, about, image_format=model.timm_format)
    own = classes_of(pretrained, source) if pretrained else classes
    model = create_model(source, own or classes, pretrained=pretrained or True)
    if own is None:
        raise UserError(
            f"{pretrained} holds no classifier: train one first (layershuffle train, --model.pretrained {pretrained})"
        )
    about = {"name": source, "source": pretrained or source, "config": model.config}
    about |= {"sha256": sha256(pretrained)} if pretrained else {}
    return LoadedModel(model, about, image_format=model.timm_format)


def trained_on(source: str) -> dict[str, Any] | None:
    """The data that ``load(source)`` would return, without loading the model; None if unknown."""
    if (Path(source) / export.RECORD_FILE).is_file():
        return export.read_record(Path(source))[1]
    return read_checkpoint(source)[RECORD].get("data") if _is_checkpoint(source) else None


def _is_checkpoint(source: str) -> bool:
    """Whether a source that is not a folder is the path of a checkpoint rather than the name of a timm model."""
    path = Path(source)
    weights = path.suffix in (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
    return not path.is_dir() and (path.exists() or weights or "/" in source.partition(":")[0])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: ``RECORD`` is its record and ``"state_dict"`` holds the weights.

    Raises:
        UserError: if the file can't be read or is not a checkpoint of ``layershuffle train`` or ``layershuffle merge``.
    """
    content = read_file(path)
    record = content.get(RECORD)
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict) or "state_dict" not in content:
        raise UserError(
            f"{path} is not a checkpoint of layershuffle train; to use plain weights of a timm model, name the model "
            f"and give --pretrained {path}"
        )
    return content
