"""Computes the features of pictures, which is what the model's classifier reads, in one order or in many."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from layershuffle.api.arguments import check_at_least, check_orders, check_seed
from layershuffle.api.data import DataLike
from layershuffle.api.pictures import Unreadable, logits_in, orders_to_run, run_pictures
from layershuffle.api.progress import progress_bar
from layershuffle.api.study import ModelLike, Study, as_loaded, start_study
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.training_data import trained_format
from layershuffle.choices import Precision, Split
from layershuffle.data.picture_files import find_pictures
from layershuffle.data.sets import paths_of
from layershuffle.errors import UserError
from layershuffle.evaluation.device import make_fabric
from layershuffle.files import write_whole
from layershuffle.models.image_format import ImageFormat
from layershuffle.orders.order import Order, OrderLike
from layershuffle.plurals import counted
from layershuffle.private_apis import precision_of
from layershuffle.results import ModelInfo
from layershuffle.version import __version__

FORMAT = 1
"""The version of the files that ``Embeddings.save`` writes."""


@dataclass(frozen=True)
class Embeddings:
    """The features of pictures, and everything needed to compute them again.

    Attributes:
        features: what the model's classifier reads of each picture, float32 [pictures, dim]; of several orders
            [orders, pictures, dim].
        paths: the files of the pictures; None if a data set has no files.
        labels: int64 [pictures]; None if they are unknown.
        class_names: the names of the classes that the labels mean; None if they are unknown.
        orders: the orders that were run; empty if each picture chose its own.
        model: what is known about the model.
        image_format: how the pictures were resized and normalised.
        settings: the data set and its split if there is one, the seed and the precision, in plain values.
        unreadable: the pictures that can't be read.
    """

    features: np.ndarray
    paths: list[str] | None
    labels: np.ndarray | None
    class_names: list[str] | None
    orders: list[Order]
    model: ModelInfo
    image_format: ImageFormat
    settings: dict[str, Any]
    unreadable: list[Unreadable]

    def __str__(self) -> str:
        """What there is, such as "features of 3 pictures in 2 orders, each of 384 numbers"."""
        # Of a single order, the features have no dimension for the orders.
        *orders, pictures, dim = self.features.shape
        in_orders = f" in {counted(orders[0], 'order')}" if orders else ""
        return f"features of {counted(pictures, 'picture')}{in_orders}, each of {counted(dim, 'number')}"

    def save(self, path: str | Path) -> None:
        """Write an .npz file, whole or not at all, which ``numpy.load`` reads without pickle.

        Its arrays are ``features``, ``orders`` (text) and, where they are known, ``paths``, ``labels`` and
        ``class_names``; ``about`` is JSON with the model, the image format, the settings and the versions.

        Raises:
            UserError: if it can't be written.
        """
        arrays = {"features": self.features, "orders": np.array([str(order) for order in self.orders], dtype=np.str_)}
        if self.paths is not None:
            arrays["paths"] = np.array(self.paths, dtype=np.str_)
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.class_names is not None:
            arrays["class_names"] = np.array(self.class_names, dtype=np.str_)
        about = {
            "layershuffle_embeddings": FORMAT,
            "model": self.model.to_json(),
            "image_format": self.image_format._asdict(),
            **self.settings,
            "unreadable": [{"picture": picture.path, "why": picture.reason} for picture in self.unreadable],
            "versions": {"layershuffle": __version__, "torch": torch.__version__, "timm": version("timm")},
        }
        arrays["about"] = np.array(json.dumps(about), dtype=np.str_)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_whole(path, buffer.getbuffer())


def embed(
    model: ModelLike,
    pictures: str | Path | Sequence[str | Path] | None = None,
    data: DataLike = None,
    *,
    order: OrderLike | None = None,
    random_orders: int | None = None,
    split: Split = "test",
    seed: int = 0,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    batch_size: int = 64,
) -> Embeddings:
    """Compute the features of pictures, which are what the model's classifier reads.

    The pictures are preprocessed as in the model's training, or as timm does for its own models.

    Args:
        model: a model, or what ``layershuffle.load`` takes. It needs no classifier.
        pictures: picture files, and folders of which all pictures are taken.
        data: in place of pictures, a data set, or the name of its config; if there are neither, the data that the model
            was trained on. Labels and names of classes come from it.
        order: the order that the layers run in; by default the model's own.
        random_orders: in place of ``order``, how many random orders to run.
        split: which images of the data set to use.
        seed: decides the random orders, which are those of ``layershuffle.evaluate``.
        accelerator: Lightning's name of the device to run on.
        precision: of the forward pass.
        batch_size: how many pictures run together.

    Raises:
        UserError: if there is no such model, picture or data set, the model can't run the order, or no picture can be
            read.
    """
    check_seed(seed)
    check_at_least(1, batch_size=batch_size)
    check_orders(order, random_orders)
    if pictures is not None and data is not None:
        raise UserError("pictures and a data set are given: leave one of the two out")
    if pictures is None:
        study = start_study(
            model,
            data,
            split=split,
            classifier=None,
            seed=seed,
            accelerator=accelerator,
            precision=precision,
            batch_size=batch_size,
        )
        return _of_data(study, orders_to_run(study.loaded, order, random_orders, seed))

    if isinstance(pictures, (str, Path)):
        pictures = [pictures]
    # Before the model is loaded: a mistake in a path should be known at once.
    paths = find_pictures(pictures)
    loaded = as_loaded(model, needs_classifier=False)
    loaded.check_takes_pictures()
    orders = orders_to_run(loaded, order, random_orders, seed)
    fabric = make_fabric(accelerator, precision, loaded.model)
    return _of_pictures(paths, loaded, orders, fabric, batch_size, seed)


def _of_pictures(
    paths: Sequence[str], loaded: LoadedModel, orders: list[Order], fabric: Fabric, batch_size: int, seed: int
) -> Embeddings:
    """The features of picture files; raises UserError if none can be read. ``seed`` is only recorded."""
    readable: list[str] = []
    features: list[Tensor] = []
    unreadable: list[Unreadable] = []
    # With the identity in the place of the classifier, the model returns what the classifier would read.
    with loaded.model.classified_by(nn.Identity()):
        for batch_paths, outputs in run_pictures(paths, loaded, orders, unreadable, fabric, batch_size, "embedding"):
            readable += batch_paths
            features.append(outputs.float().cpu())
    if not readable:
        raise UserError("no picture could be read")
    return Embeddings(
        features=_joined(features),
        paths=readable,
        labels=None,
        class_names=None,
        orders=orders,
        model=loaded.info,
        image_format=loaded.trained_format,
        settings={"seed": seed, "precision": precision_of(fabric)},
        unreadable=unreadable,
    )


def _of_data(study: Study, orders: Sequence[Order]) -> Embeddings:
    """The features of the images of a study."""
    device = study.fabric.device
    model = study.model.to(device).eval()
    preprocess = study.preprocess.to(device)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    total = len(study.batches)
    with model.classified_by(nn.Identity()), progress_bar("embedding", total, "batch") as advance:
        for images, batch_labels in study.batches:
            with study.fabric.autocast():
                outputs = logits_in(model, preprocess(images.to(device)), orders)
            features.append(outputs.float().cpu())
            labels.append(batch_labels.cpu())
            advance()

    # Which files are broken is known only now that they were read: their paths are empty, and they have no features.
    paths = paths_of(study.data.sets[study.split])
    described = study.data.config()
    return Embeddings(
        features=_joined(features),
        paths=None if paths is None else [path for path in paths if path],
        labels=torch.cat(labels).numpy(),
        class_names=study.data.class_names,
        orders=list(orders),
        model=study.loaded.info,
        image_format=trained_format(study.model.image_format, described, study.data.label),
        settings={
            "data": described.to_dict(),
            "split": study.split,
            "seed": study.seed,
            "precision": precision_of(study.fabric),
        },
        unreadable=[],
    )


def _joined(batches: Sequence[Tensor]) -> np.ndarray:
    """The features of all batches, each [orders, batch, dim], as ``Embeddings.features`` has them."""
    features = torch.cat(list(batches), dim=1).numpy()
    return features[0] if len(features) == 1 else features
