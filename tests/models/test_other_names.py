"""Weights under the names of Hugging Face's transformers and of DINO's authors, against the same ones under timm's."""

import re
from typing import NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save_file

from layershuffle import create_model
from layershuffle.errors import UserError
from layershuffle.models.timm_models import classes_of
from layershuffle.models.weights import read_backbone

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = "vit_base_patch16_224"
DEIT = "deit_base_distilled_patch16_224"
DINOV2 = "vit_base_patch14_dinov2"
REGISTERS = "vit_base_patch14_reg4_dinov2"
GATED_DINOV2 = "vit_giant_patch14_dinov2"
DINOV3 = "vit_base_patch16_dinov3"
BIASED_DINOV3 = "vit_base_patch16_dinov3_qkvb"
GATED_DINOV3 = "vit_small_plus_patch16_dinov3_qkvb"

# The names that transformers 5.24 writes, without the layer's. Several names share a weight of timm in equal parts.
FILE_ATTENTION = {
    "blocks.{}.attn.qkv": ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    "blocks.{}.attn.proj": ["attention.output.dense"],
}
MEMORY_ATTENTION = {
    "blocks.{}.attn.qkv": ["attention.q_proj", "attention.k_proj", "attention.v_proj"],
    "blocks.{}.attn.proj": ["attention.o_proj"],
}
VIT_NORMS = {"blocks.{}.norm1": ["layernorm_before"], "blocks.{}.norm2": ["layernorm_after"]}
DINO_NORMS = {
    "blocks.{}.norm1": ["norm1"],
    "blocks.{}.norm2": ["norm2"],
    "blocks.{}.ls1.gamma": ["layer_scale1.lambda1"],
    "blocks.{}.ls2.gamma": ["layer_scale2.lambda1"],
}
PLAIN_MLP = {"blocks.{}.mlp.fc1": ["mlp.fc1"], "blocks.{}.mlp.fc2": ["mlp.fc2"]}
DINOV3_LAYERS = {
    "blocks.{}.norm1": ["norm1"],
    "blocks.{}.norm2": ["norm2"],
    "blocks.{}.gamma_1": ["layer_scale1.lambda1"],
    "blocks.{}.gamma_2": ["layer_scale2.lambda1"],
    **MEMORY_ATTENTION,
    "blocks.{}.attn.q_bias": ["attention.q_proj.bias"],
    "blocks.{}.attn.v_bias": ["attention.v_proj.bias"],
    "blocks.{}.mlp.fc1": ["mlp.up_proj"],
    "blocks.{}.mlp.fc1_g": ["mlp.gate_proj"],
    "blocks.{}.mlp.fc1_x": ["mlp.up_proj"],
    "blocks.{}.mlp.fc2": ["mlp.down_proj"],
}


def outside_layers(base, head="classifier"):
    """The names of the weights outside the layers of ViT, DeiT and DINOv2; ``base`` stands before most of them."""
    return {
        "cls_token": f"{base}embeddings.cls_token",
        "dist_token": f"{base}embeddings.distillation_token",
        "mask_token": f"{base}embeddings.mask_token",
        "register_tokens": f"{base}embeddings.register_tokens",
        "pos_embed": f"{base}embeddings.position_embeddings",
        "patch_embed.proj": f"{base}embeddings.patch_embeddings.projection",
        "norm": f"{base}layernorm",
        "head": head,
        "head_dist": "distillation_classifier",
    }


OUTSIDE_DINOV3_LAYERS = {
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj": "embeddings.patch_embeddings",
    "norm": "norm",
    "head": "classifier",
}


class Layout(NamedTuple):
    """How one class of models of transformers names its weights.

    Attributes:
        timm_name: timm's model of the same architecture.
        layer_prefix: what stands before the names of a layer's weights; ``{}`` stands for the layer's index.
        layer_names: the names within a layer, by timm's.
        other_names: the names outside the layers, by timm's.
    """

    timm_name: str
    layer_prefix: str
    layer_names: dict[str, list[str]]
    other_names: dict[str, str]


