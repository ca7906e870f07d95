"""What layers do: how alike their activations are, what they change at each position, and how long they take."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
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

    Args:
        model: see ``scoring.evaluate``, like all that aren't named here.
        preprocess: see there.
        batches: see there.
        fabric: see there.
        on_batch: called after each batch, for a progress bar.

    Returns:
        float64 [steps, steps] on the CPU, symmetric, with ones on the diagonal.
    """
    model = model.to(fabric.device).eval()
    preprocess = preprocess.to(fabric.device)
    total = torch.zeros(len(model.order), len(model.order), dtype=torch.float64)
    tokens_seen = 0
    for images, _ in batches:
        directions = []
        with fabric.autocast():
            embedded = model.embed(preprocess(images.to(fabric.device)))
            # Only the directions are kept, in float32: the cosines of tokens in bfloat16 would be rounded to 0.4%.
            for state, _ in model.run_steps(embedded, model.order):
                directions.append(F.normalize(state.tokens.float(), dim=-1).flatten())  # [batch * tokens * dim]

        # Every token has norm 1 here, so that the scalar product of two steps' activations is the sum of the tokens'
        # cosines. One matrix product gives this sum for all pairs of steps.
        by_step = torch.stack(directions)  # [steps, batch * tokens * dim]
        total += (by_step @ by_step.T).cpu()
        tokens_seen += embedded.tokens.shape[:2].numel()  # images x tokens
        on_batch()
    return total / tokens_seen


@torch.inference_mode()
def seconds_per_image(
    model: OrderedViT,
    images: Tensor,
    orders: Sequence[Order],
    repeats: int = 10,
    on_run: Callable[[], None] = lambda: None,
) -> list[float]:
    """How long one image of a batch takes in each of ``orders``, from the pixels to the logits.

    The orders take turns, so that all of them are timed under the same conditions.

    Args:
        model: on the device of the images.
        images: [batch, channels, height, width], preprocessed.
        orders: what to run.
        repeats: how many times each order is timed, after one run that warms up.
        on_run: called after each run, for a progress bar.

    Returns:
        For each order the shortest of its times, because other work on the machine can only add to it.
    """
    times_by_order: list[list[float]] = [[] for _ in orders]
    for repeat in range(repeats + 1):
        for order, times in zip(orders, times_by_order):
            batch_seconds = seconds(partial(model, images, order), images.device)
            is_warm_up = repeat == 0
            if not is_warm_up:
                times.append(batch_seconds / len(images))
            on_run()
    return [min(times) for times in times_by_order]


@torch.inference_mode()
def shuffled_runs(
    model: OrderedViT, preprocess: nn.Module, images: Dataset, fabric: Fabric, seed: int
) -> Iterator[tuple[Order, list[Tensor]]]:
    """Run each image by itself, each in another random order.

    Args:
        model: see ``scoring.evaluate``.
        preprocess: see there.
        images: of (uint8 [channels, height, width], label).
        fabric: see ``scoring.evaluate``.
        seed: decides the orders, together with the index of the image.

    Yields:
        The order, and the tokens, float32 [tokens, dim], before its first step and after each step.
    """
    model = model.to(fabric.device).eval()
    preprocess = preprocess.to(fabric.device)
    for index in range(len(images)):  # type: ignore[arg-type]
        # The order depends on the index, not on how many images came before, so that a study of fewer images is a part
        # of one of more.
        order = model.order.shuffled(seeded(seed, "analysis", index))
        image, _ = images[index]
        with fabric.autocast():
            # The image is a batch by itself, because all images of a batch would run in the same order.
            embedded = model.embed(preprocess(image[None].to(fabric.device)))
            states = [embedded]
            for state, _ in model.run_steps(embedded, order):
                states.append(state)
        yield order, [state.tokens[0].float() for state in states]


def contributions(tokens: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """How much each step of a run changes a token (arXiv 2407.04513, figures 4c and 4d).

    The change is not divided by the norm of the token that the step got. That norm grows with every step, so the
    quotient falls with the position in any model, even an untrained one. The change itself doesn't: a layer normalises
    its input, so that what an untrained layer adds has nearly the same norm at every position.

    Args:
        tokens: a token before the first step and after each step, [dim] each.

    Returns:
        For each step the L2 norm of what it adds to the token, and that of the token it got.
    """
    added = [float((after - before).norm()) for before, after in pairwise(tokens)]
    received = [float(before.norm()) for before in tokens[:-1]]
    return added, received


def project(outputs: Tensor, seed: int) -> Tensor:
    """UMAP of ``outputs`` [images, features] to the plane, float32 [images, 2].

    Raises:
        UserError: without the package umap-learn.
    """
    try:
        import umap
    except ImportError as error:
        raise UserError("UMAP needs umap-learn: pip install 'layershuffle[umap]'") from error
    neighbours = min(15, len(outputs) - 1)  # 15 is UMAP's own choice
    # UMAP is reproducible with one thread only, and warns if it has to reduce the number itself.
    reducer = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1)
    return torch.from_numpy(reducer.fit_transform(outputs.numpy()))
