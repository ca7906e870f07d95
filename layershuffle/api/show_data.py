"""Draws training images as the model of a run sees them, beside what it is evaluated on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.utils import make_grid

from layershuffle.api.arguments import check_at_least
from layershuffle.api.compose import Run, compose
from layershuffle.api.train import as_options
from layershuffle.data.augmentation import Augmented
from layershuffle.data.samplers import TrainingSampler
from layershuffle.results.figures import panels

CHEAP_OPTIONS = {
    "model.pretrained": False,
    "model.compile": False,
    "trainer.logger": False,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.strategy": "auto",
    "trainer.precision": "32-true",
}
"""Options that change nothing in the images, and with which no weights are fetched and no GPU is needed."""
PADDING = 4
"""Pixels between two images."""


def show_data(
    model: str | Path,
    data: str | Path,
    recipe: str | Path | None = None,
    *,
    images: int = 6,
    epochs: int = 5,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Figure:
    """Draw the first training images of a run.

    There is a row for each image: as it is evaluated, as the model sees it in the first epochs, and mixed with another
    if the run does that. Epochs that all show the same, as without augmentation, are one column.

    Args:
        model: the name of a model's config, or its path.
        data: the name of a data set's config, or its path.
        recipe: the name of a recipe's config, such as "finetune", or its path.
        images: how many images to draw.
        epochs: how many epochs to draw.
        seed: the seed of the run.
        options: any other options of ``layershuffle train`` by name.

    Raises:
        UserError: if an option is wrong.
    """
    configs = [str(config) for config in (model, data, recipe) if config is not None]
    return draw_data([*configs, *as_options({"seed": seed, **(options or {})})], images, epochs)


def draw_data(args: Sequence[str], images: int, epochs: int) -> Figure:
    """Draw the first training images of the run that ``args`` describe, as ``layershuffle train`` takes them."""
    check_at_least(1, images=images, epochs=epochs)
    run = compose([*args, *as_options(CHEAP_OPTIONS)])
    preprocess = run.data.prepare_for(*run.model.model.image_format)
    run.data.prepare_data()
    run.data.setup()
    columns = _columns(run, preprocess, images, epochs)

    # Row by row, [rows * columns, channels, size, size], and with the normalisation undone.
    in_rows = torch.stack(list(columns.values()), dim=1).flatten(0, 1)
    pixels = in_rows * preprocess.std + preprocess.mean
    # Of images with more channels than colours, such as those of satellites, the first ones are drawn. Augmentation can
    # leave pixels that are brighter than white, which are drawn white.
    drawn = 3 if pixels.shape[1] >= 3 else 1
    return _draw(list(columns), pixels[:, :drawn].clamp(0, 1))


def _columns(run: Run, preprocess: nn.Module, count: int, epochs: int) -> dict[str, Tensor]:
    """The images as they are in each column, float32 [images, channels, size, size], normalised."""
    module = run.model
    train: Any = run.data.sets["train"]
    labels = run.data.training_labels("data.balanced") if run.data.balanced else None
    # These are the images with which the training of one process begins.
    chosen = list(TrainingSampler(train, 1, module.seed, labels=labels))[:count]

    def stack(images: Sequence[Tensor]) -> Tensor:
        return torch.cat([preprocess(image[None]) for image in images])

    columns = {"evaluated": stack([train[index][0] for index in chosen])}

    # Augmentation is a function of the epoch, which is counted from 0, and of the image.
    augmented = Augmented(train, module.augmentation, run.data.image_size, module.seed, run.data.resizing)

    def in_epoch(epoch: int) -> Tensor:
        return stack([augmented[epoch, index][0] for index in chosen])

    in_epochs = [in_epoch(epoch) for epoch in range(epochs)]
    if epochs > 1 and all(torch.equal(images, in_epochs[0]) for images in in_epochs):
        columns["every epoch"] = in_epochs[0]
    else:
        # Users count epochs from 1, as the training does when it tells of them.
        for number, images in enumerate(in_epochs, 1):
            columns[f"epoch {number}"] = images

    # Mixing takes a whole batch, and its labels, which it mixes too.
    if module.mix:
        torch.manual_seed(module.seed)
        labels_of_chosen = torch.stack([torch.as_tensor(train[index][1]) for index in chosen])
        columns["mixed"], _ = module.mix(in_epochs[0], labels_of_chosen)
    return columns


def _draw(titles: Sequence[str], pixels: Tensor) -> Figure:
    """Draw images row by row, [rows * columns, channels, size, size], from 0 to 1, with a title above each column."""
    columns = len(titles)
    rows = len(pixels) // columns
    grid = make_grid(pixels, nrow=columns, padding=PADDING, pad_value=1)
    side = pixels.shape[-1]
    centres = [PADDING + (side + PADDING) * column + side / 2 for column in range(columns)]
    figure, (axis,) = panels(1, 1.5 * columns, 1.5 * rows + 0.3, grid=False)
    axis.imshow(grid.permute(1, 2, 0).numpy())
    axis.set_xticks(centres, titles)
    axis.xaxis.tick_top()
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return figure
