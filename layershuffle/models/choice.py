"""The choice of an order for each image: instance-wise reordering (IOT, arXiv 2103.03457)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError
from layershuffle.orders.order import Order


class OrderChoice(nn.Module):
    """Predicts from the mean of an image's embedded tokens which of ``orders`` suits it.

    Args:
        orders: the orders to choose from.
        dim: the width of the tokens.

    Raises:
        UserError: if there are no orders, or one is there twice.
    """

    def __init__(self, orders: Sequence[Order], dim: int) -> None:
        super().__init__()
        if not orders:
            raise UserError("there is nothing to choose from: give one order or more as choices")
        for order in orders:
            if orders.count(order) > 1:
                raise UserError(f"the orders to choose from must differ, but '{order}' is given more than once")
        self.orders = tuple(orders)
        self.predictor = nn.Linear(dim, len(orders))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [batch, tokens, dim], before the first layer. Returns logits [batch, orders]."""
        return self.predictor(tokens.mean(dim=1))

    def count(self, chosen: Tensor) -> Tensor:
        """How many images chose each order, int64 [orders].

        Unlike ``bincount``, this doesn't wait for the device.

        Args:
            chosen: the index of the order that each image chose, int64 [batch].
        """
        # Every image is compared with every order, which gives bool [batch, orders].
        orders = torch.arange(len(self.orders), device=chosen.device)
        return (chosen.unsqueeze(1) == orders).sum(dim=0)
