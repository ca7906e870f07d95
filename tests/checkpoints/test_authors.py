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
        # The position logits enter the authors' loss, as the mean over layers and images: 6 layers, 5 images.
        targets = torch.arange(6).repeat_interleave(5)
        loss = loss + F.cross_entropy(output.position_logits.flatten(0, 1), targets)
    torch.testing.assert_close(loss[None], golden[f"{order}.loss"], rtol=0, atol=1e-4)


def transcription(weights, config, images, order):
    """The authors' forward pass, on weights under their names.

    Returns the logits, and the position logits [steps, batch, layers] or None where the weights predict no positions.
    """
    root = "deit" if "deit.layernorm.weight" in weights else "vit"
    weights = {name.removeprefix(f"{root}."): value for name, value in weights.items()}
    heads = config["num_attention_heads"]
    eps = config["layer_norm_eps"]
    eps_of_positions = 1e-5  # PyTorch's default, which the authors' modules for positions have

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name, eps=eps):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def by_head(x):
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    # Embeddings
    projection = "embeddings.patch_embeddings.projection"
    patches = F.conv2d(
        images, weights[f"{projection}.weight"], weights[f"{projection}.bias"], stride=config["patch_size"]
    )
    tokens = [patches.flatten(2).transpose(1, 2)]
    if "embeddings.distillation_token" in weights:
        tokens.insert(0, weights["embeddings.distillation_token"].expand(len(images), -1, -1))
    tokens.insert(0, weights["embeddings.cls_token"].expand(len(images), -1, -1))
    x = torch.cat(tokens, dim=1) + weights["embeddings.position_embeddings"]

    position_logits = []
    for position, layer in enumerate(order):
        name = f"encoder.layer.{layer}"

        # Position encoding
        if "encoder.embedding.weight" in weights:
            vector = weights["encoder.embedding.weight"][position].expand(*x.shape[:2], -1)
            hidden = norm(torch.cat([x, vector], dim=-1), f"{name}.projection.net.0", eps_of_positions)
            x = F.gelu(linear(hidden, f"{name}.projection.net.1")) + x

        # Attention
        hidden = norm(x, f"{name}.layernorm_before")
        query = by_head(linear(hidden, f"{name}.attention.attention.query"))
        key = by_head(linear(hidden, f"{name}.attention.attention.key"))
        value = by_head(linear(hidden, f"{name}.attention.attention.value"))
        attention = torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5, dim=-1) @ value
        x = x + linear(attention.transpose(1, 2).flatten(2), f"{name}.attention.output.dense")

        # Feed-forward network
        hidden = norm(x, f"{name}.layernorm_after")
        hidden = F.gelu(linear(hidden, f"{name}.intermediate.dense"))
        x = x + linear(hidden, f"{name}.output.dense")

        # Position prediction
        if f"{name}.position_mlp.net.0.weight" in weights:
            hidden = norm(x.mean(dim=1), f"{name}.position_mlp.net.0", eps_of_positions)
            position_logits.append(linear(hidden, f"{name}.position_mlp.net.1"))

    class_token = norm(x, "layernorm")[:, 0]
    logits = linear(class_token, "classifier")
    return logits, torch.stack(position_logits) if position_logits else None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_transcription_is_the_authors_code(name, order):
    golden = load_file(GOLDEN / f"{name}.io.safetensors")
    checkpoint, config_file = paths(name)
    config = json.loads(config_file.read_text())

    logits, _ = transcription(load_file(checkpoint), config, golden["input"], golden[f"{order}.order"].tolist())

    torch.testing.assert_close(logits, golden[f"{order}.logits"], rtol=0, atol=1e-4)


def made_up(kind, root):
    """What tests one of the six classes, from a checkpoint of the same backbone.

    Returns weights under the names of the class, those of positions being random, the path of its config, and images.
    """
    name = NAMES[1] if root == "deit" else NAMES[0]
    checkpoint, config_file = paths(name)
    weights = {key: value for key, value in load_file(checkpoint).items() if "position_mlp" not in key}
    images = load_file(GOLDEN / f"{name}.io.safetensors")["input"]

    dim = 48  # of the tokens
    depth = 6
    position_dim = 32
    generator = torch.Generator().manual_seed(3)
    # A norm and a linear map in each layer.
    if kind == "PositionEncoding":
        weights[f"{root}.encoder.embedding.weight"] = torch.randn(depth, position_dim, generator=generator)
        net = "projection.net"
        width = dim + position_dim
        shapes = {"0.weight": (width,), "0.bias": (width,), "1.weight": (dim, width), "1.bias": (dim,)}
    elif kind == "PositionPredicting":
        net = "position_mlp.net"
        shapes = {"0.weight": (dim,), "0.bias": (dim,), "1.weight": (depth, dim), "1.bias": (depth,)}
    else:
        net = ""
        shapes = {}
    for layer in range(depth):
        for part, shape in shapes.items():
            value = torch.randn(shape, generator=generator) * 0.3
            weights[f"{root}.encoder.layer.{layer}.{net}.{part}"] = value
    return weights, config_file, images


@pytest.mark.parametrize("root", ["vit", "deit"])
@pytest.mark.parametrize("kind", ["Shuffling", "PositionEncoding", "PositionPredicting"])
def test_all_six_classes_in_any_order(tmp_path, kind, root):
    weights, config_file, images = made_up(kind, root)
    config = json.loads(config_file.read_text())
    save_file(weights, tmp_path / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")

    for file in ("model.safetensors", "pytorch_model.bin"):
        model = layershuffle.load_reference(tmp_path / file, config_file)
        for order in ([0, 1, 2, 3, 4, 5], [4, 0, 5, 1, 3, 2], [2, 5]):
            logits, position_logits = transcription(weights, config, images, order)
            output = model(images, order)
            torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-4)
            if position_logits is None:
                assert output.position_logits is None
            else:
                torch.testing.assert_close(output.position_logits, position_logits, rtol=0, atol=1e-4)


def test_what_is_not_a_reference_checkpoint_says_why(tmp_path):
    checkpoint, config = paths(NAMES[0])
    nowhere = tmp_path / "nowhere"

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    other = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, other)
    without_keys = tmp_path / "without_keys.safetensors"
    weights = load_file(checkpoint)
    save_file({name: value for name, value in weights.items() if ".key." not in name}, without_keys)

    text = tmp_path / "text.json"
    text.write_text("not json")
    bert = tmp_path / "bert.json"
    bert.write_text('{"model_type": "bert"}')
    short = tmp_path / "short.json"
    short.write_text('{"model_type": "vit"}')
    deeper = tmp_path / "deeper.json"
    deeper.write_text(config.read_text().replace('"num_hidden_layers": 6', '"num_hidden_layers": 7'))

    for checkpoint_file, config_file, complaint in (
        (cut, config, "is not a checkpoint or is damaged"),
        (other, config, "holds none of the names"),
        (without_keys, config, r"size mismatch for vit\.blocks\.\d\.attn\.qkv"),
        (nowhere, config, "there is no file"),
        (checkpoint, text, "is not JSON"),
        (checkpoint, bert, "not the config of a ViT or DeiT"),
        (checkpoint, short, "lacks 'id2label'"),
        (checkpoint, deeper, "don't fit the model"),
        (checkpoint, nowhere, "there is no file"),
    ):
        with pytest.raises(ValueError, match=complaint):
            layershuffle.load_reference(checkpoint_file, config_file)
