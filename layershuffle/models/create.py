"""Creates models, with random or given weights."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError
from layershuffle.models.model import Head, OrderedViT
from layershuffle.models.position import Position
from layershuffle.models.weights import read_backbone
from layershuffle.orders.named import parse_order
from layershuffle.orders.order import MAX_STEPS, sequential


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
    **timm_args: Any,
) -> OrderedViT:
    """Create a timm vision transformer that runs any execution order.

    Args:
        name: a timm model, such as ``vit_base_patch16_224.orig_in21k_ft_in1k``.
        num_classes: the classes to tell apart. A pretrained head of another size is replaced by a new one.
        position: what the layers make of their position: "none", "encode" or "predict".
        pretrained: False for random weights, True for timm's (fetched from the Hugging Face hub), or a path to
            weights of the same backbone: a timm state dict (.pth, .safetensors) or a checkpoint of train.py. With
            ``depth`` among timm_args, the first so many of their layers.
        positions: the positions that can be told apart, by default one per step of the own order; more for orders
            with repeats.
        order: the model's own order, which it runs unless told otherwise: an order's text or a name such as
            ``cycle(6)``, see named_orders.NAMED. By default its layers in sequence.
        choices: orders in the same form, from which each image takes one unless told otherwise (arXiv 2103.03457).
        head: "average" or "class", for distilled models; see OrderedViT.
        norm_eps: the epsilon of the backbone's layer norms, by default timm's (1e-6).
        timm_args: anything that ``timm.create_model`` takes, such as ``img_size`` or ``drop_path_rate``.

    Raises:
        UserError: (a ValueError) if timm has no such model, it isn't a plain vision transformer, or the weights
            can't be fetched, can't be read, or belong to another backbone.
    """
    import timm
    from timm.models.vision_transformer import VisionTransformer

    config = {"name": name, "num_classes": num_classes, "position": position, "positions": positions}
    config |= {"head": head, "norm_eps": norm_eps, **timm_args}
    config |= {"order": order} if order else {}
    config |= {"choices": list(choices)} if choices is not None else {}
    if not timm.is_model(name):  # timm itself would look further, in folders and on the hub
        raise _unknown(name)
    depth = timm_args.get("depth")
    if depth is not None and depth < 1:
        raise UserError(f"a model has one layer or more, not {depth}")
    try:
        if isinstance(pretrained, str):
            weights = _first_layers(read_backbone(pretrained), depth, pretrained)
            timm_args["pretrained_cfg_overlay"] = _as_pretrained(weights, name, num_classes)
        elif pretrained and depth:
            whole = {key: value for key, value in timm_args.items() if key != "depth"}
            weights = timm.create_model(name, pretrained=True, num_classes=num_classes, **whole).state_dict()
            weights = _first_layers(weights, depth, f"the pretrained {name}")
            timm_args["pretrained_cfg_overlay"] = _as_pretrained(weights, name, num_classes)
        vit: Any = timm.create_model(name, pretrained=bool(pretrained), num_classes=num_classes, **timm_args)
    except Exception as error:
        raise _explained(error, name, pretrained) from error
    vit.pretrained_cfg.pop("state_dict", None)  # else the model keeps a second copy of its first weights
    if not isinstance(vit, VisionTransformer):
        raise UserError(f"{name} is a {type(vit).__name__}, not one of timm's VisionTransformer models")
    if not len(vit.blocks):
        raise UserError(f"{name} with these arguments has no layers")
    if norm_eps is not None:
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
    own = parse_order(order or "sequential", sequential(len(vit.blocks)))
    several = None if choices is None else [parse_order(text, own) for text in choices]
    model = OrderedViT(vit, position, positions, head, own, several)
    model.config = config
    return model


def create_fitting(weights: Mapping[str, Tensor], source: str, **config: Any) -> OrderedViT:
    """Create the model that ``config`` describes, with these weights; no memory is taken before they are known to fit.

    Args:
        weights: the whole state dict of an OrderedViT.
        source: the file that the weights and the description came from, for error messages.
        config: arguments of ``create_model``. They come from the file, so they may be anything.

    Raises:
        UserError: as ``create_model``; if the weights don't fit; if an argument would read or fetch other files.
    """
    try:
        _check_fit(weights, config)
        model = create_model(**config)
        model.load_state_dict(weights)
    except (TypeError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{source} is damaged, its weights don't fit the model it names: {reason}") from error
    return model


def _check_fit(weights: Mapping[str, Tensor], config: dict[str, Any]) -> None:
    from timm.models.vision_transformer import VisionTransformer

    if strange := config.keys() - _DESCRIBED - inspect.signature(VisionTransformer).parameters.keys():
        raise UserError(f"the model it names has {sorted(map(str, strange))[0][:200]}, which describes no model")
    layers = {int(found[1]) for key in weights if (found := re.match(r"vit\.blocks\.([0-9]{1,4})\.", key))}
    depth, positions = config.get("depth"), config.get("positions")
    if depth is not None and depth != len(layers):
        raise RuntimeError(f"there are weights of {len(layers)} layers, not of {depth}")
    if positions is not None and not 0 < positions <= MAX_STEPS:
        raise RuntimeError(f"{positions} are no positions")
    with torch.device("meta"):  # shapes without values
        shapes = {name: value.shape for name, value in create_model(**config).state_dict().items()}
    if wrong := sorted(name for name in shapes.keys() | weights.keys() if shapes.get(name) != _shape(weights, name)):
        raise RuntimeError(f"{len(wrong)} of them differ in name or shape, such as {wrong[0][:200]}")


_DESCRIBED = {"name", "num_classes", "position", "positions", "head", "norm_eps", "order", "choices"}
"""What describes a model, besides the arguments of timm's class."""


