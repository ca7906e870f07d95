"""Where to evaluate: the device, the precision, the processes and the size of the batches."""

import logging
import os
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.distributed import is_torchelastic_launched

from layershuffle.data import ImageData, Preprocess
from layershuffle.errors import UserError
from layershuffle.hardware import fastest_precision, largest_batch
from layershuffle.models import OrderedViT
from layershuffle.private_apis import precision_of

logger = logging.getLogger(__name__)

MAX_IMAGES = 2048
"""The largest batch on a GPU, which gains nothing from more; evaluation would only wait longer for its first batch."""


def make_fabric(accelerator: str, precision: Any, model: OrderedViT, shared: bool = False) -> Fabric:
    """The device and the precision to run with, and all the processes if torchrun started several.

    Args:
        accelerator: Lightning's name of it.
        precision: Lightning's name of it, or "auto" to measure whether "32-true" or "bf16-mixed" is faster.
        model: what will run.
        shared: whether several processes may share the work.

    Raises:
        UserError: if there is no such accelerator, or several processes can't do what is asked.
    """
    # torchrun sets environment variables that say how many processes there are, in all and on this machine.
    processes = 1
    processes_here = 1
    if is_torchelastic_launched():
        processes = int(os.environ["WORLD_SIZE"])
    if processes > 1:
        processes_here = int(os.environ["LOCAL_WORLD_SIZE"])
        if not shared:
            raise UserError("only layershuffle evaluate shares its work between processes: run this without torchrun")
        if precision == "auto":
            raise UserError("several processes could measure different precisions: name a --precision in place of auto")

    try:
        # A Fabric needs to know its precision when it is made. To measure, another one is made that only says what the
        # device is.
        if precision == "auto":
            device = Fabric(accelerator=accelerator, devices=1).device
            precision = _fastest_precision(model, device)
        fabric = Fabric(
            accelerator=accelerator,
            strategy="ddp" if processes > 1 else "auto",
            devices=processes_here,
            num_nodes=processes // processes_here,
            precision=precision,
        )
    # Lightning raises a ValueError for a name that it doesn't know, and the others where there is no such device.
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"there is no {accelerator} to run on here: {error}") from error
    if processes > 1:
        fabric.launch()
    if fabric.device.type == "cuda" and precision_of(fabric) == "32-true":
        logger.info(
            "float32 uses about a twelfth of what a GPU such as an H100 can do: --precision bf16-mixed is faster, and "
            "auto measures both"
        )
    return fabric


def _fastest_precision(model: OrderedViT, device: torch.device) -> str:
    """The precision in which the model runs a batch fastest on the device, to which it is moved."""
    images = 256 if device.type == "cuda" else 32
    batch = torch.zeros(images, *model.image_shape, device=device)
    model.to(device).eval()
    # The values of the pixels don't change the time that a layer takes, so that no data is needed here.
    with torch.inference_mode():
        return fastest_precision(lambda: model(batch, model.order), device)


@torch.inference_mode()
def largest_evaluation_batch(model: OrderedViT, data: ImageData, split: Literal["val", "test"], fabric: Fabric) -> int:
    """The most images that fit into the memory of all GPUs together, up to MAX_IMAGES for each.

    A CPU gains nothing from larger batches than the data set's ``evaluation_batch``.
    """
    # This moves a data set that is kept on the device there, so that its memory is taken before the search begins.
    data.loader(split)
    start = max(1, data.evaluation_batch // fabric.world_size)
    if fabric.device.type != "cuda":
        return fabric.world_size * start

    # Each attempt does what an evaluation does, on copies of one image. Reading real batches would take longer.
    model.to(fabric.device).eval()
    preprocess = Preprocess(*model.image_format).to(fabric.device)
    image = torch.as_tensor(data.sets[split][0][0]).to(fabric.device)

    def attempt(count: int) -> None:
        """Take as much memory as an evaluation with batches of ``count`` images."""
        with fabric.autocast():
            state = model.embed(preprocess(image.expand(count, *image.shape).contiguous()))
            # An evaluation keeps up to one activation per step, see ``scoring.run_orders``, and an order may have more
            # steps than the base order.
            held = [state.tokens.clone() for _ in range(2 * len(model.order))]
            model.run(state, model.order)
            del held

    images_per_process = len(data.sets[split]) // fabric.world_size  # type: ignore[arg-type]
    largest = largest_batch(attempt, start, min(MAX_IMAGES, images_per_process))
    # Processes may find different sizes, but all need the same one, so the first process decides.
    return fabric.world_size * fabric.broadcast(largest)
