"""Loads any model: a checkpoint of ours, an exported folder, one of the authors' checkpoints, or a timm model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from layershuffle.checkpoints import export
from layershuffle.checkpoints.authors import load_reference
from layershuffle.checkpoints.metadata import METADATA_KEY, CheckpointMetadata
from layershuffle.data.decoding import as_rgb
from layershuffle.data.preprocessing import Preprocess, Resizing, resize
from layershuffle.errors import UserError
from layershuffle.files import read_json, sha256
from layershuffle.models.create import classes_of, create_fitting, create_model
from layershuffle.models.model import ImageFormat, OrderedViT
from layershuffle.models.weights import read_file
from layershuffle.orders.order import Order, OrderLike

RECORD = METADATA_KEY


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is known about it.

    Attributes:
        model: the model, in evaluation mode. ``model(images, order)`` takes what ``preprocess`` returns.
        record: its name, its source and how to make it again, as the results have it.
        data: the data it was trained on, as ``ImageData.config`` describes it; None if unknown.
        wandb: the id and the project of the W&B run that trained it, if any.
        authors: whether it is one of the LayerShuffle authors' checkpoints.
        image_format: how timm preprocesses images for it, if it is a timm model as timm has it.
        names: the names of its classes, if they are known.
    """

    model: OrderedViT
    record: dict[str, Any]
    data: dict[str, Any] | None = None
    wandb: dict[str, str] | None = None
    authors: bool = False
    image_format: ImageFormat | None = None
    names: list[str] | None = None

    @property
    def order(self) -> Order:
        """The model's base order."""
        return self.model.order

    @property
    def classes(self) -> list[str]:
        """The names of the classes, or where they are unknown, their numbers from 0."""
        return self.names or [str(label) for label in range(self.model.config["num_classes"])]

    @property
    def trained_format(self) -> ImageFormat:
        """How images were preprocessed in its training.

        Raises UserError if the checkpoint says what can't be.
        """
        found = self.image_format or self.model.image_format
        args: Any = self.data.get("args") if isinstance(self.data, dict) else None
        names = ImageFormat._fields[3:] if isinstance(args, dict) else ()
        given = {name: args[name] for name in names if args.get(name) is not None}
        found = found._replace(**given)
        if (
            not isinstance(found.crop_pct, (int, float))
            or not 0 < found.crop_pct <= 1
            or found.interpolation not in ("bilinear", "bicubic")
            or found.crop_mode not in ("center", "squash")
        ):
            raise UserError(f"{self.record['source']} is damaged: images can't be preprocessed as it says, {given}")
        return found

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Make the model's input of PIL images of any size and mode: float32 [images, channels, size, size]."""
        wanted = self.trained_format
        size, mean, std = wanted[:3]
        grey = len(mean) == 1
        pixels = []
        for image in images:
            rgb = resize(as_rgb(image), size, Resizing(*wanted[3:]))
            pixels.append(pil_to_tensor(rgb.convert("L") if grey else rgb))
        return Preprocess(size, mean, std)(torch.stack(pixels))

    def check(self, order: OrderLike) -> Order:
        """What ``model.check`` returns, or a UserError if the order has no layers: their answer would mean nothing."""
        checked = self.model.check(order)
        if not checked:
            raise UserError("an order to predict in needs at least one layer, such as '3 1 2'")
        return checked

    @torch.inference_mode()
    def predict(
        self, images: Sequence[Image.Image], top: int = 5, order: OrderLike | None = None
    ) -> list[list[tuple[str, float]]]:
        """Classify PIL images, on the device that the model is on.

        Args:
            images: the images, of any size and mode; see ``data.decoding.as_rgb`` for how they are read.
            top: how many of the likeliest classes to return.
            order: the order that the layers run in; by default the model's own.

        Returns:
            For each image the likeliest classes, each with its probability, from 0 to 1.

        Raises:
            UserError: if the model can't run the order, or the order has no layers.
        """
        order = None if order is None else self.check(order)
        device = next(self.model.parameters()).device
        names = self.classes
        found = []
        for start in range(0, len(images), 64):
            batch = self.preprocess(images[start : start + 64]).to(device)
            best = self.model(batch, order).logits.softmax(dim=-1).topk(min(top, len(names)))
            found += [
                [(names[label], value) for label, value in zip(*row)]
                for row in zip(best.indices.tolist(), best.values.tolist())
            ]
        return found


