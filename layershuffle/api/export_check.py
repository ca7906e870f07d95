"""Compares an export with the model that it was made from, on a few images."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from layershuffle.api.data import DataLike, as_data
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.programs import Programs
from layershuffle.data import Preprocess
from layershuffle.errors import UserError
from layershuffle.models import OrderedViT
from layershuffle.orders.order import Order, seeded
from layershuffle.plurals import counted

logger = logging.getLogger(__name__)

Run = Callable[[Tensor, Order | None], Tensor]
"""What was exported: a function of uint8 images and an order that returns logits."""

COMPARED = 8
"""How many images the two are compared on."""
SAMPLED = 3
"""In how many random orders the programs of single layers are compared."""


def random_orders(order: Order, count: int) -> list[Order]:
    """Random orders of the same steps; none if there are steps that read older states, which have no other sequence."""
    if order.longest_lag:
        return []
    return [order.shuffled(seeded(0, number)) for number in range(count)]


def run_of(programs: Programs, model: OrderedViT) -> Run:
    """What programs of a model make of uint8 images, whichever of the two normalises them."""
    if programs.manifest["images"]["dtype"] == "uint8":
        return programs
    preprocess = Preprocess(*model.image_format).to(next(model.parameters()).device)
    return lambda batch, order: programs(preprocess(batch), order)


def difference_of_programs(model: OrderedViT, folder: Path, orders: Sequence[Order], images: Tensor) -> float:
    """How far the logits of the programs in ``folder`` are from the model's; see ``difference``."""
    device = next(model.parameters()).device
    return difference(model, run_of(Programs(folder), model), orders, images.to(device))


@torch.inference_mode()
def difference(model: OrderedViT, run: Run, orders: Sequence[Order | None], images: Tensor) -> float:
    """How far the logits of ``run`` are from the model's in any of ``orders``; NaN if one of them is not a number.

    Args:
        model: the model.
        run: what was exported.
        orders: the orders to compare in; None stands for the model's base order.
        images: uint8 [images, channels, size, size], on the model's device. All run as one batch, and the first by
            itself.
    """
    normalise = Preprocess(*model.image_format).to(images.device)
    differences = []
    for order in orders:
        # A single image as well, because a program may have kept the size of the batch that it was exported with.
        for batch in (images, images[:1]):
            expected = model(normalise(batch), order).logits
            logits = run(batch, order).to(images.device)
            differences.append((logits - expected).abs().max())
    # Unlike Python's max, torch's is NaN where one of the numbers is.
    return float(torch.stack(differences).max())


def images_to_compare(data: DataLike, loaded: LoadedModel) -> tuple[Tensor, str]:
    """Images to compare on, uint8 [images, channels, size, size], and what they are."""
    model = loaded.model
    try:
        images_of = as_data(data, loaded)
        # So few images don't repay the start of worker processes.
        images_of.workers = 0
        preprocess = images_of.prepare_for(*model.image_format)
        images_of.setup("test")
        images, _ = next(iter(images_of.loader("test", COMPARED)))
        resized = preprocess.resized(images).expand(-1, model.image_shape[0], -1, -1)
        return resized, f"{counted(len(resized), 'test image')} of {images_of.label}"
    except UserError as error:
        logger.info("the export is compared on random pixels, because there are no images (%s)", error)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COMPARED, *model.image_shape), dtype=torch.uint8, generator=generator)
    return pixels, f"{COMPARED} images of random pixels"
