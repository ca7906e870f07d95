"""The parts of a model that become programs: the whole model in one order, or what any order is put together from."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layershuffle.data.preprocessing import Preprocess
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.models.part import copy_with_layers
from layershuffle.models.widen import has_groups, why_not_wide, widen
from layershuffle.orders.order import Order


@dataclass(frozen=True)
class Part:
    """A part of a model that becomes a program.

    Attributes:
        module: what computes.
        inputs: the names of its inputs.
        outputs: the names of its outputs.
        example: inputs to trace it with.
    """

    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    example: tuple[Tensor, ...]


def part_in_one_order(model: OrderedViT, order: Order, preprocess: Preprocess | None, images: Tensor) -> Part:
    """The whole model, with the layers of each group merged where that gives the same logits.

    Args:
        model: the model.
        order: the only order that it runs.
        preprocess: what normalises the images within the program, or None.
        images: an example, [batch, channels, size, size], to trace the program with.
    """
    module: nn.Module
    if has_groups(order) and why_not_wide(model, order) is None:
        module = _Wide(model, order, preprocess)
    else:
        module = _Whole(model, order, preprocess)
    return Part(module, ["images"], ["logits"], (images,))


def parts_in_any_order(model: OrderedViT, preprocess: Preprocess | None, images: Tensor) -> dict[str, Part]:
    """The parts of a model whose order is decided by whoever calls the programs, by the names of their files.

    They are those of ``LayerPrograms``. The arguments are those of ``part_in_one_order``.
    """
    # The images are embedded for an example of what a layer gets. In some backbones that is a context besides the
    # tokens, such as rotary embeddings.
    embed = _Embed(model, preprocess)
    with torch.inference_mode():
        tokens, *context = embed(images)
    context_names = ["context"] if context else []
    position = torch.tensor(0, device=images.device)

    parts = {"embed": Part(embed, ["images"], ["tokens", *context_names], (images,))}
    for layer in range(model.depth):
        inputs = ["tokens", "position", *context_names]
        example = (tokens, position, *context)
        parts[f"layer{layer}"] = Part(_Layer(model, layer), inputs, ["output"], example)
    parts["classify"] = Part(_Classify(model), ["tokens"], ["logits"], (tokens,))
    return parts


class _Whole(nn.Module):
    """The whole model in one order."""

    def __init__(self, model: OrderedViT, order: Order, preprocess: Preprocess | None) -> None:
        super().__init__()
        # The weights of layers that don't run would otherwise be in the program's file.
        self.model = copy_with_layers(model, order.layers)
        self.order = order
        self.preprocess = preprocess

    def forward(self, images: Tensor) -> Tensor:
        return self.model.run(self._embed(images), self.order).logits

    def _embed(self, images: Tensor) -> State:
        if self.preprocess:
            images = self.preprocess.normalise(images)
        return self.model.embed(images)


class _Wide(nn.Module):
    """The whole model in one order, with the layers of each group merged into a wider one."""

    def __init__(self, model: OrderedViT, order: Order, preprocess: Preprocess | None) -> None:
        super().__init__()
        self.vit = widen(model, order)
        self.preprocess = preprocess

    def forward(self, images: Tensor) -> Tensor:
        if self.preprocess:
            images = self.preprocess.normalise(images)
        return self.vit(images)


class _Embed(_Whole):
    """What comes before the layers."""

    def __init__(self, model: OrderedViT, preprocess: Preprocess | None) -> None:
        super().__init__(model, Order(), preprocess)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        tokens, context = self._embed(images)
        if context is None:
            return (tokens,)
        return tokens, context


class _Layer(nn.Module):
    """One layer, with the projection of its position if there is one."""

    def __init__(self, model: OrderedViT, layer: int) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.layer = layer
        self.block = model.layers[layer]
        self.has_encoding = model.encoding is not None
        if model.encoding:
            self.table = model.encoding.table_of(layer)
            self.projection = model.encoding.projections[layer]

    def forward(self, tokens: Tensor, position: Tensor, context: Tensor | None = None) -> Tensor:
        if self.has_encoding:
            tokens = self.projection(tokens, self.table(position))
        return self.backbone.run(self.block, tokens, self.backbone.context_of(self.layer, context))


class _Classify(_Whole):
    """What comes after the layers."""

    def __init__(self, model: OrderedViT) -> None:
        super().__init__(model, Order(), None)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.classify(State(tokens)).logits
