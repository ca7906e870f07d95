"""Creates models with the weights of another one: of a checkpoint, or of the layers that an order runs."""

import inspect
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError, last_line
from layershuffle.models.backbones import FAMILIES
from layershuffle.models.create import ARGUMENTS, create_model
from layershuffle.models.layers import layer_of, take_layers
from layershuffle.models.model import OrderedViT
from layershuffle.models.weights import merge_lora
from layershuffle.orders.order import MAX_STEPS, OrderLike
from layershuffle.plurals import counted

MAX_BUFFERS = 1 << 26
"""How many values the tables may have that a model computes: 100 times as many as in timm's largest models."""


def create_fitting(weights: Mapping[str, Tensor], source: str, **config: Any) -> OrderedViT:
    """Create the model that ``config`` describes, with these weights. Memory is only taken once they are known to fit.

    Args:
        weights: the whole state dict of an OrderedViT. LoRA's matrices in it are added to the weights.
        source: the file that the weights and the description came from, for error messages.
        config: arguments of ``create_model``. They come from the file, so those that read or fetch others are refused.

    Raises:
        UserError: if the description is that of no model, or the weights don't fit it.
    """
    # ``create_model`` passes all other arguments on to timm.create_model, which also takes paths and addresses of
    # weights. The classes of timm's models don't take those, so that their own arguments are safe.
    known = set(ARGUMENTS)
    for path in FAMILIES:
        known.update(inspect.signature(resolve_name(path)).parameters)
    unknown = sorted(map(str, config.keys() - known))
    if unknown:
        raise UserError(f"the model it names has {unknown[0][:200]}, which describes no model")

    # A damaged description or damaged weights can fail at any of these steps.
    try:
        weights = merge_lora(weights)
        _check_fit(weights, config)
        model = create_model(**config)
        model.load_state_dict(weights)
    except (TypeError, RuntimeError, AttributeError, KeyError) as error:
        reason = last_line(error)[:300]
        raise UserError(f"{source} is damaged, its weights don't fit the model it names: {reason}") from error
    return model


def _check_fit(weights: dict[str, Tensor], config: Mapping[str, Any]) -> None:
    """Raise a RuntimeError if the weights are not those of the model that ``config`` describes; takes no memory."""
    # A model of a million layers would take minutes to make, even without values.
    depth = config.get("depth")
    layers = {layer_of(name) for name in weights} - {None}
    if depth is not None and depth != len(layers):
        raise RuntimeError(f"there are weights of {counted(len(layers), 'layer')}, not of {depth}")
    positions = config.get("positions")
    if positions is not None and not 0 < positions <= MAX_STEPS:
        raise RuntimeError(f"it can't have {positions} positions")

    # On the "meta" device, tensors have shapes and no values. The weights are compared with such a model.
    with torch.device("meta"):
        shapes = create_model(**config)
    expected = shapes.state_dict()
    for name, value in weights.items():
        # torch would convert silently. It rounds floats to integers, and takes only the real part of complex numbers.
        if name in expected and value.is_floating_point() != expected[name].is_floating_point():
            raise RuntimeError(f"{name} holds {value.dtype} in place of {expected[name].dtype}")
    shapes.load_state_dict(weights, assign=True)

    # Some tables, such as rotary embeddings, are computed and not stored, so that weights of the right shapes set no
    # limit to their size.
    if sum(buffer.numel() for buffer in shapes.buffers()) > MAX_BUFFERS:
        raise RuntimeError("its tables of positions are too large: the image size can't be right")


def cut(model: OrderedViT, order: OrderLike | None = None) -> OrderedViT:
    """A model whose layers are copies of those that ``model`` runs in an order, one after the other.

    In sequence it gives the same logits and position logits. Its images choose no orders.

    Args:
        model: the model.
        order: the order; by default the model's base order.

    Raises:
        UserError: if ``model`` can't run the order, or some of its steps are halves of layers or several in parallel.
    """
    order = model.order if order is None else model.check(order)
    layers = order.whole_layers
    if layers is None:
        raise UserError(f"only whole layers, one after the other, make a plain model, and '{order}' runs others")

    # The new model runs its layers in sequence. It keeps the number of positions that its weights are made for.
    config = {name: value for name, value in model.config.items() if name not in ("order", "choices")}
    config.update(depth=len(layers), positions=model.positions)
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("choice.")}
    cut_model = create_fitting(take_layers(weights, layers), "the model", **config)
    return cut_model.train(model.training)


@torch.no_grad()
def with_classes(model: OrderedViT, labels: Sequence[int]) -> OrderedViT:
    """A copy of a model that picks among some of its classes.

    Args:
        model: the model, whose classifier is linear.
        labels: the indices of the classes to keep, in the sequence that they are to have.
    """
    copied = deepcopy(model)
    vit: Any = copied.vit
    # timm's own method, ``reset_classifier``, would make a new classifier with random weights.
    for classifier in _classifiers(vit):
        classifier.weight = nn.Parameter(classifier.weight[labels])
        if classifier.bias is not None:
            classifier.bias = nn.Parameter(classifier.bias[labels])
        classifier.out_features = len(labels)
    copied.config = {**model.config, "num_classes": len(labels)}
    return copied


def _classifiers(vit: Any) -> tuple[nn.Linear, ...]:
    """The classifier of a timm model, or both of a distilled model, whose logits are averaged."""
    classifiers = vit.get_classifier()
    return classifiers if isinstance(classifiers, tuple) else (classifiers,)


def with_linear_classifier(model: OrderedViT, linear: nn.Linear) -> OrderedViT:
    """A copy of a model whose classifier is ``linear``, a layer that reads the model's features."""
    copied = deepcopy(model)
    vit: Any = copied.vit
    vit.reset_classifier(linear.out_features)
    # Both classifiers of a distilled model get the same weights. The mean of their logits is then what ``linear`` makes
    # of the mean of the tokens that they read, and these are the features of such a model.
    for classifier in _classifiers(vit):
        classifier.load_state_dict(linear.state_dict())
    copied.config = {**model.config, "num_classes": linear.out_features}
    return copied


@torch.no_grad()
def classify_by_mean_of_heads(vit: Any) -> None:
    """Make a distilled timm model, which returns the mean of its two heads, classify by the first head alone."""
    # The mean of the doubled first head and of a head that returns zero is the first head.
    for parameter in vit.head.parameters():
        parameter.mul_(2)
    for parameter in vit.head_dist.parameters():
        parameter.zero_()
