import sys

import numpy as np
import pytest
import torch

from layershuffle.commands.analyse import analyse_command
from layershuffle.data import Preprocess
from layershuffle.evaluation.activations import contribution, project, shuffled_runs
from layershuffle.orders.order import Order
from layershuffle.results import figures
from layershuffle.results.record import Results


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, at):
        return torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(at)), 0


@pytest.fixture
def fabric():
    from lightning.fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


def test_every_image_runs_in_an_order_of_its_own(small, fabric):
    model = small(position="encode")
    preprocess, images = Preprocess(*model.image_format), Images()
    runs = list(shuffled_runs(model, preprocess, images, fabric, 3))
    orders = [order for order, _ in runs]
    assert len(runs) == 12
    assert len(set(orders)) > 6
    with torch.inference_mode():
        for at, (order, states) in enumerate(runs):
            tokens = model.embed(preprocess(images[at][0][None])).tokens
            for position, layer in enumerate(map(int, str(order).split())):
                before = tokens
                tokens = model.vit.blocks[layer](model.encoding(tokens, layer, position))
                assert torch.equal(states[position], before[0])
                assert torch.equal(states[position + 1], tokens[0])
            assert len(states) == position + 2
    assert [order for order, _ in shuffled_runs(model, preprocess, images, fabric, 3)] == orders
    assert [order for order, _ in shuffled_runs(model, preprocess, images, fabric, 4)] != orders


def test_contribution_is_relative_to_the_class_token():
    before, after = torch.tensor([[3.0, 4.0], [9.0, 9.0]]), torch.tensor([[3.0, 14.0], [0.0, 0.0]])
    assert contribution(before, after) == 10 / 5


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    from layershuffle.commands.train import train

    monkeypatch.chdir(tmp_path)
    arguments = [
        "--model.name=vit_tiny_patch16_224",
        "--model.timm_args={img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 16, depth: 4, num_heads: 2}",
        "--data=layershuffle.data.Digits",
        "--data.train_images=128",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--checkpoint.dirpath=.",
    ]
    train(arguments)
    return "best.ckpt"


def test_contributions_as_typed(checkpoint, tmp_path):
    results = analyse_command([checkpoint, "--study=contributions", "--images=40", "--output=c.json"])
    assert Results.load("c.json") == results
    found = figures.by_layer_and_position(results)
    assert sum(map(len, found.values())) == 40 * 4
    measured = results.measures["contributions"]
    order = Order(measured["orders"][7])
    layer = order[2][0].layer
    assert measured["changes"][7][2] in found[layer, 2]
    assert all(np.all(values > 0) for values in found.values())
    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert len(figures.contributions(results, others=[results]).axes) == 3


def test_representations_as_typed(checkpoint, tmp_path):
    pytest.importorskip("umap")
    arguments = [checkpoint, "--layer=1", "--images=30"]
    results = analyse_command([*arguments, "--output=r.json"])
    measured = results.measures["representations"]
    assert len(measured["plane"]) == len(measured["positions"]) == 30
    assert [str(Order(o)).split().index("1") for o in measured["orders"]] == measured["positions"]
    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_analyses_that_cannot_be(checkpoint, monkeypatch):
    with pytest.raises(ValueError, match="the model runs no layer 9: choose from 0 1 2 3"):
        analyse_command([checkpoint, "--layer=9"])
    with pytest.raises(ValueError, match="--images is 3 or more"):
        analyse_command([checkpoint, "--images=1"])
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"pip install 'layershuffle\[umap\]'"):
        project(torch.randn(5, 4), 0)
