"""What can run: the order and its text form, named orders, and the samplers and protocols that choose orders."""

from layershuffle.orders.named import parse_order, permutation, sequential
from layershuffle.orders.order import Order, OrderLike, Step, Unit, seeded
from layershuffle.orders.samplers import FirstLayers, LayerDrop, OrderSampler, Sequential, Shuffle


class Depth(FirstLayers):
    """FirstLayers under the name that it has in the configs of version 0.1, which also say just ``Depth``."""


__all__ = [
    "Depth", "FirstLayers", "LayerDrop", "Order", "OrderLike", "OrderSampler", "Sequential", "Shuffle", "Step",
    "Unit", "parse_order", "permutation", "seeded", "sequential",
]  # fmt: skip
