"""How alike the activations after each step are, and how long orders take."""

from collections.abc import Callable, Sequence

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from layershuffle.hardware import seconds
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order


@torch.inference_mode()
def cosine_similarities(
    model: OrderedViT,
    preprocess: nn.Module,
    batches: DataLoader,
    fabric: Fabric,
    on_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """How alike the activations after each two steps of the model's own order are (arXiv 2407.09298).

    The cosine of a token after one step with the same token after the other, averaged over tokens and images.

    Args:
        model: any model; it is moved to the device of ``fabric`` and put in evaluation mode.
        preprocess: makes the model's input from the batch's uint8 images, on the device.
        batches: of (uint8 images [batch, channels, height, width], labels [batch]).
        fabric: the device and the precision.
        on_batch: called after each batch, for a progress bar.

    Returns:
        float64 [steps, steps] on the CPU, symmetric, with ones on the diagonal.
    """
    model, preprocess = model.to(fabric.device).eval(), preprocess.to(fabric.device)
    total, tokens_seen = torch.zeros(len(model.order), len(model.order), dtype=torch.float64), 0
    for images, _ in batches:
        with fabric.autocast():
            state, after = model.embed(preprocess(images.to(fabric.device))), []
            for position, step in enumerate(model.order):
                state, _ = model.run_step(state, step, position)
                after.append(F.normalize(state.tokens.float(), dim=-1).flatten())
        states = torch.stack(after)
        total += (states @ states.T).cpu()
        tokens_seen += state.tokens.shape[0] * state.tokens.shape[1]
        on_batch()
    return total / tokens_seen


@torch.inference_mode()
def seconds_per_image(model: OrderedViT, images: Tensor, orders: Sequence[Order], repeats: int = 10) -> list[float]:
    """How long one image of the batch ``images`` takes in each of ``orders``, from the pixels to the logits.

    images: [batch, channels, height, width], preprocessed, on the model's device. Returns the shortest of ``repeats``
    times, because other work on the machine can only add to it. The orders take turns, so that all of them are timed
    under the same conditions.
    """
    took: list[list[float]] = [[] for _ in orders]
    for repeat in range(repeats + 1):
        for order, times in zip(orders, took):
            once = seconds(lambda order=order: model(images, order), images.device)  # type: ignore[misc]
            if repeat:  # the first one warms up
                times.append(once / len(images))
    return [min(times) for times in took]