def _shape(weights: Mapping[str, Tensor], name: str) -> torch.Size | None:
    return weights[name].shape if isinstance(weights.get(name), Tensor) else None


def _first_layers(weights: dict[str, Tensor], depth: int | None, source: str) -> dict[str, Tensor]:
    """What a model of ``depth`` layers takes of a deeper one's weights; all of them if no depth is asked for."""
    layers = {key: int(found[1]) for key in weights if (found := re.match(r"blocks\.([0-9]+)\.", key))}
    count = 1 + max(layers.values(), default=-1)
    if depth and count < depth:
        raise UserError(f"{source} has only {count} layers: a model of depth {depth} can't start from it")
    return {key: value for key, value in weights.items() if depth is None or layers.get(key, -1) < depth}


def _as_pretrained(weights: dict[str, Tensor], name: str, num_classes: int) -> dict[str, Any]:
    """What makes timm load these weights, all of them or none, with a new head where it has other classes.

    timm gives up its check that every weight fits once it replaces the head, so the new head is put in here.
    """
    import timm

    patches = weights.get("patch_embed.proj.weight")
    if patches is None or patches.ndim != 4:
        raise KeyError("patch_embed.proj.weight")
    dim, channels = patches.shape[:2]
    known = timm.get_pretrained_cfg(name)
    classifiers = (known and known.classifier) or "head"
    for head in (classifiers,) if isinstance(classifiers, str) else classifiers:
        if len(weights.get(f"{head}.weight", ())) != num_classes:
            weights[f"{head}.weight"] = nn.init.trunc_normal_(torch.empty(num_classes, dim), std=0.02)
            weights[f"{head}.bias"] = torch.zeros(num_classes)
    overlay = {"state_dict": weights, "custom_load": False, "num_classes": num_classes}
    return overlay | ({"input_size": (channels, *known.input_size[1:])} if known else {})


def _unknown(name: str) -> UserError:
    return UserError(f"timm has no model named {name}: timm.list_models('vit*') lists those it has")


def _explained(error: Exception, name: str, pretrained: bool | str) -> Exception:
    """The error of ``timm.create_model`` as a sentence for whoever can do something about it."""
    if isinstance(error, UserError):
        return error
    text = str(error).strip().splitlines()
    if "Invalid pretrained tag" in str(error):
        return _unknown(name)
    if isinstance(pretrained, str) and isinstance(error, (RuntimeError, KeyError)):
        return UserError(f"{pretrained} holds weights of another backbone than {name}: {text[-1].strip()}")
    network = type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpcore",
        "huggingface_hub",
        "requests",
        "urllib3",
    )
    if network or isinstance(error, OSError):
        return UserError(
            f"the pretrained weights of {name} could not be fetched ({type(error).__name__}): without a network, "
            "download them elsewhere and give their path (train.py --model.pretrained, evaluate.py --pretrained)"
        )
    return UserError(f"{name} can't be created with these arguments: {text[-1] if text else type(error).__name__}")