LAYOUTS = {
    "ViT": Layout(
        VIT,
        "vit.encoder.layer.{}.",
        {
            **VIT_NORMS,
            **FILE_ATTENTION,
            "blocks.{}.mlp.fc1": ["intermediate.dense"],
            "blocks.{}.mlp.fc2": ["output.dense"],
        },
        outside_layers("vit."),
    ),
    "ViT in memory": Layout(
        VIT,
        "vit.layers.{}.",
        {**VIT_NORMS, **MEMORY_ATTENTION, **PLAIN_MLP},
        outside_layers("vit."),
    ),
    "DeiT": Layout(
        DEIT,
        "deit.layers.{}.",
        {**VIT_NORMS, **MEMORY_ATTENTION, **PLAIN_MLP},
        outside_layers("deit.", head="cls_classifier"),
    ),
    "DINOv2": Layout(
        DINOV2,
        "encoder.layer.{}.",
        {**DINO_NORMS, **FILE_ATTENTION, **PLAIN_MLP},
        outside_layers(""),
    ),
    "DINOv2 with registers": Layout(
        REGISTERS,
        "dinov2_with_registers.encoder.layer.{}.",
        {**DINO_NORMS, **MEMORY_ATTENTION, **PLAIN_MLP},
        outside_layers("dinov2_with_registers."),
    ),
    "DINOv2 with gates": Layout(
        GATED_DINOV2,
        "dinov2.encoder.layer.{}.",
        {
            **DINO_NORMS,
            **FILE_ATTENTION,
            "blocks.{}.mlp.fc1": ["mlp.weights_in"],
            "blocks.{}.mlp.fc2": ["mlp.weights_out"],
        },
        outside_layers("dinov2."),
    ),
    "DINOv2 with gates in memory": Layout(
        GATED_DINOV2,
        "dinov2.encoder.layer.{}.",
        {
            **DINO_NORMS,
            **MEMORY_ATTENTION,
            "blocks.{}.mlp.fc1": ["mlp.gate_proj", "mlp.up_proj"],
            "blocks.{}.mlp.fc2": ["mlp.down_proj"],
        },
        outside_layers("dinov2."),
    ),
    "DINOv3": Layout(BIASED_DINOV3, "layer.{}.", DINOV3_LAYERS, OUTSIDE_DINOV3_LAYERS),
    "DINOv3 with gates in memory": Layout(GATED_DINOV3, "model.layer.{}.", DINOV3_LAYERS, OUTSIDE_DINOV3_LAYERS),
}


def random_timm(name, **changed):
    """A timm model in which no two weights are alike."""
    torch.manual_seed(2)
    vit = timm.create_model(name, num_classes=5, **SMALL | changed).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit


def of_dino(vit):
    """The weights as DINOv2 has them.

    They have a mask token. With registers, the class token has a position embedding of its own, which timm adds to the
    token itself.
    """
    weights = {**vit.state_dict(), "mask_token": torch.zeros(1, 32)}
    if "reg_token" in weights:
        position = torch.randn(1, 1, 32)
        weights["register_tokens"] = weights.pop("reg_token")
        weights["cls_token"] = weights["cls_token"] - position
        weights["pos_embed"] = torch.cat([position, weights["pos_embed"]], dim=1)
    return weights


def renamed(weights, layout):
    """The weights under the names of transformers. What timm has in one weight may be several there."""
    theirs = {}
    for name, value in weights.items():
        stem, kind = re.fullmatch(r"(.+?)(\.weight|\.bias|)", name).groups()
        in_layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
        if in_layer:
            layer, stem_in_layer = in_layer.groups()
            names = layout.layer_names[f"blocks.{{}}.{stem_in_layer}"]
            for part, chunk in zip(names, value.chunk(len(names)), strict=True):
                theirs[layout.layer_prefix.format(layer) + part + kind] = chunk.clone()
        else:
            theirs[layout.other_names[stem] + kind] = value
    return theirs


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_logits_are_those_of_the_same_weights_in_timm(tmp_path, layout):
    name = layout.timm_name
    vit = random_timm(name)
    weights = of_dino(vit) if "dinov2" in name else vit.state_dict()
    theirs = renamed(weights, layout)
    assert "cls_token" not in theirs

    save_file(theirs, tmp_path / "model.safetensors")
    # Programs for training put more names before those of the model.
    with_prefix = {f"module.model.{key}": value for key, value in theirs.items()}
    torch.save({"state_dict": with_prefix, "epoch": 3}, tmp_path / "run.ckpt")

    images = torch.randn(2, 3, 16, 16)
    for file in ("model.safetensors", "run.ckpt"):
        model = create_model(name, 5, pretrained=str(tmp_path / file), **SMALL).eval()
        torch.testing.assert_close(model(images).logits, vit(images), rtol=0, atol=1e-5)


