"""Which parameters are trained, and how fast: parts of the backbone, LoRA, groups of the optimizer."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order


def train_only(model: OrderedViT, patterns: Sequence[str] | None, lora: int | None = None) -> None:
    """Freeze the backbone but for the parameters in whose names one of ``patterns`` appears, by default nothing.

    What isn't part of the backbone, such as position encoding, has no pretrained weights and is always trained.

    Args:
        model: the model.
        patterns: parts of timm's names, such as ``head`` or ``norm``.
        lora: the rank of matrices that are added to the linear maps of all layers (LoRA, arXiv 2106.09685), with a
            scale of 1. They can be trained by the pattern ``lora``.

    Raises:
        UserError: if a pattern appears in no name, or peft, which adds the matrices, is not installed.
    """
    frozen = {id(parameter) for parameter in model.vit.parameters() if not parameter.requires_grad}
    if lora is not None:
        add_lora(model, lora)
    named = dict(model.vit.named_parameters())
    for pattern in patterns or ():
        if not any(pattern in name for name in named):
            raise UserError(f"there is no parameter to train with {pattern} in its name: they are {_examples(named)}")
    for name, parameter in named.items():
        wanted = patterns is None or any(pattern in name for pattern in patterns)
        parameter.requires_grad_(wanted and id(parameter) not in frozen)


def add_lora(model: OrderedViT, rank: int) -> None:
    """Add low-rank matrices, zero at first, to every linear map of the layers."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA needs peft: pip install 'layershuffle[lora]'") from error
    if rank < 1:
        raise UserError(f"lora is the rank of the added matrices, at least 1, not {rank}")
    linear = [name for name, module in model.vit.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if name.startswith("blocks.")]
    module: Any
    for module in model.vit.modules():
        if hasattr(module, "qkv_bias_separate"):  # Otherwise timm uses the map's weight alone, without LoRA's product.
            module.qkv_bias_separate = True
    # With this alpha the added product has the scale 1, so that its matrices alone say what to add.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), model.vit)


def parameter_groups(
    model: OrderedViT, orders: Iterable[Order], layer_decay: float, decay_norms: bool
) -> list[dict[str, Any]]:
    """The trainable parameters in groups for the optimizer, made by timm.

    A group's "lr_scale" is the factor of its learning rate. Where ``orders`` keep the layers in sequence, it falls by
    ``layer_decay`` with every layer from the head towards the images (arXiv 1801.06146). In other orders a layer has no
    depth: all layers have the same factor, the geometric mean of those in sequence. The embedding has the smallest
    factor in either case, and the head and what isn't part of the backbone have 1.

    Args:
        model: the model.
        orders: examples of those it is trained in.
        layer_decay: the factor, above 0. With 1, all learn at the same rate.
        decay_norms: whether the optimizer's weight decay also holds for norms, biases and position embeddings.
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    # timm wants a number. Groups without one of their own take the optimizer's.
    how: dict[str, Any] = {"weight_decay": 1.0, "weight_decay_exclude_1d": not decay_norms}
    vit: Any = model.vit
    exempt = () if decay_norms else vit.no_weight_decay()
    groups = param_groups_layer_decay(vit, no_weight_decay_list=exempt, layer_decay=layer_decay, **how)
    others = nn.ModuleList(module for name, module in model.named_children() if name != "vit")
    groups += param_groups_weight_decay(others, **how)
    embedding, keep_sequence = layer_decay ** (model.depth + 1), all(map(in_sequence, orders))
    alike: dict[tuple[float, float], dict[str, Any]] = {}
    for group in groups:
        scale, decay = group.get("lr_scale", 1.0), group["weight_decay"]
        if scale not in (embedding, 1.0) and not keep_sequence:
            scale = layer_decay ** ((model.depth + 1) / 2)
        own = {} if decay else {"weight_decay": 0.0}
        alike.setdefault((scale, decay), {"params": [], "lr_scale": scale, **own})["params"] += group["params"]
    return list(alike.values())


def in_sequence(order: Order) -> bool:
    """Whether an order runs no layer before one that comes earlier in the model."""
    layers = [unit.layer for step in order for unit in step]
    return layers == sorted(layers)


def _examples(names: Iterable[str]) -> str:
    return ", ".join(sorted({part for name in names for part in name.split(".") if not part.isdigit()}))
