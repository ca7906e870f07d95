"""What can run: the order and its text form, named orders, and the samplers and protocols that choose orders."""

from layershuffle.orders import families as families  # registers the protocols
from layershuffle.orders.named import parse_order, permutation, sequential
from layershuffle.orders.order import Order, OrderLike, Step, Unit, seeded
from layershuffle.orders.sampler import OrderSampler
from layershuffle.orders.samplers import (
    FirstLayers,
    GrowingDepth,
    LayerDrop,
    RandomGroups,
    RandomSchedule,
    RandomSubset,
    Recorded,
    Sequential,
    Shuffle,
    ShuffleDrop,
)

__all__ = [
    "FirstLayers", "GrowingDepth", "LayerDrop", "Order", "OrderLike", "OrderSampler", "RandomGroups",
    "RandomSchedule", "RandomSubset", "Recorded", "Sequential", "Shuffle", "ShuffleDrop", "Step", "Unit",
    "parse_order", "permutation", "seeded", "sequential",
]  # fmt: skip
