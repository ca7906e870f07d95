"""Merges layers that run side by side into wider ones, for a model that ``wide_vit`` runs without this package."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from layershuffle.models.backbones import Eva, ViT
from layershuffle.models.fitting import classify_by_mean_of_heads
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, Step

KNOWN_BLOCKS = {"Block", "EvaBlock"}
KNOWN_ATTENTIONS = {"Attention", "EvaAttention", "AttentionRope"}
KNOWN_MLPS = {"Mlp", "GluMlp", "SwiGLU"}
"""The classes of timm whose weights can be merged."""


class Merged(NamedTuple):
    """Layers that become one part of a step.

    Attributes:
        half: what runs of each: "a" its attention, "f" its feed-forward network, "" the whole layer.
        layers: their indices.
        share: the share of what each of them changes that is added to the state.
    """

    half: str
    layers: list[int]
    share: float


class Folded(NamedTuple):
    """A matrix and its bias, in float64, into which what stands before or after them was folded."""

    weight: Tensor
    bias: Tensor


def why_not_wide(model: OrderedViT, order: Order) -> str | None:
    """Why a model's layers can't be merged as an order groups them, or None if they can."""
    if model.encoding:
        return "each layer first adds its own encoding of its position, so that those of a group read different tokens"
    for step in order:
        if step.lag:
            return f"the step {step} reads an older state (layers that run side by side can be a group, as (0+1+2))"
    # Another family may have classes of the same names that compute something else.
    if type(model.backbone) not in (ViT, Eva):
        return f"it isn't known how to merge the layers of the family {type(model.backbone).__name__}"
    for layer in sorted(order.layers):
        reason = _why_not_merged(model.layers[layer])
        if reason:
            return reason
    return None


def _why_not_merged(block: Any) -> str | None:
    """Why the weights of a block can't be merged with others', or None if they can."""
    if type(block).__name__ not in KNOWN_BLOCKS:
        return f"the weights of timm's {type(block).__name__} can't be merged"
    if type(block.attn).__name__ not in KNOWN_ATTENTIONS or type(block.mlp).__name__ not in KNOWN_MLPS:
        return f"the weights of timm's {type(block.attn).__name__} and {type(block.mlp).__name__} can't be merged"
    if getattr(block.attn, "gate", None) is not None or getattr(block.attn, "num_kv_groups", 1) > 1:
        return "attention with gates, or with fewer keys than queries, can't be merged"
    return None


def has_groups(order: Order) -> bool:
    """Whether there is anything to merge."""
    return any(step.is_group for step in order)


def merged_steps(order: Order) -> list[list[Merged]]:
    """The parts of each step of the wide model that runs ``order``. A whole layer by itself becomes two steps."""
    steps = []
    for step in order:
        parts = _parts(step)
        if step.is_group or parts[0].half:
            steps.append(parts)
        else:
            # The parts of a step read the same state. The feed-forward network of a layer reads what its attention has
            # changed, so it comes in a step of its own.
            (layer,) = parts
            attention = layer._replace(half="a")
            feed_forward = layer._replace(half="f")
            steps += [[attention], [feed_forward]]
    return steps


@torch.no_grad()
def widen(model: OrderedViT, order: Order) -> nn.Module:
    """A copy of a model's timm model that runs one order, with the layers of each group merged into a wider one.

    It takes normalised images [batch, channels, height, width] and returns the logits of ``model(images, order)``, up
    to rounding.

    Args:
        model: the model.
        order: an order that ``why_not_wide`` has nothing against.
    """
    from layershuffle.models import wide_vit  # imports timm

    steps = merged_steps(order)
    is_mixed = wide_vit.is_mixed(model.vit)
    blocks = wide_vit.WideBlocks(model.layers[0], described(steps), is_mixed)
    for step, parts in zip(blocks.steps, steps):
        for module, merged in zip(step, parts):  # type: ignore[call-overload]
            _fill(module, [model.layers[layer] for layer in merged.layers], merged)
    # New modules are made in float32 on the CPU. The model may have another precision, and be elsewhere.
    parameter = next(model.parameters())
    blocks.to(parameter.device, parameter.dtype)

    # Before it copies the layers, deepcopy looks in its memo, and takes the wide blocks in place of a copy.
    vit: Any = copy.deepcopy(model.vit, {id(model.layers): nn.Sequential(blocks)})
    if model.backbone.ignores_second_head:
        classify_by_mean_of_heads(vit)
    if is_mixed:
        vit.rope.freqs = nn.Parameter(_mixed_rope(vit.rope.freqs, steps))
    return vit.eval()


def described(steps: Sequence[Sequence[Merged]]) -> list[list[tuple[str, int, float]]]:
    """The parts of each step as ``wide_vit`` takes them."""
    names = {"a": "attention", "f": "feed-forward", "": "layers"}
    described_steps = []
    for parts in steps:
        described_parts = [(names[part.half], len(part.layers), part.share) for part in parts]
        described_steps.append(described_parts)
    return described_steps


def _parts(step: Step) -> list[Merged]:
    """The units of a step, put together by what they run: attentions, feed-forward networks or whole layers."""
    share = 1.0 if step.summed else 1 / len(step.units)
    parts: dict[str, Merged] = {}
    for unit in step.units:
        part = parts.setdefault(unit.half, Merged(unit.half, [], share))
        part.layers.append(unit.layer)
    return list(parts.values())


def _mixed_rope(freqs: Tensor, steps: Sequence[Sequence[Merged]]) -> Tensor:
    """The frequencies [2, 1, heads, size] of the rotary embeddings of all heads, in the sequence in which they run.

    freqs: [2, layers, heads, size].
    """
    attentions: list[int] = []
    for parts in steps:
        for part in parts:
            if part.half != "f":
                attentions += part.layers
    return freqs[:, attentions].flatten(1, 2).unsqueeze(1)


def _fill(module: Any, blocks: Sequence[Any], merged: Merged) -> None:
    """Fill a part of a wide step with the weights of these blocks."""
    if merged.half == "a":
        outputs = _fill_attention(module, blocks, merged.share)
        module.proj.bias.copy_(sum(output.bias for output in outputs))
    elif merged.half == "f":
        _fill_feed_forward(module, blocks, merged.share)
    else:
        # The feed-forward networks read all that the attentions change, and the module itself takes its share.
        outputs = _fill_attention(module.attention, blocks, 1)
        _fill_feed_forward(module.feed_forward, blocks, 1)
        module.biases.copy_(torch.stack([output.bias for output in outputs])[:, None, None])


def _fill_attention(wide: Any, blocks: Sequence[Any], share: float) -> list[Folded]:
    """Fill an attention; returns the matrices and biases of the blocks' projections, whose biases it leaves alone."""
    # The wide attention has one norm without weights before it and no scale after it: the weights of both are folded
    # into the matrices beside them.
    inputs = []
    outputs = []
    for block in blocks:
        inputs.append(_after_norm(_queries_keys_values(block.attn), block.norm1))
        projection = _after_norm(_folded(block.attn.proj), block.attn.norm)
        outputs.append(_scaled(projection, _scale(block, 1), share))
    _fill_maps(wide.qkv, wide.proj, inputs, outputs)
    if not isinstance(wide.qk_norm, nn.Identity):
        _fill_norms_of_queries_and_keys(wide, blocks)
    return outputs


