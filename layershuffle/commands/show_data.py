"""Draws training images as the model of a run sees them, beside what it is evaluated on."""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.utils import make_grid

from layershuffle.api.compose import compose
from layershuffle.data.augmentation import Augmented
from layershuffle.data.samplers import TrainingSampler
from layershuffle.errors import UserError
from layershuffle.results.figures import panels, save

LIKE_HERE = {"model.pretrained": "false", "model.compile": "false", "trainer.logger": "false"}
LIKE_HERE |= {
    "trainer.accelerator": "cpu",
    "trainer.devices": "1",
    "trainer.strategy": "auto",
    "trainer.precision": "32-true",
}
"""Options that change nothing in the images, and with which no weights are fetched and no GPU is needed."""


def show_data_command(args: list[str] | None = None) -> None:
    """Draw what ``args`` ask for, by default those of the process."""
    parser = argparse.ArgumentParser(
        prog="layershuffle show-data",
        usage="%(prog)s [CONFIG ...] [options of layershuffle train] [--output FILE] [--images N] [--epochs N]",
        description="Draw the first training images of a run as they are evaluated, as the model sees them in the "
        "first epochs, and mixed with each other if the run does that. It takes the arguments of layershuffle train.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, default=Path("data.png"), help="the picture (default: %(default)s)")
    parser.add_argument("--images", type=int, default=6, help="number of images (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="number of epochs (default: %(default)s)")
    own, rest = parser.parse_known_args(args)
    if own.images < 1 or own.epochs < 1:
        raise UserError("--images and --epochs are at least 1")
    run = compose([*rest, *(f"--{name}={value}" for name, value in LIKE_HERE.items())])
    module, data = run.model, run.data
    preprocess = data.prepare_for(*module.model.image_format)
    data.prepare_data()
    data.setup()
    train: Any = data.sets["train"]
    labels = data.training_labels("data.balanced") if data.balanced else None
    chosen = list(TrainingSampler(train, 1, module.seed, labels=labels))[: own.images]

    def shown(images: list[Tensor]) -> Tensor:
        return torch.cat([preprocess(image[None]) for image in images])

    columns = {"evaluated": shown([train[index][0] for index in chosen])}
    augmented = Augmented(train, module.augmentation, data.image_size, module.seed, data.resizing)
    for epoch in range(own.epochs):
        columns[f"epoch {epoch}"] = shown([augmented[epoch, index][0] for index in chosen])
    if module.mix:
        torch.manual_seed(module.seed)
        columns["mixed"] = module.mix(columns["epoch 0"], torch.tensor([int(train[index][1]) for index in chosen]))[0]
    rows = torch.stack(list(columns.values()), dim=1).flatten(0, 1) * preprocess.std + preprocess.mean
    grid, side = make_grid(rows.clamp(0, 1), nrow=len(columns), padding=4, pad_value=1), rows.shape[-1] + 4
    figure, (axis,) = panels(1, 1.5 * len(columns), 1.5 * len(chosen) + 0.3, grid=False)
    axis.imshow(grid.permute(1, 2, 0).numpy())
    axis.set_xticks([4 + side * column + (side - 4) / 2 for column in range(len(columns))], columns)
    axis.xaxis.tick_top()
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    save(figure, own.output)
    print(f"drawn: {own.output}")