def test_what_timms_models_lack_is_left_over(tmp_path):
    theirs = renamed(random_timm(VIT).state_dict(), LAYOUTS["ViT"])
    path = tmp_path / "weights.bin"

    torch.save({**theirs, "vit.pooler.dense.weight": torch.ones(2)}, path)
    assert read_backbone(path).left_over == ["vit.pooler.dense.weight"]

    torch.save({**theirs, "vit.encoder.layer.0.adapter.weight": torch.ones(2)}, path)
    with pytest.raises(UserError, match="adapter"):
        create_model(VIT, 5, pretrained=str(path), **SMALL)


def test_parts_that_do_not_fit_together(tmp_path):
    theirs = renamed(random_timm(VIT).state_dict(), LAYOUTS["ViT"])
    theirs["vit.encoder.layer.1.attention.attention.key.weight"] = torch.ones(2, 3)
    torch.save(theirs, tmp_path / "weights.bin")
    with pytest.raises(UserError, match="don't fit together"):
        read_backbone(tmp_path / "weights.bin")


def test_a_classifier_that_reads_two_tokens_is_replaced_in_training_and_none_otherwise(tmp_path, caplog):
    caplog.set_level("INFO")
    path = str(tmp_path / "weights.pth")
    two_tokens = 2 * SMALL["embed_dim"]
    torch.save({**random_timm(DINOV2).state_dict(), "head.weight": torch.ones(5, two_tokens)}, path)

    model = create_model(DINOV2, 5, pretrained=path, **SMALL)
    assert model.vit.head.weight.shape == (5, SMALL["embed_dim"])
    assert "new classifier: head" in caplog.text

    # To evaluate, there is no classifier in the file.
    assert classes_of(path, DINOV2) is None


def test_one_of_two_classifiers_is_not_averaged_with_a_random_one(tmp_path):
    weights = random_timm(DEIT).state_dict()
    one_head = {name: value for name, value in weights.items() if not name.startswith("head_dist")}
    path = str(tmp_path / "weights.pth")

    torch.save(one_head, path)
    with pytest.raises(UserError, match="head_dist"):
        classes_of(path, DEIT)
    assert classes_of(path, DEIT, head="class") == 5

    torch.save(weights, path)
    assert classes_of(path, DEIT) == 5


def of_dinov3s_authors(vit):
    """The weights as the repository of DINOv3 names them; its layers have one bias for queries, keys and values."""
    dim = SMALL["embed_dim"]
    theirs = {"mask_token": torch.zeros(1, dim), "rope_embed.periods": torch.ones(4)}
    for name, value in vit.state_dict().items():
        if name.endswith(("q_bias", "v_bias")):
            continue
        their_name = re.sub(r"gamma_([12])", r"ls\1.gamma", name).replace("reg_token", "storage_tokens")
        theirs[their_name] = value
    for layer, block in enumerate(vit.blocks):
        no_bias = torch.zeros(dim)
        q_bias = no_bias if block.attn.q_bias is None else block.attn.q_bias.detach()
        k_bias = no_bias
        v_bias = no_bias if block.attn.v_bias is None else block.attn.v_bias.detach()
        theirs[f"blocks.{layer}.attn.qkv.bias"] = torch.cat([q_bias, k_bias, v_bias])
        theirs[f"blocks.{layer}.attn.qkv.bias_mask"] = torch.ones(3 * dim)
    return theirs


@pytest.mark.parametrize("name", [DINOV3, BIASED_DINOV3])
def test_files_of_dinov3s_authors(tmp_path, capsys, name):
    vit = random_timm(name)
    path = str(tmp_path / "weights.pth")
    torch.save(of_dinov3s_authors(vit), path)

    model = create_model(name, 5, pretrained=path, **SMALL).eval()

    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images).logits, vit(images), rtol=0, atol=1e-5)
    # What commands print is nothing but results.
    assert not capsys.readouterr().out


