"""Creates models, with random or given weights."""

import inspect
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError, is_network_error
from layershuffle.models.backbones import FAMILIES, Head, layer_of, take_layers
from layershuffle.models.model import OrderedViT
from layershuffle.models.position import Position, PositionTable
from layershuffle.models.weights import merge_lora, read_backbone
from layershuffle.orders.order import MAX_STEPS, Order, OrderLike


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
        num_classes: the classes to tell apart, one or more. A pretrained head of another size is replaced by a new one.
        position: whether the layers ignore the position at which they run ("none"), "encode" it or "predict" it.
        pretrained: False for random weights, True for timm's (fetched from the Hugging Face hub), or a path to weights
            of the same backbone: a timm state dict (.pth, .safetensors) or a checkpoint of ``layershuffle train``, or
            ``mini_glyphs``, which travels with the package. If the model has fewer layers, it takes the first ones.
        positions: number of positions that the model can tell apart, by default the number of steps in its base order.
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
    import timm

    config = {"name": name, "num_classes": num_classes, "position": position, "positions": positions}
    config |= {"head": head, "norm_eps": norm_eps, **timm_args} | ({"order": _text(order)} if order else {})
    config |= {"choices": [_text(choice) for choice in choices]} if choices is not None else {}
    encoding = {"position_dim": position_dim, "position_dropout": position_dropout, "position_table": position_table}
    defaults = inspect.signature(create_model).parameters
    # Only what isn't the default, as the checkpoints of earlier versions have it.
    config |= {name: value for name, value in encoding.items() if value != defaults[name].default}
    if not timm.is_model(name):  # timm.create_model would also look in folders and on the hub.
        raise _unknown(name)
    if num_classes < 1:
        raise UserError(f"{name} needs to know how many classes there are: it has no classifier of its own")
    depth = timm_args.get("depth")
    if depth is not None and depth < 1:
        raise UserError(f"a model has one layer or more, not {depth}")
    new_heads: list[str] = []
    try:
        if pretrained is True and "pretrained_cfg_overlay" not in timm_args:
            timm_args |= _cached(name)
        if pretrained and (depth or isinstance(pretrained, str)):
            if isinstance(pretrained, str):
                source, weights = pretrained, read_backbone(pretrained)
            else:
                whole = {key: value for key, value in timm_args.items() if key != "depth"}
                source = f"the pretrained {name}"
                weights = timm.create_model(name, pretrained=True, num_classes=num_classes, **whole).state_dict()
            weights = _first_layers(weights, depth, source)
            timm_args["pretrained_cfg_overlay"], new_heads = _as_pretrained(weights, name, num_classes)
        # As a dict, so that jsonargparse doesn't make timm's further arguments options of layershuffle train.
        vit: Any = timm.create_model(name, **{"pretrained": bool(pretrained), "num_classes": num_classes} | timm_args)
    except Exception as error:
        raise _explained(error, name, pretrained) from error
    vit.pretrained_cfg.pop("file", None)
    vit.pretrained_cfg.pop("state_dict", None)  # Otherwise the model would keep a second copy of the weights.
    for new in new_heads:  # Some families start from small logits: they scale down a new head.
        vit.get_submodule(new).weight.data *= getattr(vit, "head_init_scale", 1)
    if norm_eps is not None:
        for module in vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
    model = OrderedViT(vit, position, positions, head, order or None, choices, **encoding)  # type: ignore[arg-type]
    model.config = config
    return model


ARGUMENTS = inspect.signature(create_model).parameters.keys() - {"pretrained", "timm_args"}
"""The arguments of ``create_model`` that describe a model and are not timm's."""


def create_fitting(weights: Mapping[str, Tensor], source: str, **config: Any) -> OrderedViT:
    """Create the model that ``config`` describes, with these weights. Memory is only taken once they are known to fit.

    Args:
        weights: the whole state dict of an OrderedViT. LoRA's matrices in it are added to the weights.
        source: the file that the weights and the description came from, for error messages.
        config: arguments of ``create_model``. They come from the file, so those that read or fetch others are refused.
    """
    known = ARGUMENTS | {name for path in FAMILIES for name in inspect.signature(resolve_name(path)).parameters}
    if strange := config.keys() - known:
        raise UserError(f"the model it names has {sorted(map(str, strange))[0][:200]}, which describes no model")
    depth, positions = config.get("depth"), config.get("positions")
    try:
        weights = merge_lora(weights)
        layers = {layer_of(key) for key in weights} - {None}
        if depth is not None and depth != len(layers):
            raise RuntimeError(f"there are weights of {len(layers)} layers, not of {depth}")
        if positions is not None and not 0 < positions <= MAX_STEPS:
            raise RuntimeError(f"it can't have {positions} positions")
        with torch.device("meta"):  # a model of shapes without values, with which the weights are compared
            shapes = create_model(**config)
        # torch notes ``assign`` in the metadata of a state dict, which a plain dictionary doesn't have.
        shapes.load_state_dict(weights, assign=True)
        # Tables that are computed and not stored, such as rotary embeddings, are bounded by no weight's shape.
        if sum(buffer.numel() for buffer in shapes.buffers()) > 1 << 26:  # 100 times those of timm's largest models
            raise RuntimeError("its tables of positions are too large: the image size can't be right")
        model = create_model(**config)
        model.load_state_dict(weights)
    except (TypeError, RuntimeError, AttributeError, KeyError) as error:
        reason = str(error).strip().splitlines()[-1].strip()[:300]
        raise UserError(f"{source} is damaged, its weights don't fit the model it names: {reason}") from error
    return model


