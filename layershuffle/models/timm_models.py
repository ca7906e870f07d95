"""Makes timm's models, with random weights, with timm's, or with those of a file.

timm is imported where it is used: that takes most of a second, for which a command's --help should not wait.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError
from layershuffle.models.backbones import Head
from layershuffle.models.layers import layer_of, take_layers
from layershuffle.models.timm_errors import explained, unknown_model, weights_not_fetched
from layershuffle.models.weights import read_backbone
from layershuffle.plurals import counted

logger = logging.getLogger(__name__)

CONNECTION_SECONDS = 5
"""How long to wait for an answer of the Hugging Face hub."""
DINOV3_BIASES = (".attn.q_bias", ".attn.v_bias", ".attn.qkv.bias")
"""How the names of the biases of queries and values end: timm's in an Eva, and those of DINOv3's authors."""


def make_timm_model(name: str, num_classes: int, pretrained: bool | str, timm_args: Mapping[str, Any]) -> nn.Module:
    """Make a timm model; the arguments are those of ``create_model``, which says what is raised."""
    import timm

    if not timm.is_model(name):  # timm.create_model would also look in folders and on the hub.
        raise unknown_model(name)
    depth = timm_args.get("depth")
    if depth is not None and depth < 1:
        raise UserError(f"a model has one layer or more, not {depth}")

    # timm passes arguments and weights on to many places, each of which raises errors of its own.
    try:
        vit = _make(name, num_classes, pretrained, dict(timm_args))
    except Exception as error:
        raise explained(error, name, pretrained) from error

    # timm keeps its configuration in the model, and with it a second copy of the weights and the path of their file.
    cfg: Any = vit.pretrained_cfg
    cfg.pop("file", None)
    cfg.pop("state_dict", None)
    return vit


def is_timm_model(name: str) -> bool:
    """Whether timm has a model of this name."""
    import timm

    return timm.is_model(name)


def classes_of(path: str, name: str, head: Head = "average") -> int | None:
    """How many classes the weights in a file have, for the timm model ``name``; None without a classifier.

    Args:
        path: the file, see ``read_backbone``.
        name: the timm model.
        head: how a distilled DeiT classifies, see ``create_model``.

    Raises:
        UserError: if the file can't be read, or has one of the two classifiers that are needed.
    """
    import timm

    cfg = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    weights = read_backbone(path).weights
    try:
        width = _width_of(weights, cfg)
    except KeyError:
        return None

    # A distilled DeiT has two classifiers, and everything else one.
    names = _classifiers(cfg)
    counts = [_classes_of_head(weights, classifier, width) for classifier in names]
    if head == "average" and counts[0] is not None and None in counts:
        raise UserError(
            f"{path} has no {names[counts.index(None)]}, one of the two classifiers of {name}: name a config with "
            "head: class, such as deit_b16_distilled, to classify with the other one"
        )
    return counts[0]


def _make(name: str, num_classes: int, pretrained: bool | str, timm_args: dict[str, Any]) -> nn.Module:
    """Make a timm model; adds to ``timm_args`` what tells timm where its weights are."""
    import timm
    from timm.models import PretrainedCfg

    if pretrained is True and "pretrained_cfg_overlay" not in timm_args:
        timm_args.update(_cached(name))

    replacement = _replacement(name, num_classes, pretrained, timm_args)
    if replacement:
        timm_args["pretrained_cfg_overlay"] = replacement.overlay

    # The arguments are passed as a dict. jsonargparse reads this source code, and would otherwise make options of
    # layershuffle train from all that timm.create_model takes.
    vit: Any = timm.create_model(name, **{"pretrained": bool(pretrained), "num_classes": num_classes, **timm_args})
    if not hasattr(vit, "pretrained_cfg"):
        # A model that is registered with timm, but wasn't made by timm's builder, ignores the configuration and the
        # weights in it. So the weights are loaded here, and its images are normalised with timm's defaults.
        vit.pretrained_cfg = PretrainedCfg().to_dict()
        if replacement:
            vit.load_state_dict(replacement.overlay["state_dict"])

    if replacement and replacement.new_heads:
        logger.info("new classifier: %s", " and ".join(replacement.new_heads))
        # Some families scale down a new head, so that training starts from small logits.
        for head in replacement.new_heads:
            vit.get_submodule(head).weight.data *= getattr(vit, "head_init_scale", 1)
    return vit


def _replacement(
    name: str, num_classes: int, pretrained: bool | str, timm_args: Mapping[str, Any]
) -> "_ReplacementWeights | None":
    """The weights that timm should load in place of its own; None if it needs none, or can load its own by itself."""
    import timm

    depth = timm_args.get("depth")
    if isinstance(pretrained, str):
        backbone = read_backbone(pretrained)
        logger.info("%s: using the %s", pretrained, backbone)
        weights = _first_layers(backbone.weights, depth, pretrained)
        weights = _without_zero_biases(weights, name, timm_args)
        return _ReplacementWeights.fitted(weights, name, num_classes)

    # timm refuses to load its own weights into a model of fewer layers. So the whole model is made, and the first
    # layers are taken from it.
    if pretrained and depth:
        whole_args = {key: value for key, value in timm_args.items() if key != "depth"}
        whole = timm.create_model(name, pretrained=True, num_classes=num_classes, **whole_args)
        weights = _first_layers(whole.state_dict(), depth, f"the pretrained {name}")
        return _ReplacementWeights.fitted(weights, name, num_classes)
    return None


def _without_zero_biases(weights: dict[str, Tensor], name: str, timm_args: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights without DINOv3's biases of queries and values if timm's model has none, as long as they are zero.

    Of timm's DINOv3 models, those whose names end in ``qkvb`` have these biases. Raises RuntimeError if the model has
    none and a bias isn't zero.
    """
    import timm

    # A plain ViT has a qkv.bias too, which must stay. A DINOv3 is recognised by what a plain ViT lacks: timm's weights
    # have biases of queries and of values apart from each other, and those of the authors have "storage tokens".
    biases = [weight for weight in weights if weight.endswith(DINOV3_BIASES)]
    is_eva = "storage_tokens" in weights or any(not bias.endswith(".qkv.bias") for bias in biases)
    if not is_eva:
        return weights

    # Only the names of the model's parameters are needed, so it is made without values.
    with torch.device("meta"):
        names = timm.create_model(name, **timm_args).state_dict()
    if any(weight.endswith(DINOV3_BIASES) for weight in names):
        return weights

    for bias in biases:
        if weights[bias].any():
            raise RuntimeError(f"it has {bias} besides, which is not zero")
    return {weight: value for weight, value in weights.items() if weight not in biases}


