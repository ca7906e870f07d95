"""Classifies pictures: names the likeliest classes of each, in one order or in many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from layershuffle.api.arguments import check_at_least, check_seed
from layershuffle.api.pictures import Pictures, Unreadable
from layershuffle.api.progress import progress_bar
from layershuffle.api.study import ModelLike, as_loaded
from layershuffle.checkpoints.likely_classes import LikelyClass, likely_classes
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.picture_files import find_pictures
from layershuffle.errors import UserError
from layershuffle.evaluation.device import make_fabric
from layershuffle.evaluation.scoring import run_orders
from layershuffle.models import OrderedViT
from layershuffle.orders.order import Order, OrderLike
from layershuffle.orders.protocols import trials
from layershuffle.processes import usable_cores
from layershuffle.results import ModelInfo


@dataclass(frozen=True)
class Prediction:
    """What a picture shows.

    Attributes:
        path: the path of its file.
        classes: the likeliest classes, the likeliest first.
        orders: how many orders were run.
    """

    path: str
    classes: tuple[LikelyClass, ...]
    orders: int = 1

    def __str__(self) -> str:
        """A line such as ``fox.jpg: 91.2% fox; 5.0% dog``."""
        classes = []
        for likely in self.classes:
            text = f"{_percent(likely.probability)} {likely.name}"
            if self.orders > 1 and likely.first:
                text += f" (first in {round(likely.first * self.orders)} of {self.orders} orders)"
            classes.append(text)
        return f"{self.path}: {'; '.join(classes)}"


def _percent(probability: float) -> str:
    """The probability in percent. One that is tiny but not 0 doesn't read 0.0%."""
    return "<0.1%" if 0 < probability < 0.001 else f"{probability:.1%}"


@dataclass(frozen=True)
class Predictions:
    """What pictures show.

    Attributes:
        model: what is known about the model.
        orders: the orders that were run; empty if each picture chose its own.
        pictures: what each picture shows, in the sequence in which they were found.
        unreadable: the pictures that can't be read.
    """

    model: ModelInfo
    orders: list[Order]
    pictures: list[Prediction]
    unreadable: list[Unreadable]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __str__(self) -> str:
        """A line for each picture."""
        return "\n".join(map(str, self.pictures))


def predict(
    model: ModelLike,
    pictures: str | Path | Sequence[str | Path],
    *,
    top: int = 5,
    order: OrderLike | None = None,
    random_orders: int | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    batch_size: int = 64,
) -> Predictions:
    """Name the likeliest classes of pictures, which are preprocessed as in the model's training.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        pictures: picture files, and folders of which all pictures are classified.
        top: how many classes to name for each picture.
        order: the order that the layers run in; by default the model's own.
        random_orders: in place of ``order``, how many random orders to run. The probabilities are their means.
        seed: decides the random orders, which are those of ``layershuffle.evaluate``.
        accelerator: Lightning's name of the device to run on.
        batch_size: how many pictures are classified together.

    Raises:
        UserError: if there is no such model or picture, or the model can't run the order.
    """
    check_seed(seed)
    check_at_least(1, top=top, batch_size=batch_size)
    if random_orders is not None:
        check_at_least(1, random_orders=random_orders)
        if order is not None:
            raise UserError("order is one order and random_orders samples many: give one of the two")
    if isinstance(pictures, (str, Path)):
        pictures = [pictures]
    # Before the model is loaded: a mistake in a path should be known at once.
    paths = find_pictures(pictures)
    loaded = as_loaded(model)
    loaded.check_takes_pictures()
    orders = _orders(loaded, order, random_orders, seed)
    fabric = make_fabric(accelerator, "32-true", loaded.model)
    vit = loaded.model.to(fabric.device)

    predictions: list[Prediction] = []
    unreadable: list[Unreadable] = []
    # A single batch doesn't repay the start of worker processes.
    workers = min(usable_cores(), 16) if len(paths) > batch_size else 0
    # The pictures stay a list, because those that can't be read have no pixels to stack.
    loader = DataLoader(Pictures(paths, loaded), batch_size, num_workers=workers, collate_fn=list)
    with progress_bar("classifying", len(loader), "batch") as advance:
        for batch in loader:
            readable: dict[str, Tensor] = {}
            for picture in batch:
                if isinstance(picture, Unreadable):
                    unreadable.append(picture)
                else:
                    path, pixels = picture
                    readable[path] = pixels
            if readable:
                images = torch.stack(list(readable.values())).to(fabric.device)
                logits = _logits(vit, images, orders)
                for path, picture_logits in zip(readable, logits.unbind(dim=1)):
                    classes = likely_classes(picture_logits, loaded.classes, top)
                    predictions.append(Prediction(path, classes, len(logits)))
            advance()
    return Predictions(loaded.info, orders, predictions, unreadable)


def _orders(loaded: LoadedModel, order: OrderLike | None, random_orders: int | None, seed: int) -> list[Order]:
    """The orders to run; empty if each picture chooses its own."""
    if random_orders is not None:
        arbitrary = [trial.order for trial in trials(["arbitrary"], loaded.order, random_orders, seed)]
        # The protocol also has an order that is new in every batch.
        return [sampled for sampled in arbitrary if isinstance(sampled, Order)]
    if order is not None:
        return [loaded.check(order)]
    if loaded.model.choice:
        return []
    return [loaded.order]


@torch.inference_mode()
def _logits(model: OrderedViT, images: Tensor, orders: Sequence[Order]) -> Tensor:
    """The logits in each order, [orders, batch, classes]."""
    if not orders:
        return model(images).logits[None]
    # Orders that begin alike share their first steps, and so arrive in another sequence.
    by_order = {order: output.logits for order, output in run_orders(model, images, orders)}
    return torch.stack([by_order[order] for order in orders])
