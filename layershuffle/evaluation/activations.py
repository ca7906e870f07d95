"""What layers do: how alike their activations are, what they change at each position, and how long they take."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from layershuffle.errors import UserError
from layershuffle.hardware import seconds
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, seeded


@torch.inference_mode()
def cosine_similarities(
    model: OrderedViT,
    preprocess: nn.Module,
    batches: DataLoader,
    fabric: Fabric,
    on_batch: Callable[[], None] = lambda: None,
) -> Tensor:
    """How alike the activations after each two steps of the model's base order are (arXiv 2407.09298).

    The cosine of a token after one step with the same token after the other, averaged over tokens and images.
    ``on_batch`` is called after each batch, for a progress bar; the other arguments are those of ``scoring.evaluate``.

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
        tokens_seen += state.tokens.shape[:2].numel()
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


@torch.inference_mode()
def shuffled_runs(
    model: OrderedViT, preprocess: nn.Module, images: Dataset, fabric: Fabric, seed: int
) -> Iterator[tuple[Order, list[Tensor]]]:
    """Run each image of (uint8 [channels, height, width], label) by itself, in a random order of its own.

    The order depends on ``seed`` and the image's index. The other arguments are those of ``scoring.evaluate``.

    Yields:
        The order, and the tokens, float32 [tokens, dim], before its first step and after each step.
    """
    model, preprocess = model.to(fabric.device).eval(), preprocess.to(fabric.device)
    for index in range(len(images)):  # type: ignore[arg-type]
        order = model.order.shuffled(seeded(seed, "analysis", index))
        with fabric.autocast():
            state = model.embed(preprocess(images[index][0][None].to(fabric.device)))
            states = [state]
            for position, step in enumerate(order):
                state, _ = model.run_step(state, step, position)
                states.append(state)
        yield order, [state.tokens[0].float() for state in states]


def contributions(tokens: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """How much each step of a run changes a token (arXiv 2407.04513, figures 4c and 4d).

    The change is not divided by the norm of the token that the step got. That norm grows with every step, so the
    quotient falls with the position in any model, even an untrained one. The change itself doesn't: a layer normalises
    its input, so that what an untrained layer adds has nearly the same norm at every position.

    tokens: [dim], before the first step and after each step.

    Returns:
        For each step the L2 norm of what it adds to the token, and that of the token it got.
    """
    added = [float((after - before).norm()) for before, after in pairwise(tokens)]
    return added, [float(before.norm()) for before in tokens[:-1]]


def project(outputs: Tensor, seed: int) -> Tensor:
    """UMAP of ``outputs`` [images, features] to the plane, float32 [images, 2]; needs umap-learn."""
    try:
        import umap
    except ImportError as error:
        raise UserError("UMAP needs umap-learn: pip install 'layershuffle[umap]'") from error
    neighbours = min(15, len(outputs) - 1)  # 15 is UMAP's own choice
    reducer = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return torch.from_numpy(reducer.fit_transform(outputs.numpy()))
