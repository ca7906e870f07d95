"""Scores orders: protocols name the orders, one runner scores them all on one pass over the data."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import Metric

from layershuffle import named_orders as systems
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
        ends: the painters' n: the first n + 1 and the last n layers stay in place; by default every n there is.
        loops: how often looped-parallel runs its step.
        orders: orders given one by one.
        choices: the orders from which the model's images choose, if they do.
        seed: decides the random orders.
    """

    draws: int = 10
    keep: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    loops: tuple[int, ...] = (3,)
    orders: tuple[Order, ...] = ()
    choices: tuple[Order, ...] = ()
    seed: int = 0


Pick = Literal["chosen", "oracle"]
"""An order for each image: of the model's choices the one it takes, or the best (right if any is, then by its loss)."""


@dataclass(frozen=True)
class Trial:
    """One thing to score. Trials alike in ``protocol`` and ``variant`` are draws of the same thing.

    Attributes:
        protocol: the family of orders, a key of PROTOCOLS.
        variant: what tells it from others of the family, such as {"kept": 6, "strategy": "first"}.
        order: the order, a Pick, or None for a new random permutation in every batch.
    """

    protocol: str
    order: Order | Pick | None
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


def painters(depth: int, settings: Settings) -> Iterator[Trial]:
    """The middle layers skipped, repeated, reversed, shuffled, in parallel and looped (arXiv 2407.09298)."""
    for n in settings.ends or range(max(1, depth // 2)):
        affected = len(systems.middle(n, depth))
        strategies = {
            "skip": systems.skip(n, depth),
            "middle-repeat": systems.middle_repeat(n, depth),
            "reverse": systems.reverse(n, depth),
            "parallel": systems.parallel(n, depth),
        }
        strategies |= {f"looped-parallel {k}x": systems.looped_parallel(n, k, depth) for k in settings.loops}
        for strategy, order in strategies.items():
            yield Trial("painters", order, {"affected": affected, "strategy": strategy})
        for draw in range(settings.draws):
            order = systems.random_middle(n, depth, seeded(settings.seed, "painters", n, draw))
            yield Trial("painters", order, {"affected": affected, "strategy": "random"})


def ablations(depth: int, settings: Settings) -> Iterator[Trial]:
    """Each layer left out by itself (arXiv 2406.19384)."""
    for layer in range(depth):
        yield Trial("ablations", systems.ablate(layer, depth), {"layer": layer})


def swaps(depth: int, settings: Settings) -> Iterator[Trial]:
    """Each layer exchanged with the next (arXiv 2406.19384)."""
    for layer in range(depth - 1):
        yield Trial("swaps", systems.swap(layer, layer + 1, depth), {"layer": layer})


def swap_matrix(depth: int, settings: Settings) -> Iterator[Trial]:
    """Every two layers exchanged; on the diagonal nothing is."""
    for one in range(depth):
        for other in range(one, depth):
            yield Trial("swap-matrix", systems.swap(one, other, depth), {"one": one, "other": other})


def sublayers(depth: int, settings: Settings) -> Iterator[Trial]:
    """Attention and feed-forward halves: sandwich orders of every k, and random permutations (arXiv 1911.03864)."""
    for k in range(depth + 1):
        yield Trial("sublayers", systems.sandwich(k, depth), {"strategy": "sandwich", "k": k})
    for draw in range(settings.draws):
        order = systems.sublayers(depth).shuffled(seeded(settings.seed, "sublayers", draw))
        yield Trial("sublayers", order, {"strategy": "random"})


def instancewise(depth: int, settings: Settings) -> Iterator[Trial]:
    """Each image in the order it chooses, in the best of them, and all in each of them (IOT, arXiv 2103.03457)."""
    if not settings.choices:
        raise UserError("this model's images choose no orders: instancewise is for models trained with model.choices")
    yield Trial("instancewise", "chosen", {"order": "chosen"})
    yield Trial("instancewise", "oracle", {"order": "oracle"})
    for at, order in enumerate(settings.choices, 1):
        yield Trial("instancewise", order, {"order": f"{at} of {len(settings.choices)}"})


Protocol = Callable[[int, Settings], Iterable[Trial]]
PROTOCOLS: dict[str, Protocol] = {
    protocol.__name__.replace("_", "-"): protocol
    for protocol in (
        sequential,
        arbitrary,
        pruned,
        landscape,
        given,
        painters,
        ablations,
        swaps,
        swap_matrix,
        sublayers,
        instancewise,
    )
}
LAYERWISE = ("given", "sublayers", "instancewise")
"""The protocols whose orders name layers; the others speak of the steps of the model's own order."""


def trials(protocols: Sequence[str], own: Order | int, settings: Settings) -> list[Trial]:
    """Everything that ``protocols`` ask to be scored.

    Args:
        protocols: keys of PROTOCOLS.
        own: the model's own order, or the depth of a model that runs its layers in sequence.
        settings: what the protocols may ask for.

    Raises:
        UserError: (a ValueError) if there is no such protocol or the model can't do what it asks.
    """
    if unknown := [name for name in protocols if name not in PROTOCOLS]:
        raise UserError(f"there is no protocol named {unknown[0]}: choose from {', '.join(PROTOCOLS)}")
    own = named.sequential(own) if isinstance(own, int) else own
    layers = 1 + max(own.layers, default=-1)
    found: list[Trial] = []
    for name in protocols:
        for trial in PROTOCOLS[name](layers if name in LAYERWISE else len(own), settings):
            if isinstance(trial.order, Order) and name not in LAYERWISE:
                trial = replace(trial, order=trial.order.over(own))
            found.append(trial)
    if found:
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
    while orders:
        position = len(position_logits)
        if len(orders[0]) == position:
            yield orders[0], model.classify(tokens, position_logits)
            orders = orders[1:]
            continue
        step = orders[0][position]
        same = sum(order[position] == step for order in orders)
        after, step_logits = model.run_step(tokens, step, position)
        if same == len(orders):  # nothing else begins here, so these tokens can go
            tokens, position_logits = after, [*position_logits, step_logits]
        else:
            yield from _descend(model, after, [*position_logits, step_logits], orders[:same])
            orders = orders[same:]


class Tally(Metric):
    """Top-1 and top-5 accuracy, cross-entropy and position accuracy of ``count`` trials, summed on the device."""

    full_state_update = False
    images: Tensor
    top1: Tensor
    top5: Tensor
    loss: Tensor
    positions: Tensor
    positions_right: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros(count), dist_reduce_fx="sum")
        for name in ("images", "top1", "top5", "positions", "positions_right"):
            self.add_state(name, torch.zeros(count, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, first: int, outputs: Sequence[Output], labels: Tensor) -> None:
        """Add a batch to the trials from number ``first`` on, one output each; labels: int64 [batch]."""
        rows = slice(first, first + len(outputs))
        logits = torch.stack([output.logits for output in outputs]).float()
        best = logits.topk(min(5, logits.shape[-1])).indices == labels.unsqueeze(1)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(outputs)), reduction="none")
        self.images[rows] += len(labels)
        self.top1[rows] += (logits.argmax(dim=-1) == labels).sum(dim=1)  # topk promises no first of equals
        self.top5[rows] += best.sum(dim=(1, 2))
        self.loss[rows] += losses.view(len(outputs), -1).sum(dim=1)
        for row, (_, position_logits) in enumerate(outputs, first):
            if position_logits is not None:
                predicted = position_logits.argmax(dim=-1)
                held = torch.arange(len(predicted), device=predicted.device)
                self.positions[row] += predicted.numel()
                self.positions_right[row] += (predicted == held[:, None]).sum()

    def compute(self) -> list[dict[str, Any]]:
        """The scores of each trial as plain numbers."""
        counts = (self.images, self.top1, self.top5, self.loss, self.positions, self.positions_right)
        return [
            {
                "images": images,
                "top1": top1 / images,
                "top5": top5 / images,
                "loss": float(f"{loss / images:.7g}") if math.isfinite(loss) else None,  # all that a float32 sum says
                "position_accuracy": right / positions if positions else None,
            }
            for images, top1, top5, loss, positions, right in zip(*(count.tolist() for count in counts))
        ]


