"""What a layer does at each position: its output, and how much it changes the class token."""

from collections.abc import Callable

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import seeded


@torch.inference_mode()
def visits(
    model: OrderedViT,
    preprocess: nn.Module,
    images: Dataset,
    fabric: Fabric,
    seed: int,
    visit: Callable[[int, int, int, Tensor, Tensor], None],
) -> list[str]:
    """Run each image by itself in a random order of its own, and visit every step.

    Args:
        model: any model; it is moved to the device of ``fabric`` and put in evaluation mode.
        preprocess: makes the model's input from a uint8 image, on the device.
        images: of (uint8 image [channels, height, width], label).
        fabric: the device and the precision.
        seed: decides the orders, together with the image's index.
        visit: called with the image's index, the layer, its position, and the tokens [tokens, dim] before and after it.

    Returns:
        The order of each image, in text form.
    """
    model, preprocess = model.to(fabric.device).eval(), preprocess.to(fabric.device)
    orders = []
    for index in range(len(images)):  # type: ignore[arg-type]
        order = model.order.shuffled(seeded(seed, "analysis", index))
        with fabric.autocast():
            state = model.embed(preprocess(images[index][0][None].to(fabric.device)))
            for position, step in enumerate(order):
                before = state.tokens[0]
                state, _ = model.run_step(state, step, position)
                visit(index, step[0].layer, position, before.float(), state.tokens[0].float())
        orders.append(str(order))
    return orders


def contribution(before: Tensor, after: Tensor) -> float:
    """How much a layer changes the class token: the L2 norm of the change over the norm of the token before.

    before, after: [tokens, dim], the class token first.
    """
    return float((after[0] - before[0]).norm() / before[0].norm())


def project(outputs: Tensor, seed: int) -> Tensor:
    """UMAP of ``outputs`` [images, features] to the plane, float32 [images, 2]; needs umap-learn."""
    try:
        import umap
    except ImportError as error:
        raise UserError("UMAP needs umap-learn: pip install 'layershuffle[umap]'") from error
    neighbours = min(15, len(outputs) - 1)  # 15 is UMAP's own choice
    reducer = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return torch.from_numpy(reducer.fit_transform(outputs.numpy()))