@dataclass(frozen=True)
class _ReplacementWeights:
    """Weights that timm loads in place of its own.

    Attributes:
        overlay: the changes of timm's configuration that make it load exactly these weights.
        new_heads: the names of the classifiers that are new.
    """

    overlay: dict[str, Any]
    new_heads: list[str]

    @classmethod
    def fitted(cls, weights: dict[str, Tensor], name: str, num_classes: int) -> "_ReplacementWeights":
        """The weights for a timm model with ``num_classes`` classes.

        A head for another number of classes is replaced here: if timm did it, it would no longer check that the other
        weights fit. A model of 0 classes has no head.
        """
        import timm

        cfg = timm.get_pretrained_cfg(name)
        width = _width_of(weights, cfg)
        new_heads = []
        for head in _classifiers(cfg):
            if not num_classes:
                weights.pop(f"{head}.weight", None)
                weights.pop(f"{head}.bias", None)
            elif _classes_of_head(weights, head, width) != num_classes:
                new_heads.append(head)
                # This is how timm initialises a head.
                weights[f"{head}.weight"] = nn.init.trunc_normal_(torch.empty(num_classes, width), std=0.02)
                weights[f"{head}.bias"] = torch.zeros(num_classes)

        # timm's configuration may ask for a reader of the authors' own file format, which can't read a state dict.
        overlay: dict[str, Any] = {"state_dict": weights, "custom_load": False, "num_classes": num_classes}
        if cfg:
            # timm adapts the first convolution if the model takes images with another number of channels than the
            # configuration says. So the configuration has to say how many channels these weights have.
            channels = weights[f"{_first_layer(cfg)}.weight"].shape[1]
            overlay["input_size"] = (channels, *cfg.input_size[1:])
        return cls(overlay, new_heads)