def _fill_norms_of_queries_and_keys(wide: Any, blocks: Sequence[Any]) -> None:
    """Fill ``qk_scale`` and ``qk_shift`` [2, 1, heads, 1, size] of an attention, in which queries come before keys."""
    for number, name in enumerate(("q_norm", "k_norm")):
        for member, block in enumerate(blocks):
            # The norm of a layer is the same for all of its heads.
            first = member * block.attn.num_heads
            heads = slice(first, first + block.attn.num_heads)
            scale, shift = _affine(getattr(block.attn, name), block.attn.proj.weight)
            wide.qk_scale[number, 0, heads, 0] = scale
            wide.qk_shift[number, 0, heads, 0] = shift


def _fill_feed_forward(wide: Any, blocks: Sequence[Any], share: float) -> None:
    """Fill a feed-forward network with those of the blocks."""
    inputs = []
    outputs = []
    for block in blocks:
        inputs.append(_after_norm(_gates_and_values(block.mlp), block.norm2))
        last = _after_norm(_folded(block.mlp.fc2), block.mlp.norm)
        outputs.append(_scaled(last, _scale(block, 2), share))
    _fill_maps(wide.fc1, wide.fc2, inputs, outputs)
    wide.fc2.bias.copy_(sum(matrix.bias for matrix in outputs))


