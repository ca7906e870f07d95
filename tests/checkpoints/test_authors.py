"""Checkpoints of the LayerShuffle authors' six classes, against outputs of their own code and its formulas."""

import json

import pytest
import torch
from helpers import GOLDEN, NAMES, paths
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import layershuffle

ORDERS = ["seq", "perm1", "perm2"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ORDERS)
def test_outputs_of_the_authors_own_classes(name, order):
    model = layershuffle.load_reference(*map(str, paths(name)))
    golden = load_file(GOLDEN / f"{name}.io.safetensors")
    output = model(golden["input"], golden[f"{order}.order"])
    torch.testing.assert_close(output.logits, golden[f"{order}.logits"], rtol=0, atol=1e-4)
    loss = F.cross_entropy(output.logits, golden["labels"])
    if "Predicting" in name:
        # The position logits enter the authors' loss, as the mean over layers and images.
        targets = torch.arange(6).repeat_interleave(5)
        loss = loss + F.cross_entropy(output.position_logits.flatten(0, 1), targets)
    torch.testing.assert_close(loss[None], golden[f"{order}.loss"], rtol=0, atol=1e-4)


def transcription(weights, config, images, order):
    """The authors' forward pass, on weights under their names: logits and position logits [steps, batch, layers]."""
    root = "deit" if "deit.layernorm.weight" in weights else "vit"
    w = {name.removeprefix(f"{root}."): value for name, value in weights.items()}
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def split(x):
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    patches = w["embeddings.patch_embeddings.projection.weight"], w["embeddings.patch_embeddings.projection.bias"]
    x = F.conv2d(images, *patches, stride=config["patch_size"]).flatten(2).transpose(1, 2)
    prefix = [w[f"embeddings.{t}"] for t in ("cls_token", "distillation_token") if f"embeddings.{t}" in w]
    x = torch.cat([token.expand(len(x), -1, -1) for token in prefix] + [x], dim=1) + w["embeddings.position_embeddings"]
    position_logits = []
    for position, layer in enumerate(order):
        n = f"encoder.layer.{layer}"
        if "encoder.embedding.weight" in w:
            vector = w["encoder.embedding.weight"][position].expand(*x.shape[:2], -1)
            h = norm(torch.cat([x, vector], dim=-1), f"{n}.projection.net.0", eps=1e-5)
            x = F.gelu(linear(h, f"{n}.projection.net.1")) + x
        h = norm(x, f"{n}.layernorm_before", eps)
        q, k, v = (split(linear(h, f"{n}.attention.attention.{part}")) for part in ("query", "key", "value"))
        attention = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v
        x = x + linear(attention.transpose(1, 2).flatten(2), f"{n}.attention.output.dense")
        h = norm(x, f"{n}.layernorm_after", eps)
        x = x + linear(F.gelu(linear(h, f"{n}.intermediate.dense")), f"{n}.output.dense")
        if f"{n}.position_mlp.net.0.weight" in w:
            h = norm(x.mean(dim=1), f"{n}.position_mlp.net.0", eps=1e-5)
            position_logits.append(linear(h, f"{n}.position_mlp.net.1"))
    logits = linear(norm(x, "layernorm", eps)[:, 0], "classifier")
    return logits, torch.stack(position_logits) if position_logits else None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_transcription_is_the_authors_code(name, order):
    golden = load_file(GOLDEN / f"{name}.io.safetensors")
    checkpoint, config = paths(name)
    logits, _ = transcription(
        load_file(checkpoint), json.loads(config.read_text()), golden["input"], golden[f"{order}.order"].tolist()
    )
    torch.testing.assert_close(logits, golden[f"{order}.logits"], rtol=0, atol=1e-4)


def made_up(kind, root):
    """Weights under the names of one of the six classes, from a checkpoint of the same backbone, and its config."""
    name = NAMES[root == "deit"]
    checkpoint, config = paths(name)
    weights = {key: value for key, value in load_file(checkpoint).items() if "position_mlp" not in key}
    generator = torch.Generator().manual_seed(3)
    dim, depth = 48, 6
    if kind == "PositionEncoding":
        weights[f"{root}.encoder.embedding.weight"] = torch.randn(depth, 32, generator=generator)
    for layer in range(depth):
        net, shapes = {
            "Shuffling": ("", {}),
            "PositionEncoding": ("projection", {0: [(dim + 32,), (dim + 32,)], 1: [(dim, dim + 32), (dim,)]}),
            "PositionPredicting": ("position_mlp", {0: [(dim,), (dim,)], 1: [(depth, dim), (depth,)]}),
        }[kind]
        for part, (weight, bias) in shapes.items():
            prefix = f"{root}.encoder.layer.{layer}.{net}.net.{part}"
            weights[f"{prefix}.weight"] = torch.randn(weight, generator=generator) * 0.3
            weights[f"{prefix}.bias"] = torch.randn(bias, generator=generator) * 0.3
    return weights, config, load_file(GOLDEN / f"{name}.io.safetensors")["input"]


@pytest.mark.parametrize("root", ["vit", "deit"])
@pytest.mark.parametrize("kind", ["Shuffling", "PositionEncoding", "PositionPredicting"])
def test_all_six_classes_in_any_order(tmp_path, kind, root):
    weights, config, images = made_up(kind, root)
    save_file(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    for file in ("model.safetensors", "pytorch_model.bin"):
        model = layershuffle.load_reference(tmp_path / file, config)
        for order in ([0, 1, 2, 3, 4, 5], [4, 0, 5, 1, 3, 2], [2, 5]):
            logits, position_logits = transcription(weights, json.loads(config.read_text()), images, order)
            output = model(images, order)
            torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-4)
            if position_logits is None:
                assert output.position_logits is None
            else:
                torch.testing.assert_close(output.position_logits, position_logits, rtol=0, atol=1e-4)


def test_what_is_not_a_reference_checkpoint_says_why(tmp_path):
    checkpoint, config = paths(NAMES[0])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    partly = tmp_path / "partly.safetensors"
    weights = load_file(checkpoint)
    save_file({key: value for key, value in weights.items() if ".key." not in key}, partly)
    text = tmp_path / "text.json"
    text.write_text("not json")
    bert = tmp_path / "bert.json"
    bert.write_text('{"model_type": "bert"}')
    short = tmp_path / "short.json"
    short.write_text('{"model_type": "vit"}')
    deeper = tmp_path / "deeper.json"
    deeper.write_text(config.read_text().replace('"num_hidden_layers": 6', '"num_hidden_layers": 7'))
    for files, complaint in {
        (cut, config): "is not a checkpoint or is damaged",
        (other, config): "holds none of the names",
        (partly, config): r"size mismatch for vit\.blocks\.\d\.attn\.qkv",
        (tmp_path / "nowhere", config): "there is no file",
        (checkpoint, text): "is not JSON",
        (checkpoint, bert): "not the config of a ViT or DeiT",
        (checkpoint, short): "lacks 'id2label'",
        (checkpoint, deeper): "don't fit the model",
        (checkpoint, tmp_path / "nowhere"): "there is no file",
    }.items():
        with pytest.raises(ValueError, match=complaint):
            layershuffle.load_reference(*files)