def _first_layers(weights: dict[str, Tensor], depth: int | None, source: str) -> dict[str, Tensor]:
    """The weights that a model of ``depth`` layers takes from a deeper one, or all if ``depth`` is None."""
    if depth is None:
        return weights
    layers = [layer for layer in map(layer_of, weights) if layer is not None]
    count = 1 + max(layers, default=-1)
    if count < depth:
        raise UserError(f"{source} has only {counted(count, 'layer')}: a model of depth {depth} can't start from it")
    return take_layers(weights, range(depth))


def _first_layer(cfg: Any) -> str:
    """The name of the convolution that reads the images, by a timm model's pretrained configuration."""
    if cfg and cfg.first_conv:
        return cfg.first_conv
    return "patch_embed.proj"


def _width_of(weights: Mapping[str, Tensor], cfg: Any) -> int:
    """How wide the tokens of a model with these weights are; raises KeyError if they are no transformer's of timm."""
    name = f"{_first_layer(cfg)}.weight"
    patches = weights.get(name)
    if patches is None or patches.ndim != 4:
        raise KeyError(name)
    # In hybrid models the first convolution belongs to a network of another width than the layers, so that a norm of
    # the layers is looked at where there is one.
    norm = weights.get("blocks.0.norm1.weight")
    if norm is None:
        return len(patches)
    return len(norm)


def _classes_of_head(weights: Mapping[str, Tensor], head: str, width: int) -> int | None:
    """How many classes a classifier tells apart; None if there is none, or if it reads more than one token.

    DINOv2's own classifiers read the class token beside the mean of the patch tokens, which timm's don't.
    """
    weight = weights.get(f"{head}.weight")
    if weight is None or weight.shape[1:] != (width,):
        return None
    return len(weight)


def _classifiers(cfg: Any) -> tuple[str, ...]:
    """The names of a timm model's classifiers, by its pretrained configuration."""
    names: Any = "head"
    if cfg and cfg.classifier:
        names = cfg.classifier
    if isinstance(names, str):
        return (names,)
    return tuple(names)


def _cached(name: str) -> dict[str, Any]:
    """The argument that makes timm read weights that are in the hub's cache without asking the hub about them.

    It is empty if timm has to fetch them. Raises UserError if they have to be fetched and there is no network.
    """
    import huggingface_hub as hub
    import timm

    cfg = timm.get_pretrained_cfg(name)
    # timm reads the files of models with the custom load "hf" in a way of its own.
    if not cfg or not cfg.hf_hub_id or cfg.custom_load == "hf":
        return {}
    repository, _, revision = cfg.hf_hub_id.partition("@")
    location: Any = {"filename": cfg.hf_hub_filename or "model.safetensors", "revision": revision or None}
    path = hub.try_to_load_from_cache(repository, **location)
    if isinstance(path, str):
        return {"pretrained_cfg_overlay": {"file": path, "custom_load": False}}

    # A short question about the file shows whether there is a network at all, before timm tries for a minute.
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, **location), timeout=CONNECTION_SECONDS)
    except hub.errors.EntryNotFoundError:
        pass  # The file has another name, which timm finds.
    except Exception as error:
        raise weights_not_fetched(name, error) from error
    return {}