COUNTED_AT_ONCE = 1 << 22
"""Numbers in the outputs that wait to be counted together; one by one, small models would mostly count."""


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
        batches: of (uint8 images [batch, channels, height, width], int64 labels [batch]); of several processes each has
            its part, and all return the scores of all images.
        to_score: see ``trials``.
        fabric: the device and the precision.
        seed: decides the orders that are new in every batch.
        on_output: called after each order of each batch, for a progress bar.

    Raises:
        UserError: (a ValueError) before the first batch, if the model can't run one of the orders.
    """
    fixed = sorted({trial.order for trial in to_score if isinstance(trial.order, Order)}, key=lambda order: order.steps)
    for order in fixed:
        model.check(order)
    model, preprocess = model.to(fabric.device).eval(), preprocess.to(fabric.device)
    others = [kind for kind in (None, *get_args(Pick)) if any(trial.order == kind for trial in to_score)]
    rows: dict[Order | Pick | None, int] = {order: row for row, order in enumerate([*fixed, *others])}
    tally = Tally(len(rows)).to(fabric.device)
    picks = [pick for pick in others if pick]
    choices: tuple[Order, ...] = model.choice.orders if picks and model.choice else ()
    chosen = torch.zeros(len(choices), device=fabric.device)
    for at, (images, labels) in enumerate(batches):
        if not len(labels):
            continue  # other processes have the last images
        images, labels = (part.to(fabric.device, non_blocking=True) for part in (images, labels))
        images = preprocess(images)
        fresh = model.order.shuffled(seeded(seed, "per batch", at)) if None in rows else None
        waiting: list[Output] = []
        counted = 0
        by_choice: dict[Order, Tensor] = {}
        with fabric.autocast():
            for order, output in outputs(model, images, [*fixed, *choices, *([fresh] if fresh else [])]):
                if order in rows:  # they come in the sequence of the rows
                    waiting.append(output)
                    if order == fixed[-1] or len(waiting) * _size(output) >= COUNTED_AT_ONCE:
                        tally.update(counted, waiting, labels)
                        counted, waiting = counted + len(waiting), []
                if order == fresh:
                    tally.update(rows[None], [output], labels)
                if order in choices:
                    by_choice[order] = output.logits.float()
                on_output()
            if choices and model.choice:
                logits = torch.stack([by_choice[order] for order in choices])
                picked = _picked(model.choice(model.embed(images)), logits, labels)
                chosen += picked["chosen"].bincount(minlength=len(choices))
                for pick in picks:
                    each = torch.arange(len(labels), device=labels.device)
                    tally.update(rows[pick], [Output(logits[picked[pick], each])], labels)
    chosen = cast(Tensor, fabric.all_reduce(chosen, reduce_op="sum"))
    scores = tally.compute()
    shares = dict(zip(choices, (chosen / chosen.sum()).tolist()))
    return [
        Score(
            trial.protocol,
            trial.variant,
            str(trial.order) if isinstance(trial.order, Order) else None,
            **scores[rows[trial.order]],
            chosen=shares.get(trial.order) if isinstance(trial.order, Order) else None,
        )
        for trial in to_score
    ]


def _size(output: Output) -> int:
    return sum(logits.numel() for logits in output if logits is not None)


def _picked(choice_logits: Tensor, logits: Tensor, labels: Tensor) -> dict[Pick, Tensor]:
    """For each image which choice it takes, int64 [batch], by kind of Pick; logits: [choices, batch, classes]."""
    losses = torch.stack([F.cross_entropy(of_one, labels, reduction="none") for of_one in logits])
    wrong = logits.argmax(dim=2) != labels
    # An order that is right can have the larger loss, but no loss is as large as this.
    return {"chosen": choice_logits.argmax(dim=1), "oracle": (losses + 1e6 * wrong).argmin(dim=0)}
