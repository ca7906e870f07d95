"""Wide models, whose layers are merged, against the models they were merged from."""

import ast
from pathlib import Path

import pytest
import torch

from layershuffle.models import wide_vit
from layershuffle.models.backbones import ViT
from layershuffle.models.widen import merged_steps, why_not_wide, widen
from layershuffle.orders.order import Order

HALVES = "(0a+1a+2a) (0f+1f+2f) 3"
ALL_KINDS = "0 (1a+2a+3a) (1f+3f) (0a|2a) 3f 0a (0+1+3) (0a+1f+2) (1|2) (0f|1f|3f|2f) 2"


@pytest.mark.parametrize("order", [HALVES, ALL_KINDS])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"qk_norm": True}),
        ("vit_tiny_patch16_224", {"position": "predict", "positions": 12}),
        ("deit_tiny_distilled_patch16_224", {"head": "class"}),
        ("deit_tiny_distilled_patch16_224", {"head": "average"}),
        ("vit_small_patch14_reg4_dinov2", {}),  # registers, LayerScale
        ("vit_giant_patch14_dinov2", {}),  # gates
        ("beit3_base_patch16_224", {}),  # norms within both halves
        ("vit_small_patch16_rope_mixed_224", {}),  # rotary embeddings of each layer's own
        ("vit_small_patch16_dinov3", {}),  # rotated halves
        ("eva02_base_patch14_224", {"qk_norm": True}),  # separate queries and keys, gates, a norm among them
        ("eva02_tiny_patch14_224", {}),  # biases that are parameters of their own
        ("aimv2_large_patch14_224", {}),  # root mean square, no biases
    ],
)
def test_a_wide_model_gives_the_same_logits(small, images, name, arguments, order):
    model = small(name, **arguments)
    with torch.inference_mode():
        expected = model(images, order).logits
        torch.testing.assert_close(widen(model, Order(order))(images), expected, rtol=0, atol=1e-5)
        # The order matters: in sequence the model gives other logits.
        assert (model(images, "0 1 2 3").logits - expected).abs().max() > 1e-3


def test_a_group_is_one_product_of_the_width_of_all(small):
    wide = widen(small(), Order(HALVES)).blocks[0]

    first_maps = []
    for (part,) in wide.steps:
        parameters = dict(part.named_parameters())
        assert not any("norm" in name for name in parameters)  # norms are merged into the maps that follow them
        first_map = parameters["qkv.weight"] if "qkv.weight" in parameters else parameters["fc1.weight"]
        first_maps.append(tuple(first_map.shape))
    dim = 32
    hidden = 4 * dim
    assert first_maps == [
        (3 * 3 * dim, dim),  # queries, keys and values of three layers
        (3 * hidden, dim),  # the feed-forward halves of three layers
        (3 * dim, dim),  # the attention of layer 3 alone
        (hidden, dim),  # and its feed-forward half
    ]

    # The first group has an attention, a feed-forward network and a whole layer, which are three parts of one step.
    # Layer 3 by itself becomes two steps, and the last two layers become one part.
    assert [len(parts) for parts in merged_steps(Order("(0a+1f+2) 3 (0|1)"))] == [3, 1, 1, 1]


def test_what_cannot_be_merged_is_said(small):
    cases = [
        (small(position="encode"), HALVES, "its own encoding of its position"),
        (small(), "0a 1a<1 0f", "1a<1 reads an older state"),
        (small("vit_medium_patch16_rope_reg1_gap_256", num_heads=4, use_post_norm=True), HALVES, "EvaBlockPostNorm"),
        (small("vit_tiny_patch16_224", attn_layer="diff"), HALVES, "DiffAttention"),
        (small("vit_small_patch16_dinov3", attn_type="rope", num_kv_heads=1, qkv_fused=False), HALVES, "fewer keys"),
    ]
    of_another_family = small()
    of_another_family.backbone = type("Beit", (ViT,), {})(of_another_family.vit)
    cases.append((of_another_family, HALVES, "the family Beit"))
    for model, order, reason in cases:
        assert reason in why_not_wide(model, model.check(order))

    assert why_not_wide(small(), Order(ALL_KINDS)) is None


def test_the_file_that_travels_needs_no_package_of_ours():
    tree = ast.parse(Path(wide_vit.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(alias.name.split(".")[0] for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported == {"collections", "copy", "json", "pathlib", "safetensors", "timm", "torch", "typing"}
