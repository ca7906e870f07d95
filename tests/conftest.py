"""A small model and small data, shared by the tests."""

import functools
import io

import pytest
import torch
from helpers import DIGITS, QUIET, SMALL, train
from PIL import Image

import layershuffle
from layershuffle.commands.logs import set_up_logging
from layershuffle.results.figures import drawing

set_up_logging()  # so that a test finds log lines where a user does, on stderr


@pytest.fixture(scope="session", autouse=True)
def without_rendering():
    """Composes the pictures of results without rendering them, which takes half a second each.

    A file of one pixel stands for each of them. Yields the function that renders.
    """
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "png")
    one_pixel = file.getvalue()
    render = drawing.rendered
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "rendered", lambda figure, form: one_pixel)
        yield render


@pytest.fixture
def with_rendering(without_rendering, monkeypatch):
    """Renders pictures after all, for tests that look at them."""
    monkeypatch.setattr(drawing, "rendered", without_rendering)


@pytest.fixture
def small():
    """Returns a function that makes a four-layer model, whose weights are far from their initial symmetry.

    The model is in evaluation mode.
    """

    def make(name="vit_tiny_patch16_224", num_classes=5, **arguments):
        torch.manual_seed(0)
        model = layershuffle.create_model(name, num_classes, **(SMALL | arguments)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        return model

    return make


@pytest.fixture
def images():
    """Three random images for ``small``."""
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def many():
    """More images than a batch has."""
    return torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def choosy(small):
    """A model whose images choose between three orders."""
    return small(choices=["sequential", "3 2 1 0", "0 (1|2) 3"])


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """Makes a function that trains in a new folder and returns this folder. It does the same training only once."""

    @functools.cache
    def make(training, *options):
        folder = tmp_path_factory.mktemp("training")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            training(*options)
        return folder

    return make


@pytest.fixture(scope="session")
def shuffled_digits(tmp_path_factory):
    """The checkpoint of a five-layer model of the digits, trained with shuffled layers. No test may change it."""
    folder = tmp_path_factory.mktemp("shuffled_digits")
    command = [
        *DIGITS,
        *QUIET,
        "--model.depth=5",
        "--model.sampler=Shuffle",
        "--data.train_images=600",
        "--trainer.max_epochs=2",
        "--trainer.logger=false",
        f"--checkpoint.dirpath={folder}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(command)
    return str(folder / "best.ckpt")
