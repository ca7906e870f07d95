"""Scores orders: protocols name the orders, one runner scores them all on one pass over the data."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import Metric

from layershuffle import orders as named
from layershuffle.errors import UserError
from layershuffle.orders import Order, seeded
from layershuffle.results import Score
from layershuffle.vit import OrderedViT, Output


@dataclass(frozen=True)
class Settings:
    """What the protocols may ask for.

    Attributes:
        draws: how many random orders stand for a random choice.
        keep: the numbers of layers to keep when pruning; by default each quarter of the depth.
        orders: orders given one by one.
        seed: decides the random orders.
    """

    draws: int = 10
    keep: tuple[int, ...] = ()
    orders: tuple[Order, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One thing to score. Trials alike in ``protocol`` and ``variant`` are draws of the same thing.

    Attributes:
        protocol: the family of orders, a key of PROTOCOLS.
        variant: what tells it from others of the family, such as {"kept": 6, "strategy": "first"}.
        order: the order, or None for a new random permutation in every batch.
    """

    protocol: str
    order: Order | None
    variant: dict[str, Any] = field(default_factory=dict)


# --- Protocols ----------------------------------------------------------------------------------------------


def sequential(depth: int, settings: Settings) -> Iterator[Trial]:
    """The original order."""
    yield Trial("sequential", named.sequential(depth))


def arbitrary(depth: int, settings: Settings) -> Iterator[Trial]:
    """Uniformly random permutations: a new one for every batch (the paper's), and some over the whole set each."""
    yield Trial("arbitrary", None, {"reading": "per batch"})
    for draw in range(settings.draws):
        order = named.permutation(depth, seeded(settings.seed, "arbitrary", draw))
        yield Trial("arbitrary", order, {"reading": "fixed"})