def load(source: str, pretrained: str | None = None, num_classes: int | None = None) -> LoadedModel:
    """Load a model to use it; ``layershuffle.load`` is this function.

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
        model, record, data = export.read(path)
        return LoadedModel(model.eval(), record, data, names=export.class_names(data, model))
    if path.is_dir():
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
        if not files or not (path / "config.json").is_file():
            raise UserError(f"{path} has no config.json with a model.safetensors or pytorch_model.bin beside it")
        model = load_reference(files[0], path / "config.json")
        about = {"name": path.name, "source": str(files[0]), "sha256": sha256(files[0]), "config": model.config}
        by_label = read_json(path / "config.json")["id2label"]
        named = [by_label.get(str(label)) for label in range(len(by_label))] if isinstance(by_label, dict) else None
        return LoadedModel(model, about, authors=True, names=export.class_names({"classes": named}, model))
    if _is_checkpoint(source):
        content = read_checkpoint(path)
        metadata = CheckpointMetadata.from_content(content, path)
        weights = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
        model = create_fitting(weights, str(path), **metadata.model)
        recorded = ("method", "sampler", "position_loss", "seed", "version", "merged", "compute")
        kept = {key: getattr(metadata, key) for key in recorded}
        about = {"name": path.stem, "source": str(path), "sha256": sha256(path), **kept, "config": model.config}
        data = metadata.data
        return LoadedModel(model.eval(), about, data, metadata.wandb, names=export.class_names(data, model))
    import timm  # Slow to import, and not needed above.
    from timm.data import ImageNetInfo, infer_imagenet_subset

    classes = getattr(timm.get_pretrained_cfg(source) if timm.is_model(source) else None, "num_classes", 1000)
    if pretrained == "random":
        model = create_model(source, num_classes or classes)
        about = {"name": source, "source": "random weights", "config": model.config}
        return LoadedModel(model.eval(), about, image_format=model.timm_format)
    own = classes_of(pretrained, source) if pretrained else classes
    model = create_model(source, own or classes, pretrained=pretrained or True)
    if own is None:
        raise UserError(
            f"{pretrained} holds no classifier: train one first (layershuffle train, --model.pretrained {pretrained})"
        )
    about = {"name": source, "source": pretrained or source, "config": model.config}
    about |= {"sha256": sha256(pretrained)} if pretrained else {}
    # timm's models with as many classes as a version of ImageNet were trained on it.
    subset = None if pretrained else infer_imagenet_subset(model.vit)
    names: Any = ImageNetInfo(subset).label_descriptions() if subset else None
    return LoadedModel(model.eval(), about, image_format=model.timm_format, names=names)


def trained_on(source: str) -> dict[str, Any] | None:
    """The data that ``load(source)`` would return, without loading the model; None if unknown."""
    if (Path(source) / export.RECORD_FILE).is_file():
        return export.read_record(Path(source))[1]
    if not _is_checkpoint(source):
        return None
    return CheckpointMetadata.from_content(read_checkpoint(source), source).data


def _is_checkpoint(source: str) -> bool:
    """Whether a source that is not a folder is the path of a checkpoint rather than the name of a timm model."""
    path = Path(source)
    weights = path.suffix in (".ckpt", ".pth", ".pt", ".bin", ".safetensors")
    return not path.is_dir() and (path.exists() or weights or "/" in source.partition(":")[0])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: ``METADATA_KEY`` is its metadata and ``"state_dict"`` holds the weights.

    Raises:
        UserError: if the file can't be read or is not a checkpoint of ``layershuffle train`` or ``layershuffle merge``.
    """
    content = read_file(path)
    CheckpointMetadata.from_content(content, path)
    if not isinstance(content.get("state_dict"), dict):
        raise UserError(f"{path} is damaged: it holds no weights")
    return content
