"""What can run: the order and its text form, named orders, and the samplers and protocols that choose orders."""

from layershuffle.orders.named import parse_order, permutation, sequential
from layershuffle.orders.order import Order, OrderLike, Step, Unit, seeded
from layershuffle.orders.samplers import FirstLayers, LayerDrop, OrderSampler, Sequential, Shuffle

Depth = FirstLayers  # the name that it has in the configs of older runs

__all__ = [
    "Depth", "FirstLayers", "LayerDrop", "Order", "OrderLike", "OrderSampler", "Sequential", "Shuffle", "Step",
    "Unit", "parse_order", "permutation", "seeded", "sequential",
]  # fmt: skip