def _fill_maps(first: Any, last: Any, inputs: Sequence[Folded], outputs: Sequence[Folded]) -> None:
    """Fill the first and the last linear map of a wide part with those of the blocks, one beside the other."""
    # Dimension 1 is that of heads or hidden units. Queries, keys and values, or gates and values, stay apart in
    # dimension 0, so that the wide module can split its result as timm does.
    first.weight.copy_(torch.cat([matrix.weight for matrix in inputs], dim=1).flatten(0, 1))
    first.bias.copy_(torch.cat([matrix.bias for matrix in inputs], dim=1).flatten())
    last.weight.copy_(torch.cat([matrix.weight for matrix in outputs], dim=1))


def _queries_keys_values(attn: Any) -> Folded:
    """The matrix [3, heads x size, dim] and bias [3, heads x size] that make queries, keys and values."""
    if attn.qkv is None:
        return _stacked(attn.q_proj, attn.k_proj, attn.v_proj)
    weight, bias = _folded(attn.qkv)
    # EVA's keys have no biases, and those of its queries and values are parameters of their own.
    if getattr(attn, "q_bias", None) is not None:
        bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias]).double()
    return Folded(weight.unflatten(0, (3, -1)), bias.unflatten(0, (3, -1)))


def _gates_and_values(mlp: Any) -> Folded:
    """The first matrix [2, hidden, dim] and bias [2, hidden] of a feed-forward network; gates come before values.

    A network without gates has 1 in place of 2.
    """
    if hasattr(mlp, "fc1_g"):
        return _stacked(mlp.fc1_g, mlp.fc1_x)
    weight, bias = _folded(mlp.fc1)
    parts = len(bias) // mlp.fc2.in_features
    first = Folded(weight.unflatten(0, (parts, -1)), bias.unflatten(0, (parts, -1)))
    if getattr(mlp, "gate_last", False):
        return Folded(first.weight.flip(0), first.bias.flip(0))
    return first


def _folded(linear: Any) -> Folded:
    """A linear map with nothing folded into it yet. In float64, the products that follow add no errors that matter."""
    weight = linear.weight.double()
    if linear.bias is None:
        return Folded(weight, weight.new_zeros(len(weight)))
    return Folded(weight, linear.bias.double())


def _stacked(*linears: Any) -> Folded:
    """Linear maps of one shape as a matrix [maps, outputs, inputs] and a bias [maps, outputs]."""
    matrices = [_folded(linear) for linear in linears]
    weights = torch.stack([matrix.weight for matrix in matrices])
    biases = torch.stack([matrix.bias for matrix in matrices])
    return Folded(weights, biases)


def _after_norm(matrix: Folded, norm: Any) -> Folded:
    """Fold a norm's weights and biases into ``matrix`` [..., outputs, inputs], which reads what the norm returns.

    After a norm that only normalises, the result computes what ``matrix`` does after ``norm``.
    """
    if isinstance(norm, nn.Identity):
        return matrix
    # W (scale * x + shift) + b = (W * scale) x + (W shift + b)
    scale, shift = _affine(norm, matrix.weight)
    return Folded(matrix.weight * scale, matrix.bias + matrix.weight @ shift)


def _affine(norm: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The weights and biases of a norm, in float64 on the device of ``like``; some norms have none, or no biases."""
    scale = torch.ones(norm.normalized_shape, dtype=torch.float64, device=like.device)
    if norm.weight is not None:
        scale = norm.weight.double()
    shift = torch.zeros_like(scale)
    if getattr(norm, "bias", None) is not None:
        shift = norm.bias.double()
    return scale, shift


def _scaled(matrix: Folded, scale: Tensor | None, share: float) -> Folded:
    """A matrix [dim, inputs] and its bias, times the scale [dim] of a layer and its share in a group."""
    if scale is None:
        return Folded(matrix.weight * share, matrix.bias * share)
    factor = scale.double() * share
    return Folded(matrix.weight * factor.unsqueeze(-1), matrix.bias * factor)


def _scale(block: Any, half: int) -> Tensor | None:
    """The LayerScale of the first half of a block, its attention, or of the second."""
    if hasattr(block, f"gamma_{half}"):
        return getattr(block, f"gamma_{half}")
    return getattr(getattr(block, f"ls{half}"), "gamma", None)
