"""A wide vision transformer: each of its steps does at once what several layers of a deeper one did side by side.

This file runs the model in the folder that it lies in. It needs torch, timm and safetensors:

    model = load("FOLDER")
    logits = model(images)  # normalised images [batch, channels, height, width]

``layershuffle export --order "(0a+1a+2a) (0f+1f+2f)"`` wrote it beside the weights.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import apply_rot_embed_cat
from torch import Tensor, nn
from torch.nn import functional as F

Part = tuple[str, int, float]
"""A part of a step: what it runs ("attention", "feed-forward" or "layers"), of how many layers, and the share of what
each of them changes that is added to the tokens, which is 1 except in the mean of whole layers."""


def load(folder: str | Path) -> nn.Module:
    """The model of a folder, in evaluation mode: images [batch, channels, height, width] to logits [batch, classes]."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    wide = config["wide"]
    weights = load_file(folder / "model.safetensors")
    arguments = {**config["model_args"], "num_classes": config["num_classes"], "depth": 1}
    vit: Any = timm.create_model(wide["architecture"], **arguments)
    vit.blocks = nn.Sequential(WideBlocks(vit.blocks[0], wide["steps"], is_mixed(vit)))
    if is_mixed(vit):
        vit.rope.freqs = nn.Parameter(torch.empty_like(weights["rope.freqs"]))
    vit.load_state_dict(weights)
    return vit.eval()


def is_mixed(vit: nn.Module) -> bool:
    """Whether each attention head of a timm model has rotary embeddings of its own (arXiv 2403.13298)."""
    return getattr(vit, "rope_mixed", False)