def cut(model: OrderedViT, order: OrderLike | None = None) -> OrderedViT:
    """A model whose layers are copies of those that ``model`` runs in ``order``, by default its own, in that sequence.

    In sequence it gives the same logits and position logits. Its images choose no orders.

    Raises:
        UserError: if ``model`` can't run the order, or some of its steps are halves of layers or several in parallel.
    """
    order = model.order if order is None else model.check(order)
    layers = order.whole_layers
    if layers is None:
        raise UserError(f"only whole layers, one after the other, make a plain model, and '{order}' runs others")
    config = {name: value for name, value in model.config.items() if name not in ("order", "choices")}
    config |= {"depth": len(layers), "positions": model.positions}
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("choice.")}
    return create_fitting(take_layers(weights, layers), "the model", **config).train(model.training)


def _first_layers(weights: dict[str, Tensor], depth: int | None, source: str) -> dict[str, Tensor]:
    """The weights that a model of ``depth`` layers takes from a deeper one, or all if ``depth`` is None."""
    if depth is None:
        return weights
    count = 1 + max((layer for layer in map(layer_of, weights) if layer is not None), default=-1)
    if count < depth:
        raise UserError(f"{source} has only {count} layers: a model of depth {depth} can't start from it")
    return take_layers(weights, range(depth))


def _cached(name: str) -> dict[str, Any]:
    """The argument that makes timm read weights that are in the hub's cache without asking the hub about them.

    If they have to be fetched, this is empty, or an error without a network. timm would try for a minute.
    """
    import huggingface_hub as hub
    import timm

    cfg = timm.get_pretrained_cfg(name)
    if not cfg or not cfg.hf_hub_id or cfg.custom_load == "hf":  # which reads the file in a way of its own
        return {}
    repository, _, revision = cfg.hf_hub_id.partition("@")
    where: Any = {"filename": cfg.hf_hub_filename or "model.safetensors", "revision": revision or None}
    path = hub.try_to_load_from_cache(repository, **where)
    if isinstance(path, str):
        return {"pretrained_cfg_overlay": {"file": path, "custom_load": False}}
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, **where), timeout=5)
    except hub.errors.EntryNotFoundError:
        pass  # The file has another name, which timm finds.
    except Exception as error:
        raise _not_fetched(name, error) from error
    return {}


def classes_of(path: str, name: str) -> int | None:
    """How many classes the weights in a file tell apart, for the timm model ``name``; None without a classifier.

    Raises a UserError if the file can't be read.
    """
    import timm

    head = _classifiers(timm.get_pretrained_cfg(name) if timm.is_model(name) else None)[0]
    weight = read_backbone(path).get(f"{head}.weight")
    return None if weight is None else len(weight)


def _classifiers(known: Any) -> tuple[str, ...]:
    """The names of a timm model's classifiers, by its pretrained configuration."""
    names = (known and known.classifier) or "head"
    return (names,) if isinstance(names, str) else tuple(names)


def _as_pretrained(weights: dict[str, Tensor], name: str, num_classes: int) -> tuple[dict[str, Any], list[str]]:
    """The configuration that makes timm load exactly these weights, and the names of the heads that are new.

    A head for another number of classes is replaced here: if timm did it, it would no longer check that the other
    weights fit.
    """
    import timm

    known = timm.get_pretrained_cfg(name)
    first = (known and known.first_conv) or "patch_embed.proj"
    patches = weights.get(f"{first}.weight")
    if patches is None or patches.ndim != 4:
        raise KeyError(f"{first}.weight")
    dim, channels = patches.shape[:2]
    new = [head for head in _classifiers(known) if len(weights.get(f"{head}.weight", ())) != num_classes]
    for head in new:
        weights[f"{head}.weight"] = nn.init.trunc_normal_(torch.empty(num_classes, dim), std=0.02)
        weights[f"{head}.bias"] = torch.zeros(num_classes)
    overlay = {"state_dict": weights, "custom_load": False, "num_classes": num_classes}
    return overlay | ({"input_size": (channels, *known.input_size[1:])} if known else {}), new


def _text(order: OrderLike) -> str:
    """The order as a file can record it. A name, such as ``cycle(6)``, is kept."""
    return order if isinstance(order, str) else str(Order(order))


def _unknown(name: str) -> UserError:
    return UserError(f"timm has no model named {name}: timm.list_models('vit*') lists those it has")


def _not_fetched(name: str, error: Exception) -> UserError:
    return UserError(
        f"the pretrained weights of {name} could not be fetched ({type(error).__name__}): without a network, download "
        "them elsewhere and give their path (--model.pretrained of layershuffle train, --pretrained of the other "
        "commands)"
    )


def _explained(error: Exception, name: str, pretrained: bool | str) -> Exception:
    """What to raise in place of an error of ``timm.create_model``: one sentence."""
    if isinstance(error, UserError):
        return error
    if "Invalid pretrained tag" in str(error):
        return _unknown(name)
    text = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
    if isinstance(pretrained, str) and isinstance(error, (RuntimeError, KeyError)):
        return UserError(f"{pretrained} holds weights of another backbone than {name}: {text}")
    if is_network_error(error):
        return _not_fetched(name, error)
    return UserError(f"{name} can't be created with these arguments: {text}")
