"""The images that a model takes: their size, how they are normalised, and how they are resized."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from layershuffle.errors import UserError


class ImageFormat(NamedTuple):
    """The images that a model takes: ``size`` x ``size`` pixels from 0 to 1, less ``mean``, divided by ``std``.

    The other fields say how they are resized, see ``data.preprocessing.Resizing``; by default as in the LayerShuffle
    paper (arXiv 2407.04513, section 4).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    crop_mode: str = "center"


def papers_format(image_shape: tuple[int, int, int], pretrained_cfg: Mapping[str, Any]) -> ImageFormat:
    """Size and normalisation of a timm model's images, which are resized as in the paper.

    Args:
        image_shape: channels, height and width.
        pretrained_cfg: timm's configuration of the model.

    Raises:
        UserError: if the images are not square.
    """
    channels, height, width = image_shape
    if height != width:
        raise UserError(f"the model takes images of {height} x {width} pixels; only square ones are supported")
    mean = tuple(pretrained_cfg["mean"])
    std = tuple(pretrained_cfg["std"])
    if channels == 1:
        # For grey images timm adds up the first layer's weights for red, green and blue. Here the three are averaged.
        mean = (sum(mean) / len(mean),)
        std = (sum(std) / len(std),)
    elif channels != len(mean):
        # For other numbers of channels timm repeats the weights for red, green and blue in turn, as is done here.
        mean = tuple(mean[channel % len(mean)] for channel in range(channels))
        std = tuple(std[channel % len(std)] for channel in range(channels))
    return ImageFormat(height, mean, std)


def timms_format(papers: ImageFormat, pretrained_cfg: Mapping[str, Any]) -> ImageFormat:
    """The same images, but resized as timm's configuration says, with which timm's accuracies were measured."""
    from timm.data import resolve_data_config

    config = resolve_data_config(pretrained_cfg=pretrained_cfg)
    return papers._replace(
        crop_pct=config["crop_pct"], interpolation=config["interpolation"], crop_mode=config["crop_mode"]
    )