def pruned(depth: int, settings: Settings) -> Iterator[Trial]:
    """Some layers left out, by each strategy, the others in original and in random sequence."""
    for kept in settings.keep or sorted({max(1, depth * quarter // 4) for quarter in (1, 2, 3, 4)}):
        strategies: dict[str, Callable[..., Order]] = {
            "first": lambda rng, kept=kept: named.first(kept, depth),
            "even": lambda rng, kept=kept: named.evenly_spaced(kept, depth),
            "random": lambda rng, kept=kept: named.random_subset(kept, depth, rng),
        }
        for strategy, choose in strategies.items():
            for sequence in ("original", "random"):
                variant: dict[str, int | str] = {"kept": kept, "strategy": strategy, "sequence": sequence}
                draws = 1 if strategy != "random" and sequence == "original" else settings.draws
                for draw in range(draws):
                    rng = seeded(settings.seed, "pruned", *variant.values(), draw)
                    order = choose(rng)
                    yield Trial("pruned", order if sequence == "original" else order.shuffled(rng), variant)


def landscape(depth: int, settings: Settings) -> Iterator[Trial]:
    """Every choice of layers, in original sequence: 4,095 orders for 12 layers."""
    if depth > 16:
        raise UserError(f"the landscape of {depth} layers has {2**depth - 1:,} orders: it is for models of up to 16")
    for kept in range(1, depth + 1):
        for layers in itertools.combinations(range(depth), kept):
            yield Trial("landscape", Order(layers), {"kept": kept})


def given(depth: int, settings: Settings) -> Iterator[Trial]:
    """The orders that the caller names."""
    for order in settings.orders:
        yield Trial("given", order, {"order": str(order)})


Protocol = Callable[[int, Settings], Iterable[Trial]]
PROTOCOLS: dict[str, Protocol] = {p.__name__: p for p in (sequential, arbitrary, pruned, landscape, given)}


def trials(protocols: Sequence[str], depth: int, settings: Settings) -> list[Trial]:
    """Everything that ``protocols`` ask to be scored on a model of ``depth`` layers.

    Raises:
        UserError: (a ValueError) if there is no such protocol or the model can't do what it asks.
    """
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise UserError(f"there is no protocol named {unknown[0]}: choose from {', '.join(PROTOCOLS)}")
    if found := [trial for name in protocols for trial in PROTOCOLS[name](depth, settings)]:
        return found
    raise UserError(f"there is nothing to score: {', '.join(protocols)} asks for no order")


# --- Running ------------------------------------------------------------------------------------------------


def outputs(model: OrderedViT, images: Tensor, orders: Iterable[Order]) -> Iterator[tuple[Order, Output]]:
    """Run a batch in each of ``orders``; what orders begin with in common is computed once.

    The orders are walked depth first as a trie over their steps, so that besides ``images`` only one activation
    per depth is held. Each output equals ``model(images, order)``; they come in the trie's sequence.
    """
    yield from _descend(model, model.embed(images), [], sorted(set(orders), key=lambda order: order.steps))


def _descend(
    model: OrderedViT, tokens: Tensor, position_logits: list[Tensor | None], orders: list[Order]
) -> Iterator[tuple[Order, Output]]:
    """``orders``: sorted, all of which have run their first len(position_logits) steps, which led to ``tokens``."""
    position = len(position_logits)
    if orders and len(orders[0]) == position:
        yield orders[0], model.classify(tokens, position_logits)
        orders = orders[1:]
    while orders:
        step = orders[0][position]
        same = sum(order[position] == step for order in orders)
        after, step_logits = model.run_step(tokens, step, position)
        yield from _descend(model, after, [*position_logits, step_logits], orders[:same])
        orders = orders[same:]


class Tally(Metric):
    """Top-1 and top-5 accuracy, cross-entropy and position accuracy of one trial, summed on the device."""

    full_state_update = False
    images: Tensor
    top1: Tensor
    top5: Tensor
    loss: Tensor
    positions: Tensor
    positions_right: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss", torch.tensor(0.0), dist_reduce_fx="sum")
        for count in ("images", "top1", "top5", "positions", "positions_right"):
            self.add_state(count, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, output: Output, labels: Tensor) -> None:
        """Add a batch; labels: int64 [batch]."""
        logits = output.logits.float()
        best = logits.topk(min(5, logits.shape[-1])).indices == labels.unsqueeze(1)
        self.images += len(labels)
        self.top1 += best[:, 0].sum()
        self.top5 += best.sum()
        self.loss += F.cross_entropy(logits, labels, reduction="sum")
        if output.position_logits is not None:
            predicted = output.position_logits.argmax(dim=-1)
            self.positions += predicted.numel()
            self.positions_right += (predicted == torch.arange(len(predicted), device=predicted.device)[:, None]).sum()

    def compute(self) -> dict[str, Any]:
        """The scores as plain numbers."""
        images, loss, positions = int(self.images), float(self.loss), int(self.positions)
        return {
            "images": images,
            "top1": int(self.top1) / images,
            "top5": int(self.top5) / images,
            "loss": float(f"{loss / images:.7g}") if math.isfinite(loss) else None,  # all that a float32 sum says
            "position_accuracy": int(self.positions_right) / positions if positions else None,
        }


@torch.inference_mode()
def evaluate(
    model: OrderedViT,
    preprocess: nn.Module,
    batches: DataLoader,
    to_score: Sequence[Trial],
    fabric: Fabric,
    seed: int = 0,
    on_output: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Score every trial on all ``batches``, reading and moving each batch once.

    Args:
        model: any model; it is moved to the device of ``fabric`` and put in evaluation mode.
        preprocess: makes the model's input from the batch's uint8 images, on the device.
        batches: of (uint8 images [batch, channels, height, width], int64 labels [batch]).
        to_score: see ``trials``.
        fabric: the device and the precision.
        seed: decides the orders that are new in every batch.
        on_output: called after each order of each batch, for a progress bar.

    Raises:
        UserError: (a ValueError) before the first batch, if the model can't run one of the orders.
    """
    for trial in to_score:
        if trial.order is not None:
            model.check(trial.order)
    model, preprocess = model.to(fabric.device).eval(), preprocess.to(fabric.device)
    fixed = list(dict.fromkeys(trial.order for trial in to_score if trial.order is not None))
    tallies: dict[Order | None, Tally] = {trial.order: Tally().to(fabric.device) for trial in to_score}
    for at, (images, labels) in enumerate(batches):
        images, labels = preprocess(images.to(fabric.device, non_blocking=True)), labels.to(fabric.device)
        fresh = named.permutation(model.depth, seeded(seed, "per batch", at)) if None in tallies else None
        with fabric.autocast():
            for order, output in outputs(model, images, [*fixed, fresh] if fresh else fixed):
                if order in tallies:
                    tallies[order].update(output, labels)
                if order == fresh:
                    tallies[None].update(output, labels)
                on_output()
    scores = {order: tally.compute() for order, tally in tallies.items()}
    return [
        Score(
            trial.protocol, trial.variant, str(trial.order) if trial.order is not None else None, **scores[trial.order]
        )
        for trial in to_score
    ]
