"""What a training says of itself before it reads its data."""

import logging
from pathlib import Path

from layershuffle.api.compose import Run
from layershuffle.models.model import OrderedViT
from layershuffle.plurals import counted

logger = logging.getLogger(__name__)

DEFAULT_METHOD = "layershuffle"
"""The method of a run whose configs and options name none."""


def introduce(run: Run) -> None:
    """Say in a few lines what is trained, where its weights come from, what it sees, and which configs say so."""
    if run.earlier:
        end = "" if run.earlier.checkpoint else " from the beginning"
        logger.info("continuing %s%s", run.earlier.folder, end)
    model = run.model.model
    weights = run.config.ckpt_path or run.config.model.pretrained
    if weights is True:
        source = "timm's weights"
    elif weights:
        source = f"weights of {weights}"
    else:
        source = "random weights"
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info(
        "model: %s, %s, %.3gM parameters, %s", model.config["name"], counted(model.depth, "layer"), size, source
    )

    introduce_input(model)
    configs = [Path(path).stem for path in run.config.config or ()]
    if configs:
        method = run.model.method
        is_named = any(Path(path).parent.name == "method" for path in run.config.config)
        if method == DEFAULT_METHOD and not is_named:
            method += " (default)"
        logger.info("method: %s, of the configs %s", method, ", ".join(configs))


def introduce_input(model: OrderedViT, option: str = "--model.timm_args.img_size") -> None:
    """Say which images a model takes, and warn of pixels that it doesn't see; ``option`` changes their size."""
    channels, height, width = model.image_shape
    rows, columns = model.backbone.patch_grid
    logger.info(
        "input: %d x %d pixels, %s, a grid of %d x %d patches",
        height,
        width,
        counted(channels, "channel"),
        rows,
        columns,
    )
    below, beside = model.backbone.unseen_pixels
    if below or beside:
        logger.warning(
            "%d x %d pixels don't divide into whole patches, so that rows (%d) and columns (%d) at the end are not "
            "seen: choose another %s",
            height,
            width,
            below,
            beside,
            option,
        )
