"""What others call the weights of models that timm has too, and what timm calls them.

Each family is a table of patterns. Weights for which a table has the same name of timm, such as those of queries, keys
and values, are joined in the sequence of the table. An empty name leaves a weight out. The files that Hugging Face's
transformers writes and the ``state_dict()`` of its models differ since version 5; the tables know both.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Names = Mapping[str, str]
"""timm's name for each pattern of other names, without what ``_BEFORE`` takes."""

_LAYER = r"(?:encoder\.|model\.)?layers?\.(\d+)\."

_EMBEDDINGS = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.distillation_token": "dist_token",
    # timm recognises DINOv2 by its mask token, and adds the class token's position to it if there are registers.
    r"embeddings\.mask_token": "mask_token",
    r"embeddings\.register_tokens": "register_tokens",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"patch_embed.proj.\1",
}
_ATTENTION = {
    _LAYER + r"attention\.(?:attention\.query|q_proj)\.(\w+)": r"blocks.\1.attn.qkv.\2",
    _LAYER + r"attention\.(?:attention\.key|k_proj)\.(\w+)": r"blocks.\1.attn.qkv.\2",
    _LAYER + r"attention\.(?:attention\.value|v_proj)\.(\w+)": r"blocks.\1.attn.qkv.\2",
    _LAYER + r"attention\.(?:output\.dense|o_proj)\.(\w+)": r"blocks.\1.attn.proj.\2",
}
_HEADS = {
    r"layernorm\.(\w+)": r"norm.\1",
    r"(?:cls_)?classifier\.(\w+)": r"head.\1",
    r"distillation_classifier\.(\w+)": r"head_dist.\1",
    r"pooler\..+": "",
}

VIT: Names = {
    **_EMBEDDINGS,
    **_ATTENTION,
    _LAYER + r"layernorm_before\.(\w+)": r"blocks.\1.norm1.\2",
    _LAYER + r"layernorm_after\.(\w+)": r"blocks.\1.norm2.\2",
    _LAYER + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    _LAYER + r"(?:output\.dense|mlp\.fc2)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    **_HEADS,
}
"""transformers' ViT and DeiT."""

DINOV2: Names = {
    **_EMBEDDINGS,
    **_ATTENTION,
    _LAYER + r"norm([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    _LAYER + r"layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    _LAYER + r"mlp\.fc([12])\.(\w+)": r"blocks.\1.mlp.fc\2.\3",
    _LAYER + r"mlp\.(?:weights_in|gate_proj)\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    _LAYER + r"mlp\.up_proj\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    _LAYER + r"mlp\.(?:weights_out|down_proj)\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    **_HEADS,
}
"""transformers' DINOv2, with and without registers."""

DINOV3: Names = {
    r"embeddings\.cls_token": "cls_token",
    r"embeddings\.register_tokens": "reg_token",
    r"embeddings\.mask_token": "",
    r"embeddings\.patch_embeddings\.(\w+)": r"patch_embed.proj.\1",
    _LAYER + r"attention\.q_proj\.weight": r"blocks.\1.attn.qkv.weight",
    _LAYER + r"attention\.k_proj\.weight": r"blocks.\1.attn.qkv.weight",
    _LAYER + r"attention\.v_proj\.weight": r"blocks.\1.attn.qkv.weight",
    _LAYER + r"attention\.([qv])_proj\.bias": r"blocks.\1.attn.\2_bias",
    _LAYER + r"attention\.o_proj\.(\w+)": r"blocks.\1.attn.proj.\2",
    _LAYER + r"norm([12])\.(\w+)": r"blocks.\1.norm\2.\3",
    _LAYER + r"layer_scale([12])\.lambda1": r"blocks.\1.gamma_\2",
    _LAYER + r"mlp\.up_proj\.(\w+)": r"blocks.\1.mlp.fc1.\2",
    _LAYER + r"mlp\.down_proj\.(\w+)": r"blocks.\1.mlp.fc2.\2",
    r"norm\.(\w+)": r"norm.\1",
    r"classifier\.(\w+)": r"head.\1",
}
"""transformers' DINOv3."""

DINOV3_GATED: Names = {
    **DINOV3,
    _LAYER + r"mlp\.gate_proj\.(\w+)": r"blocks.\1.mlp.fc1_g.\2",
    _LAYER + r"mlp\.up_proj\.(\w+)": r"blocks.\1.mlp.fc1_x.\2",
}
"""The sizes of DINOv3 whose feed-forward networks have a gate: S+, H+ and 7B."""

CHUNKED: Names = {r"blocks\.\d+\.(\d+)\.(.+)": r"blocks.\1.\2"}
"""The checkpoints of DINOv2's own training, whose layers are in chunks."""

_MARKS = {
    r"layernorm_before\.weight": VIT,
    r"embeddings\.patch_embeddings\.projection\.weight": DINOV2,
    r"layer\.\d+\.mlp\.gate_proj\.weight": DINOV3_GATED,
    r"embeddings\.patch_embeddings\.weight": DINOV3,
    r"blocks\.\d+\.\d+\.norm1\.weight": CHUNKED,
}
"""The families by a name that those below it lack. The first that fits is taken."""

_BEFORE = r"(?P<before>(?:\w+\.)*?)(?:(?:vit|deit|dinov2|dinov2_with_registers|dinov3_vit)\.)?"
"""What may stand before the names: prefixes of a trainer, which are kept, and the base model's name, which is not."""


class Renamed(NamedTuple):
    """Weights under timm's names, and the names of those that timm's models lack."""

    weights: dict[str, Tensor]
    left_over: list[str]


def to_timm(weights: Mapping[str, Tensor]) -> Renamed:
    """Give timm's names to weights of the families that have others; all other weights are returned as they are.

    Raises RuntimeError if weights that belong together can't be joined.
    """
    for mark, family in _MARKS.items():
        if any(re.fullmatch(rf"(.+\.)?{mark}", name) for name in weights):
            return rename(weights, family)
    return Renamed(dict(weights), [])


def rename(weights: Mapping[str, Tensor], names: Names) -> Renamed:
    """Give timm's names to weights by a table. Those that the table doesn't know keep their names.

    Raises RuntimeError if weights that belong together can't be joined.
    """
    parts: dict[str, list[Tensor]] = defaultdict(list)  # by timm's name, what has to be joined
    unknown = dict(weights)
    left_over = []
    # The patterns are in the outer loop because the table decides in which sequence queries, keys and values are
    # joined. In the file they may come in any sequence.
    for pattern, timm_pattern in names.items():
        for name in list(unknown):
            match = re.fullmatch(f"{_BEFORE}(?P<other_name>{pattern})", name)
            if not match:
                continue
            value = unknown.pop(name)
            if timm_pattern:
                timm_name = match["before"] + re.sub(pattern, timm_pattern, match["other_name"])
                parts[timm_name].append(value)
            else:
                left_over.append(name)

    renamed = {}
    for name, values in parts.items():
        # torch.cat would copy a weight that has no other parts.
        renamed[name] = torch.cat(values) if len(values) > 1 else values[0]
    return Renamed({**renamed, **unknown}, left_over)
