"""Protocols: named families of orders to evaluate."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from layershuffle.errors import UserError
from layershuffle.orders import named
from layershuffle.orders.order import Order, seeded


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
        affected = len(named.middle(n, depth))
        strategies = {
            "skip": named.skip(n, depth),
            "middle-repeat": named.middle_repeat(n, depth),
            "reverse": named.reverse(n, depth),
            "parallel": named.parallel(n, depth),
        }
        strategies |= {f"looped-parallel {k}x": named.looped_parallel(n, k, depth) for k in settings.loops}
        for strategy, order in strategies.items():
            yield Trial("painters", order, {"affected": affected, "strategy": strategy})
        for draw in range(settings.draws):
            order = named.random_middle(n, depth, seeded(settings.seed, "painters", n, draw))
            yield Trial("painters", order, {"affected": affected, "strategy": "random"})


def ablations(depth: int, settings: Settings) -> Iterator[Trial]:
    """Each layer left out by itself (arXiv 2406.19384)."""
    for layer in range(depth):
        yield Trial("ablations", named.ablate(layer, depth), {"layer": layer})


def swaps(depth: int, settings: Settings) -> Iterator[Trial]:
    """Each layer exchanged with the next (arXiv 2406.19384)."""
    for layer in range(depth - 1):
        yield Trial("swaps", named.swap(layer, layer + 1, depth), {"layer": layer})


def swap_matrix(depth: int, settings: Settings) -> Iterator[Trial]:
    """Every two layers exchanged; on the diagonal nothing is."""
    for one in range(depth):
        for other in range(one, depth):
            yield Trial("swap-matrix", named.swap(one, other, depth), {"one": one, "other": other})


def sublayers(depth: int, settings: Settings) -> Iterator[Trial]:
    """Attention and feed-forward halves: sandwich orders of every k, and random permutations (arXiv 1911.03864)."""
    for k in range(depth + 1):
        yield Trial("sublayers", named.sandwich(k, depth), {"strategy": "sandwich", "k": k})
    for draw in range(settings.draws):
        order = named.sublayers(depth).shuffled(seeded(settings.seed, "sublayers", draw))
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
