"""Which weights belong to which layer."""

import torch

from layershuffle.models.layers import layer_of, take_layers


def test_the_layer_of_a_weight():
    for name in ("blocks.3.attn.qkv.weight", "vit.blocks.3.norm1.bias", "model.vit.blocks.3.mlp.fc1.weight"):
        assert layer_of(name) == 3
    for name in ("encoding.projections.11.1.weight", "model.prediction.heads.11.0.bias", "encoding.tables.11.weight"):
        assert layer_of(name) == 11
    for name in ("vit.head.weight", "encoding.table.weight", "vit.rope.freqs", "choice.predictor.weight"):
        assert layer_of(name) is None


def test_layers_are_left_out_moved_and_repeated():
    freqs = torch.arange(6.0).view(2, 3)
    weights = {
        "vit.blocks.0.a": torch.tensor(0),
        "vit.blocks.1.a": torch.tensor(1),
        "vit.rope.freqs": freqs,
        "x": freqs,
    }
    taken = take_layers(weights, [1, 1, 0])
    assert [int(taken[f"vit.blocks.{layer}.a"]) for layer in range(3)] == [1, 1, 0]
    assert torch.equal(taken["vit.rope.freqs"], freqs[:, [1, 1, 0]])
    assert taken["x"] is freqs
