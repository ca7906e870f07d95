"""A vision transformer whose images choose the order in which the layers run (IOT, arXiv 2103.03457)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from layershuffle.errors import UserError
from layershuffle.models.backbones import State
from layershuffle.models.choice import OrderChoice
from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import OrderLike


class InstanceWiseViT(OrderedViT):
    """An ``OrderedViT`` in which each image runs in one of a few orders, the one that it chooses.

    A call that names an order runs all images in that one.

    Args:
        vit: a timm model.
        choices: the orders to choose from.
        arguments: the other arguments of ``OrderedViT``.

    Attributes:
        choice: predicts which order suits an image.

    Raises:
        UserError: if the choices are none, or the model can't run one of them, or it predicts positions.
    """

    choice: OrderChoice

    def __init__(self, vit: nn.Module, choices: Sequence[OrderLike], **arguments: Any) -> None:
        super().__init__(vit, **arguments)
        if self.prediction:
            raise UserError("images that choose their order can't predict positions: use position none or encode")
        self.choice = OrderChoice([self.check(order) for order in choices], self.backbone.dim)

    def forward(self, images: torch.Tensor, order: OrderLike | None = None) -> Output:
        """Classify as ``OrderedViT.forward`` does; without ``order``, each image runs in the order that it chooses."""
        if order is not None:
            return super().forward(images, order)
        return self._run_chosen(self.embed(images))

    def _run_chosen(self, state: State) -> Output:
        """Run each image in the order that it chooses; images that choose the same order run together."""
        chosen = self.choice(state.tokens).argmax(dim=1)
        by_choice = chosen.argsort(stable=True)
        # Python has to know the sizes of the groups, so this waits for the device. Nothing else here does.
        sizes = self.choice.count(chosen).tolist()

        logits = []
        for group, order in zip(by_choice.split(sizes), self.choice.orders):
            if len(group):
                logits.append(self.run(state.of(group), order).logits)
        # The logits are sorted by choice now. The argsort of a permutation is its inverse: it puts each image back in
        # its place.
        return Output(torch.cat(logits)[by_choice.argsort()])

    def compile(self, **options: Any) -> None:
        """Compile each layer in place, see ``OrderedViT.compile``, for groups of images of any size."""
        super().compile(**{"dynamic": None, **options})
