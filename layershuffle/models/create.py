"""Creates models, with random weights, with timm's, or with those of a file."""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from layershuffle.models.backbones import Head
from layershuffle.models.instancewise import InstanceWiseViT
from layershuffle.models.model import OrderedViT
from layershuffle.models.position import Position, PositionTable
from layershuffle.models.timm_models import make_timm_model
from layershuffle.orders.order import Order, OrderLike


def create_model(
    name: str,
    num_classes: int,
    position: Position = "none",
    pretrained: bool | str = False,
    *,
    positions: int | None = None,
    head: Head = "average",
    order: str | None = None,
    choices: Sequence[str] | None = None,
    norm_eps: float | None = None,
    position_dim: int = 32,
    position_dropout: float = 0.0,
    position_table: PositionTable = "shared",
    **timm_args: Any,
) -> OrderedViT:
    """Create a timm vision transformer that runs any execution order.

    Args:
        name: a timm model, such as ``vit_base_patch16_224.orig_in21k_ft_in1k``.
        num_classes: how many classes the model has. A pretrained head of another size is replaced by a new one. With 0
            there is no head, and the logits are the features that it would read.
        position: whether the layers ignore the position at which they run ("none"), "encode" it or "predict" it.
        pretrained: False for random weights, True for timm's (fetched from the Hugging Face hub), or a path to weights
            of the same backbone: a file of timm, of Hugging Face's transformers or of another trainer (.pth,
            .safetensors), a checkpoint of ``layershuffle train``, an exported folder, or the name of a published model
            such as ``mini_glyphs``. If the model has fewer layers, it takes the first ones.
        positions: how many positions the layers tell apart, by default the number of steps in its base order.
            Orders with repeats need more.
        head: how a distilled DeiT classifies: with the "average" of its two heads, or with the "class" token's alone.
        order: the model's base order, which it runs by default and whose steps samplers draw from: an order's text, or
            a name such as ``cycle(6)``, ``cycle-rev(6)`` or ``sequence(6)`` (parameter sharing, arXiv 2104.06022),
            ``sandwich(3)`` or ``sublayers`` (arXiv 1911.03864). By default the layers run in sequence.
        choices: orders in the same form; each image learns to choose one of them (IOT, arXiv 2103.03457), and no
            sampler is used.
        norm_eps: the epsilon of the backbone's layer norms, by default timm's.
        position_dim: width of the vectors that encode the positions, by default that of the authors' code.
        position_dropout: dropout of the projections that mix these vectors into the tokens.
        position_table: whether there is one table of these vectors for the model, "shared" by the layers as in the
            authors' code, or one "per_layer", as the paper can be read too.
        timm_args: anything that ``timm.create_model`` takes, such as ``img_size`` or ``drop_path_rate``.

    Raises:
        UserError: if timm has no such model, its family isn't supported, or the weights can't be fetched, can't be
            read, or belong to another backbone.
    """
    # Checkpoints record this to make the model again.
    config: dict[str, Any] = {
        "name": name,
        "num_classes": num_classes,
        "position": position,
        "positions": positions,
        "head": head,
        "norm_eps": norm_eps,
        **timm_args,
    }
    if order:
        config["order"] = _text(order)
    if choices is not None:
        config["choices"] = [_text(choice) for choice in choices]

    # Checkpoints of earlier versions lack these arguments. Where they have their defaults, they are left out here too,
    # so that the same model has the same description and earlier runs can be resumed.
    encoding = {"position_dim": position_dim, "position_dropout": position_dropout, "position_table": position_table}
    parameters = inspect.signature(create_model).parameters
    not_default = {argument: value for argument, value in encoding.items() if value != parameters[argument].default}
    config.update(not_default)

    vit = make_timm_model(name, num_classes, pretrained, timm_args)
    # timm's models have no argument for the epsilon.
    if norm_eps is not None:
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps

    # What the package adds to the timm model.
    arguments: dict[str, Any] = {
        "position": position,
        "positions": positions,
        "head": head,
        "order": order or None,
        **encoding,
    }
    model = OrderedViT(vit, **arguments) if choices is None else InstanceWiseViT(vit, choices, **arguments)
    model.config = config
    return model


ARGUMENTS = inspect.signature(create_model).parameters.keys() - {"pretrained", "timm_args"}
"""The arguments of ``create_model`` that describe a model and are not timm's."""


def _text(order: OrderLike) -> str:
    """The order as a file can record it. A name, such as ``cycle(6)``, is kept."""
    if isinstance(order, str):
        return order
    return str(Order(order))