class WideBlocks(nn.Module):
    """All steps of a wide model, in place of the blocks of a timm model.

    Args:
        block: a block of the timm model, from which all the merged ones differ by their weights alone.
        steps: the parts of each step, which run on the same tokens.
        has_mixed_rope: whether each head has rotary embeddings of its own.
    """

    def __init__(self, block: Any, steps: Sequence[Sequence[Part]], has_mixed_rope: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList()
        heads = 0
        for parts in steps:
            step = nn.ModuleList()
            for runs, members, share in parts:
                # The model has one tensor of the rotary embeddings of all heads, in the sequence in which these run.
                # Each part is told where its own begin.
                first_head = heads if has_mixed_rope else None
                step.append(_part(block, runs, members, share, first_head))
                if runs != "feed-forward":
                    heads += members * block.attn.num_heads
            self.steps.append(step)

    def forward(self, tokens: Tensor, rope: Tensor | None = None, **_: Any) -> Tensor:
        """Run all steps on tokens [batch, tokens, dim]; rope: timm's rotary embeddings, if there are any."""
        for step in self.steps:
            change = sum(part(tokens, rope) for part in step)  # type: ignore[attr-defined]
            tokens = tokens + change
        return tokens


def _part(block: Any, runs: str, members: int, share: float, first_head: int | None) -> nn.Module:
    """The module of a part of a step; the arguments are those of ``Layers``, and ``runs`` is the first of ``Part``."""
    if runs == "attention":
        return Attention(block, members, first_head)
    if runs == "feed-forward":
        return FeedForward(block, members)
    return Layers(block, members, share, first_head)


class Attention(nn.Module):
    """The attention of several layers on the same tokens, as one with the heads of all.

    The weights of the norm before it and the scale of the layer after it are folded into the matrices. ``forward``
    returns what is to be added to the tokens.
    """

    def __init__(self, block: Any, members: int, first_head: int | None) -> None:
        super().__init__()
        attn = block.attn
        size = attn.proj.in_features // attn.num_heads
        self.members = members
        self.heads = members * attn.num_heads
        self.norm = without_weights(block.norm1)
        self.qkv = nn.Linear(attn.proj.out_features, 3 * self.heads * size)
        self.proj = nn.Linear(self.heads * size, attn.proj.out_features)

        # Each layer has its own weights in the norms of queries and keys. These can't be folded into a matrix, because
        # the rotary embeddings come between the norms and the product of queries and keys.
        self.qk_norm = without_weights(attn.q_norm)
        if has_norm(attn.q_norm):
            self.qk_scale = nn.Parameter(torch.ones(2, 1, self.heads, 1, size))
            self.qk_shift = nn.Parameter(torch.zeros(2, 1, self.heads, 1, size))
        self.inner_norm = without_weights(attn.norm)

        self.prefix = getattr(attn, "num_prefix_tokens", 0)
        self.rotates_halves = getattr(attn, "rotate_half", False)
        self.first_head = first_head

    def forward(self, tokens: Tensor, rope: Tensor | None) -> Tensor:
        return self.proj(self.mix(tokens, rope).flatten(-2))

    def mix(self, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """The output of the heads, before it is projected: [batch, tokens, members, heads x size of a head]."""
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (3, self.heads, -1))
        qkv = qkv.permute(2, 0, 3, 1, 4)  # [3, batch, heads, tokens, size]

        # Queries and keys are normalised and rotated in the same way, so this is done to both at once.
        qk = self.qk_norm(qkv[:2])
        values = qkv[2]
        if has_norm(self.qk_norm):
            qk = qk * self.qk_scale + self.qk_shift
        # The class token and registers aren't rotated, because they have no place in the image.
        if rope is not None:
            if self.first_head is not None:
                rope = rope[..., self.first_head : self.first_head + self.heads, :, :]
            rotated = apply_rot_embed_cat(qk[..., self.prefix :, :], rope, half=self.rotates_halves)
            qk = torch.cat([qk[..., : self.prefix, :], rotated], dim=-2).type_as(values)

        # A layer may normalise what its heads return. Its norm is over its own heads, not over those of other layers.
        mixed = F.scaled_dot_product_attention(qk[0], qk[1], values)
        return self.inner_norm(mixed.transpose(1, 2).flatten(-2).unflatten(-1, (self.members, -1)))


class FeedForward(nn.Module):
    """The feed-forward networks of several layers on the same tokens, as one with the hidden units of all.

    It returns what is to be added to the tokens.
    """

    def __init__(self, block: Any, members: int) -> None:
        super().__init__()
        mlp = block.mlp
        hidden = members * mlp.fc2.in_features
        self.members = members
        # GluMlp and SwiGLU have gates.
        self.is_gated = type(mlp).__name__ != "Mlp"
        self.norm = without_weights(block.norm2)
        self.fc1 = nn.Linear(mlp.fc2.out_features, hidden * (1 + self.is_gated))
        self.act = copy.deepcopy(mlp.act)
        self.inner_norm = without_weights(mlp.norm)
        self.fc2 = nn.Linear(hidden, mlp.fc2.out_features)

    def forward(self, tokens: Tensor, rope: Tensor | None = None) -> Tensor:
        return self.finish(self.fc1(self.norm(tokens)))

    def finish(self, hidden: Tensor) -> Tensor:
        """What follows the first matrix; ``hidden`` has the gates of all layers first, if there are gates."""
        if self.is_gated:
            gates, values = hidden.chunk(2, dim=-1)
            hidden = self.act(gates) * values
        else:
            hidden = self.act(hidden)
        hidden = self.inner_norm(hidden.unflatten(-1, (self.members, -1))).flatten(-2)
        return self.fc2(hidden)


class Layers(nn.Module):
    """Whole layers side by side, each of whose feed-forward networks reads what its own attention returns.

    All layers together are one batched product where they read different states, and one wide product elsewhere.
    ``forward`` returns what is to be added to the tokens.

    Args:
        block: as for ``WideBlocks``.
        members: the number of layers.
        share: the share of what each layer changes that is added.
        first_head: as for ``Attention``.
    """

    def __init__(self, block: Any, members: int, share: float, first_head: int | None) -> None:
        super().__init__()
        self.share = share
        self.attention = Attention(block, members, first_head)
        self.feed_forward = FeedForward(block, members)
        # An ``Attention`` has one bias, the sum of those of all its layers. Here each layer needs its own, because its
        # feed-forward network reads the change of its own attention alone.
        self.attention.proj.bias = None  # type: ignore[assignment]
        self.biases = nn.Parameter(torch.zeros(members, 1, 1, self.attention.proj.out_features))

    def forward(self, tokens: Tensor, rope: Tensor | None) -> Tensor:
        members = len(self.biases)
        feed_forward = self.feed_forward

        # b: batch, t: tokens, m: members, d: dim, c: heads, g: gates or not, h: hidden units.
        projections = self.attention.proj.weight.unflatten(1, (members, -1))
        changes = torch.einsum("btmc,dmc->mbtd", self.attention.mix(tokens, rope), projections) + self.biases
        states = feed_forward.norm(tokens + changes)
        first = feed_forward.fc1.weight.unflatten(0, (1 + feed_forward.is_gated, members, -1))
        hidden = torch.einsum("mbtd,gmhd->btgmh", states, first).flatten(-3)
        return self.share * (changes.sum(dim=0) + feed_forward.finish(hidden + feed_forward.fc1.bias))


def without_weights(norm: nn.Module) -> nn.Module:
    """A copy of a norm that does nothing but normalise; nn.Identity stays what it is."""
    norm = copy.deepcopy(norm)
    for name, _ in list(norm.named_parameters()):
        setattr(norm, name, None)
    return norm


def has_norm(norm: nn.Module) -> bool:
    """Whether there is a norm, and not nn.Identity in its place."""
    return not isinstance(norm, nn.Identity)