def test_dinov3s_biases_are_left_out_only_if_they_are_zero(tmp_path):
    path = str(tmp_path / "weights.pth")
    vit = random_timm(BIASED_DINOV3)
    for weights in (of_dinov3s_authors(vit), renamed(vit.state_dict(), LAYOUTS["DINOv3"])):
        torch.save(weights, path)
        with pytest.raises(UserError, match="bias besides, which is not zero"):
            create_model(DINOV3, 5, pretrained=path, **SMALL)

        for name in weights:
            if "bias" in name:
                weights[name] = torch.zeros_like(weights[name])
        torch.save(weights, path)
        create_model(DINOV3, 5, pretrained=path, **SMALL)


def test_checkpoints_of_dinov2s_training_have_their_layers_in_chunks(tmp_path):
    vit = random_timm(REGISTERS)
    teacher = {"dino_head.mlp.0.weight": torch.ones(2)}
    for name, value in of_dino(vit).items():
        in_first_chunk = re.sub(r"^blocks\.(\d)", r"blocks.0.\1", name)
        teacher[f"backbone.{in_first_chunk}"] = value
    path = str(tmp_path / "teacher.pth")
    torch.save({"teacher": teacher}, path)

    model = create_model(REGISTERS, 5, pretrained=path, **SMALL).eval()

    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images).logits, vit(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [{"img_size": 24}, {"patch_size": 8}])
@pytest.mark.parametrize("name", [REGISTERS, "vit_base_patch16_siglip_gap_224"])  # the second has no class token
def test_other_sizes_are_resampled_as_timm_does(tmp_path, name, size):
    path = str(tmp_path / "weights.pth")
    torch.save(random_timm(name).state_dict(), path)
    arguments = SMALL | size

    overlay = {"file": path, "num_classes": 5}
    plain = timm.create_model(name, pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay, **arguments).eval()
    model = create_model(name, 5, pretrained=path, **arguments).eval()

    images = torch.randn(1, 3, *plain.patch_embed.img_size)
    assert torch.equal(model(images).logits, plain(images))


CLASSES_OF_TRANSFORMERS = {
    "ViT": ("ViTForImageClassification", "ViTConfig", {}, VIT),
    "DeiT": ("DeiTForImageClassificationWithTeacher", "DeiTConfig", {}, DEIT),
    "DINOv2": ("Dinov2Model", "Dinov2Config", {}, DINOV2),
    "DINOv2 with gates": ("Dinov2Model", "Dinov2Config", {"use_swiglu_ffn": True}, GATED_DINOV2),
    "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {}, REGISTERS),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", {"num_register_tokens": 4}, BIASED_DINOV3),
}
"""The class of a model, that of its configuration, what of it is changed, and timm's model."""


@pytest.mark.heavy
@pytest.mark.parametrize("family", CLASSES_OF_TRANSFORMERS)
def test_outputs_are_those_of_transformers(tmp_path, family):
    transformers = pytest.importorskip("transformers", reason="the extra benchmarks is not installed")
    model_class, config_class, changed, name = CLASSES_OF_TRANSFORMERS[family]

    # The sizes of SMALL, in the words of transformers, and feed-forward networks of twice the width.
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    if config_class.startswith("Dinov2"):
        sizes["mlp_ratio"] = 2
    else:
        sizes["intermediate_size"] = 2 * sizes["hidden_size"]
    config = getattr(transformers, config_class)(num_labels=5, **sizes, **changed)
    theirs = getattr(transformers, model_class)(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)

    path = str(tmp_path / "model.safetensors")
    # Where there are gates, transformers makes the width 2/3 of this and rounds it up to a multiple of 8, and timm
    # counts gates and values as one width.
    mlp_ratio = 3 if changed.get("use_swiglu_ffn") else 2
    options = SMALL | {"norm_eps": theirs.config.layer_norm_eps, "mlp_ratio": mlp_ratio}
    model = create_model(name, 5, pretrained=path, **options).eval()

    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected = theirs(images)
        if "logits" in expected:
            torch.testing.assert_close(model(images).logits, expected.logits, rtol=0, atol=1e-5)
            return

        # Some classes of transformers have no classifier: the tokens are compared.
        state = model.embed(images)
        for position, step in enumerate(model.order):
            state, _ = model.run_step(state, step, position)
        torch.testing.assert_close(model.vit.norm(state.tokens), expected.last_hidden_state, rtol=0, atol=1e-4)
