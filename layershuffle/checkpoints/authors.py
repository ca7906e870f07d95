"""Loads checkpoints of the LayerShuffle authors' six model classes, which use Hugging Face's parameter names."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError
from layershuffle.files import read_json
from layershuffle.models.create import create_fitting
from layershuffle.models.model import OrderedViT
from layershuffle.models.position import Position
from layershuffle.models.weights import read_file

# From Hugging Face's names to timm's. The weights of keys and values join those of the queries, as timm has one matrix.
_NAMES = {
    r"embeddings\.cls_token": "vit.cls_token",
    r"embeddings\.distillation_token": "vit.dist_token",
    r"embeddings\.position_embeddings": "vit.pos_embed",
    r"embeddings\.patch_embeddings\.projection\.(\w+)": r"vit.patch_embed.proj.\1",
    r"layernorm\.(\w+)": r"vit.norm.\1",
    r"classifier\.(\w+)": r"vit.head.\1",
    r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)": r"vit.blocks.\1.norm1.\2",
    r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)": r"vit.blocks.\1.norm2.\2",
    r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(\w+)": r"vit.blocks.\1.attn.qkv.\2",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)": r"vit.blocks.\1.attn.proj.\2",
    r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)": r"vit.blocks.\1.mlp.fc1.\2",
    r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)": r"vit.blocks.\1.mlp.fc2.\2",
    r"encoder\.layer\.(\d+)\.position_mlp\.net\.(\d)\.(\w+)": r"prediction.heads.\1.\2.\3",
    r"encoder\.layer\.(\d+)\.projection\.net\.(\d)\.(\w+)": r"encoding.projections.\1.\2.\3",
    r"encoder\.embedding\.weight": "encoding.table.weight",
}


def load_reference(checkpoint: str | Path, config: str | Path) -> OrderedViT:
    """Load a checkpoint of the LayerShuffle authors' code (github.com/matfrei/layershuffle).

    All six classes can be loaded: Shuffling, PositionEncoding and PositionPredicting, each for ViT and distilled DeiT.
    Their DeiT classifies with the head of the class token alone; so does the returned model, whose unused distillation
    head is zero.

    Args:
        checkpoint: ``model.safetensors`` or ``pytorch_model.bin``.
        config: the ``config.json`` beside it.

    Returns:
        The model in evaluation mode. Its ``vit`` is the backbone, with timm's parameter names.

    Raises:
        UserError: if a file is damaged or of another model, or the two don't belong together.
    """
    settings = read_json(config, most=16 << 20)
    if not isinstance(settings, dict) or settings.get("model_type") not in ("vit", "deit"):
        raise UserError(f"{config} is not the config of a ViT or DeiT: its model_type should be vit or deit")
    if settings.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{config} asks for the activation {settings['hidden_act']}; only gelu is supported")
    weights = _renamed(read_file(checkpoint), checkpoint)
    distilled = "vit.dist_token" in weights
    kinds: dict[str, Position] = {"encoding": "encode", "prediction": "predict"}
    position = next((kind for part, kind in kinds.items() if any(name.startswith(part) for name in weights)), "none")
    try:
        for kind in ("weight", "bias") if distilled else ():
            weights[f"vit.head_dist.{kind}"] = torch.zeros_like(weights[f"vit.head.{kind}"])
        model = create_fitting(
            weights,
            f"{checkpoint}, described by {config},",
            # The weights that the authors start from, as timm names them.
            name="deit_base_distilled_patch16_224.fb_in1k" if distilled else "vit_base_patch16_224.orig_in21k_ft_in1k",
            num_classes=len(settings["id2label"]),
            position=position,
            head="class",
            norm_eps=settings["layer_norm_eps"],
            img_size=settings["image_size"],
            patch_size=settings["patch_size"],
            in_chans=settings["num_channels"],
            embed_dim=settings["hidden_size"],
            depth=settings["num_hidden_layers"],
            num_heads=settings["num_attention_heads"],
            mlp_ratio=settings["intermediate_size"] / settings["hidden_size"],
            qkv_bias=settings["qkv_bias"],
        )
    except KeyError as error:
        raise UserError(f"{config} lacks {error}, which a ViT or DeiT config of transformers has") from error
    except (TypeError, ZeroDivisionError) as error:
        raise UserError(f"{config} is damaged: {error}") from error
    return model.eval()


def keep_classes(model: OrderedViT, count: int) -> None:
    """Leave out all but the first ``count`` classes of a model that ``load_reference`` made.

    The authors fine-tuned on CIFAR-100 with the head of 1,000 classes that ImageNet needs.
    """
    head: Any = model.vit.head
    head.weight, head.bias = nn.Parameter(head.weight[:count]), nn.Parameter(head.bias[:count])
    head.out_features = model.config["num_classes"] = count


def _renamed(content: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    content = {re.sub(r"^(vit|deit)\.", "", name): value for name, value in content.items()}
    weights: dict[str, Tensor] = {}
    for pattern, ours in _NAMES.items():
        for name in filter(re.compile(pattern).fullmatch, content):
            parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if not all(part in content for part in parts):
                raise UserError(f"{path} lacks the keys or values of layer {name.split('.')[2]}")
            joined = torch.cat([content[part] for part in parts]) if ".query." in name else content[name]
            weights[re.sub(pattern, ours, name)] = joined
    if not weights:
        raise UserError(f"{path} holds none of the names that the LayerShuffle authors' checkpoints have")
    return weights
