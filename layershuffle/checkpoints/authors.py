"""Loads checkpoints of the LayerShuffle authors' six model classes, which use Hugging Face's parameter names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.errors import UserError, last_line
from layershuffle.files import read_json, sha256
from layershuffle.models import other_names
from layershuffle.models.fitting import create_fitting
from layershuffle.models.model import OrderedViT
from layershuffle.models.position import Position
from layershuffle.models.weights import read_file
from layershuffle.published_models import WEIGHTS_FILES
from layershuffle.results import ModelInfo

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 16 << 20

VIT = "vit_base_patch16_224.orig_in21k_ft_in1k"
DEIT = "deit_base_distilled_patch16_224.fb_in1k"
"""The models that the authors start from, as timm names them."""

_NAMES = {
    **{pattern: f"vit.{timm_name}" for pattern, timm_name in other_names.VIT.items() if timm_name},
    r"encoder\.layer\.(\d+)\.position_mlp\.net\.(\d)\.(\w+)": r"prediction.heads.\1.\2.\3",
    r"encoder\.layer\.(\d+)\.projection\.net\.(\d)\.(\w+)": r"encoding.projections.\1.\2.\3",
    r"encoder\.embedding\.weight": "encoding.table.weight",
}
"""From the authors' names, which are those of Hugging Face's ViT and their own, to ours and timm's."""


def load_authors_folder(folder: Path) -> LoadedModel:
    """Load a folder with a checkpoint of the LayerShuffle authors' code.

    Raises:
        UserError: if it has no config.json with weights beside it, or as ``load_reference``.
    """
    config = folder / CONFIG_FILE
    weights = next((folder / name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if weights is None or not config.is_file():
        raise UserError(f"{folder} has no {CONFIG_FILE} with a {' or '.join(WEIGHTS_FILES)} beside it")
    model = load_reference(weights, config)
    info = ModelInfo(name=folder.name, source=str(weights), sha256=sha256(weights), config=model.config)
    return LoadedModel(model, info, authors=True, class_names=_class_names(config, info.num_classes))


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
    settings = _read_config(config)
    # The class isn't named anywhere: which of the six it is shows in the names of its weights.
    weights = _rename(read_file(checkpoint), checkpoint)
    is_distilled = "vit.dist_token" in weights
    if is_distilled:
        _add_distillation_head(weights)
    try:
        model = create_fitting(
            weights,
            f"{checkpoint}, described by {config},",
            name=DEIT if is_distilled else VIT,
            num_classes=len(settings["id2label"]),
            position=_position(weights),
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


def _read_config(path: str | Path) -> dict[str, Any]:
    """The content of a config.json; raises UserError if it isn't that of a ViT or DeiT."""
    settings = read_json(path, most=MAX_CONFIG_BYTES)
    if not isinstance(settings, dict) or settings.get("model_type") not in ("vit", "deit"):
        raise UserError(f"{path} is not the config of a ViT or DeiT: its model_type should be vit or deit")
    activation = settings.get("hidden_act", "gelu")
    if activation != "gelu":
        raise UserError(f"{path} asks for the activation {activation}; only gelu is supported")
    return settings


def _class_names(config: Path, num_classes: int) -> list[str] | None:
    """The names that a config.json has for the classes, if it has one for each."""
    by_label = _read_config(config)["id2label"]
    if not isinstance(by_label, dict):
        return None
    names = []
    for label in range(num_classes):
        name = by_label.get(str(label))  # keys of JSON are texts
        if not isinstance(name, str):
            return None
        names.append(name)
    return names


def _position(weights: Mapping[str, Tensor]) -> Position:
    """What the layers of the model with these weights do with their position."""
    if any(name.startswith("encoding.") for name in weights):
        return "encode"
    if any(name.startswith("prediction.") for name in weights):
        return "predict"
    return "none"


def _add_distillation_head(weights: dict[str, Tensor]) -> None:
    """Add a second head of zeros, which timm's distilled DeiT has and the authors' code leaves out."""
    for kind in ("weight", "bias"):
        head = weights.get(f"vit.head.{kind}")
        if head is not None:
            weights[f"vit.head_dist.{kind}"] = torch.zeros_like(head)


def _rename(content: Mapping[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """The weights under our names. Other entries of the checkpoint are left out."""
    try:
        renamed = other_names.rename(content, _NAMES).weights
    except RuntimeError as error:
        raise UserError(f"{path} is damaged, its weights don't fit together: {last_line(error)[:300]}") from error
    # Each of the authors' names becomes another one of ours. What keeps its name is no part of our model, such as the
    # pooler of Hugging Face's ViT.
    weights = {name: value for name, value in renamed.items() if name not in content}
    if not weights:
        raise UserError(f"{path} holds none of the names that the LayerShuffle authors' checkpoints have")
    return weights
