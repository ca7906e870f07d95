"""The user's picture files, read for a model and run through it in one order or in many."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layershuffle.api.progress import progress_bar
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.decoding import UNDECODABLE, open_image
from layershuffle.evaluation.scoring import run_orders
from layershuffle.models import OrderedViT
from layershuffle.orders.order import Order, OrderLike
from layershuffle.orders.protocols import trials
from layershuffle.processes import usable_cores


@dataclass(frozen=True)
class Unreadable:
    """A picture that can't be read.

    Attributes:
        path: the path of its file.
        reason: what Pillow says.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        """What a warning says."""
        return f"{self.path} can't be read as an image ({self.reason})"


class Pictures(Dataset):
    """The model's input for each picture, or why there is none.

    Args:
        paths: the files of the pictures.
        model: the model, which knows how images are preprocessed.
    """

    def __init__(self, paths: Sequence[str], model: LoadedModel) -> None:
        self.paths = paths
        self.model = model

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor] | Unreadable:
        """The path of a picture and its pixels, float32 [channels, size, size]."""
        path = self.paths[index]
        try:
            pixels = self.model.preprocess([open_image(path, self.model.channels)])
        except UNDECODABLE as error:
            return Unreadable(path, str(error))
        return path, pixels[0]


def orders_to_run(loaded: LoadedModel, order: OrderLike | None, random_orders: int | None, seed: int) -> list[Order]:
    """The orders to run pictures in; empty if each picture chooses its own.

    Args:
        loaded: the model.
        order: one order; by default the model's own.
        random_orders: in place of ``order``, how many random orders to sample.
        seed: decides them; they are those of ``layershuffle.evaluate``.

    Raises:
        UserError: if the model can't run the order.
    """
    if random_orders is not None:
        arbitrary = [trial.order for trial in trials(["arbitrary"], loaded.order, random_orders, seed)]
        # The protocol also has a trial with a new order for every batch, which is no single order.
        return [sampled for sampled in arbitrary if isinstance(sampled, Order)]
    if order is not None:
        return [loaded.check(order)]
    if loaded.model.choice:
        return []
    return [loaded.order]


def run_pictures(
    paths: Sequence[str],
    loaded: LoadedModel,
    orders: Sequence[Order],
    unreadable: list[Unreadable],
    fabric: Fabric,
    batch_size: int,
    doing: str,
) -> Iterator[tuple[list[str], Tensor]]:
    """Run pictures through a model, with a progress bar.

    Args:
        paths: the files of the pictures.
        loaded: the model, which is moved to the device.
        orders: what ``orders_to_run`` returned.
        unreadable: gets the pictures that can't be read.
        fabric: the device and the precision.
        batch_size: how many pictures run together.
        doing: what the progress bar says.

    Yields:
        The paths of a batch of pictures, and their logits in each order, [orders, batch, classes], on the device.
    """
    vit = loaded.model.to(fabric.device)
    # A single batch doesn't repay the start of worker processes.
    workers = 0
    if len(paths) > batch_size:
        workers = min(usable_cores(), 16)
    # The pictures stay a list, because those that can't be read have no pixels to stack.
    loader = DataLoader(Pictures(paths, loaded), batch_size, num_workers=workers, collate_fn=list)
    with progress_bar(doing, len(loader), "batch") as advance:
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
                with fabric.autocast():
                    logits = logits_in(vit, images, orders)
                yield list(readable), logits
            advance()


@torch.inference_mode()
def logits_in(model: OrderedViT, images: Tensor, orders: Sequence[Order]) -> Tensor:
    """The logits of images in each order, [orders, batch, classes]; without orders, in the one that each image chooses.

    The images are preprocessed, float32 [batch, channels, size, size], on the model's device.
    """
    if not orders:
        return model(images).logits[None]
    # Orders that begin alike share their first steps, and so arrive in another sequence.
    by_order = {order: output.logits for order, output in run_orders(model, images, orders)}
    return torch.stack([by_order[order] for order in orders])
