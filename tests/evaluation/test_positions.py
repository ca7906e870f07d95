"""The studies of what layers do at which position, against the layers run one by one."""

import functools
import json
import sys

import numpy as np
import pytest
import torch
from helpers import SMALL, fails, train

import layershuffle
from layershuffle.api import analyse
from layershuffle.commands.analyse import analyse_command
from layershuffle.data import Preprocess
from layershuffle.evaluation.activations import contributions, project, shuffled_runs
from layershuffle.models import create_model
from layershuffle.orders.order import Order
from layershuffle.results import DataInfo, Environment, EvaluationInfo, ModelInfo, Results
from layershuffle.results.measures import Contributions, Representations


class Images(torch.utils.data.Dataset):
    """Random images, the same ones each time."""

    def __init__(self, count=12):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, at):
        generator = torch.Generator().manual_seed(at)
        image = torch.randint(0, 256, (1, 8, 8), dtype=torch.uint8, generator=generator)
        label = 0
        return image, label


@pytest.fixture
def fabric():
    from lightning.fabric import Fabric

    return Fabric(accelerator="cpu", devices=1)


def test_every_image_runs_in_an_order_of_its_own(small, fabric):
    model = small(position="encode")
    preprocess = Preprocess(*model.image_format)
    images = Images()

    runs = list(shuffled_runs(model, preprocess, images, fabric, seed=3))

    orders = [order for order, _ in runs]
    assert len(orders) == 12
    assert len(set(orders)) > 6
    with torch.inference_mode():
        for (image, _label), (order, states) in zip(images, runs):
            tokens = model.embed(preprocess(image[None])).tokens
            assert torch.equal(states[0], tokens[0])
            layers = [int(layer) for layer in str(order).split()]
            assert len(states) == 1 + len(layers)
            for position, layer in enumerate(layers):
                tokens = model.vit.blocks[layer](model.encoding(tokens, layer, position))
                assert torch.equal(states[position + 1], tokens[0])

    assert [order for order, _ in shuffled_runs(model, preprocess, images, fabric, seed=3)] == orders
    assert [order for order, _ in shuffled_runs(model, preprocess, images, fabric, seed=4)] != orders


def test_contributions_are_norms():
    start = torch.tensor([3.0, 4.0])
    after_one = torch.tensor([3.0, 16.0])
    after_two = torch.tensor([0.0, 12.0])

    added, before = contributions([start, after_one, after_two])

    assert added == [12, 5]  # the norms of (0, 12) and of (-3, -4)
    assert before == [5, pytest.approx((3**2 + 16**2) ** 0.5)]


def test_what_an_untrained_layer_adds_does_not_depend_on_its_position(fabric):
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", 5, **SMALL | {"embed_dim": 64, "depth": 8})
    preprocess = Preprocess(*model.image_format)
    all_added = []
    all_before = []
    for _, states in shuffled_runs(model, preprocess, Images(40), fabric, seed=0):
        added, before = contributions([model.backbone.summarise(tokens) for tokens in states])
        all_added.append(added)
        all_before.append(before)

    # Means over the images, for each position. What is added doesn't depend on it, but its share of the norm does.
    change = np.mean(all_added, axis=0)
    quotient = np.mean(np.divide(all_added, all_before), axis=0)
    assert change.max() / change.min() < 1.15
    assert quotient.max() / quotient.min() > 2


@pytest.mark.parametrize(
    ("arguments", "summary", "expected"),
    [
        ({}, "class token", lambda tokens: tokens[0]),
        ({"class_token": False, "global_pool": "avg"}, "mean of the patch tokens", lambda tokens: tokens.mean(dim=0)),
        ({"global_pool": "avg"}, "mean of the patch tokens", lambda tokens: tokens[1:].mean(dim=0)),
    ],
)
def test_the_summary_is_what_the_head_reads(small, images, arguments, summary, expected):
    model = small(**arguments)
    with torch.inference_mode():
        tokens = model.run_step(model.embed(images), model.order[0], 0)[0].tokens
    assert model.backbone.summary == summary
    assert torch.allclose(model.backbone.summarise(tokens)[0], expected(tokens[0]))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Trains a small model with these options besides, the same one only once; returns the path of the checkpoint."""

    @functools.cache
    def make(*options, **timm_args):
        folder = tmp_path_factory.mktemp("training")
        arguments = [
            "--model.name=vit_tiny_patch16_224",
            f"--model.timm_args={json.dumps(SMALL | {'embed_dim': 16} | timm_args)}",
            "--data=layershuffle.data.Digits",
            "--data.train_images=128",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            f"--checkpoint.dirpath={folder}",
        ]
        train([*arguments, *options])
        return str(folder / "best.ckpt")

    return make


@pytest.fixture
def trained(trainings, tmp_path, monkeypatch):
    """What ``trainings`` returns, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return trainings


@pytest.fixture
def checkpoint(trained):
    return trained()


@pytest.mark.usefixtures("with_rendering")
def test_contributions_as_typed(checkpoint, tmp_path):
    results = analyse_command([checkpoint, "--study=contributions", "--images=40", "--output=c.json"])
    assert Results.load("c.json") == results
    measured = results.measure(Contributions)
    assert measured.token == "class token"

    by_step = measured.by_step()
    assert sum(len(values) for values in by_step.values()) == 40 * 4  # images, layers
    assert all(min(values) > 0 for values in by_step.values())
    image = 7
    position = 2
    step = Order(measured.orders[image])[position]
    assert measured.added[image][position] in by_step[step, position]

    # All images begin with the same class token. No step can change its norm by more than the norm of what it adds.
    added = np.array(measured.added)
    before = np.array(measured.before)
    assert np.all(before[:, 0] == before[0, 0])
    assert np.all(np.abs(np.diff(before)) <= added[:, :-1] + 1e-3)

    assert (tmp_path / "c.png").stat().st_size > 10_000
    assert len(Contributions.compared([results, results]).axes) == 3


def test_contributions_without_a_class_token(trained):
    results = layershuffle.analyse(trained(class_token=False, global_pool="avg"), study="contributions", images=5)
    assert results.measure(Contributions).token == "mean of the patch tokens"
    (axis, _) = results.measure(Contributions).figure(results).axes
    assert axis.get_ylabel() == "norm of the change of the mean of the patch tokens"


def test_the_images_are_a_random_sample(checkpoint, monkeypatch):
    samples = []

    def watched(model, preprocess, images, fabric, seed):
        samples.append(list(images.indices))
        return shuffled_runs(model, preprocess, images, fabric, seed)

    monkeypatch.setattr(analyse, "shuffled_runs", watched)
    for seed in (0, 0, 1):
        layershuffle.analyse(checkpoint, study="contributions", images=30, seed=seed)
    first, again, other = samples
    assert first == again != other
    assert len(set(first)) == len(set(other)) == 30
    # The largest of 30 out of 359 is below 180 with a probability of 1 in a thousand million.
    assert min(max(first), max(other)) > 180


def results_of(measure, **settings):
    """Results that hold one measure; the settings are those of the evaluation."""
    model = ModelInfo(name="m", config={"name": "vit_tiny_patch16_224", "num_classes": 10})
    return Results(model, DataInfo(name="d", images=2), EvaluationInfo(**settings), Environment(), [], (measure,))


def test_lines_are_drawn_by_the_distance_from_the_original_place():
    measured = Contributions(["0 1 0 1", "1 0 0 1"], "class token", added=[[1, 2, 3, 4], [5, 6, 7, 8]])
    results = results_of(measured, order="0 1 0 1")
    axis, _ = results.measure(Contributions).figure(results).axes

    # The changes by the distance from the original place.
    layer_0, layer_1 = (dict(zip(*line.get_data())) for line in axis.lines[:2])
    # Layer 0 belongs at 0 and 2. It ran there with changes 1, 3 and 7, and at 1 (a tie: later than 0) with 6.
    assert layer_0 == {0: pytest.approx((1 + 3 + 7) / 3), 1: 6}
    # Layer 1 belongs at 1 and 3. It ran there with changes 2, 4 and 8, and at 0 with 5.
    assert layer_1 == {0: pytest.approx((2 + 4 + 8) / 3), -1: 5}
    assert axis.get_ylabel() == "norm of the change of the class token"


def test_older_files_are_drawn_with_the_quotient_that_they_hold():
    results = results_of(Contributions(["0 1", "1 0"], changes=[[1, 2], [3, 4]]))
    axis, _ = results.measure(Contributions).figure(results).axes

    layer_0, layer_1 = (list(line.get_ydata()) for line in axis.lines[:2])
    assert layer_0 == [1, 4]  # at its original place and one later
    assert layer_1 == [3, 2]  # one earlier and at its original place
    assert axis.get_ylabel() == "norm of the change of the class token, over its norm"


@pytest.mark.parametrize(
    ("order", "default", "layer", "steps"),
    [("cycle(6)", 2, 1, ["1"]), ("0 2", 2, 0, ["0"]), ("0 (1|2) 3a 1a 3f", 2, 1, ["(1|2)", "1a"])],
)
def test_representations_of_every_visit(trained, monkeypatch, order, default, layer, steps):
    monkeypatch.setattr(analyse, "project", lambda outputs, seed: torch.rand(len(outputs), 2))
    checkpoint = trained(f"--model.order={order}")

    results = layershuffle.analyse(checkpoint, images=20, layer=layer)

    measured = results.measure(Representations)
    visits = []
    for order_of_image in measured.orders:
        visits += [position for position, step in enumerate(order_of_image.split()) if step in steps]
    assert measured.positions == visits
    assert len(measured.plane) == len(visits) >= 20

    of_default_layer = layershuffle.analyse(checkpoint, images=3).measure(Representations)
    assert of_default_layer.layer == default


@pytest.mark.slow
@pytest.mark.usefixtures("with_rendering")
def test_representations_as_typed(checkpoint, tmp_path):
    pytest.importorskip("umap")
    arguments = [checkpoint, "--layer=1", "--images=30"]
    results = analyse_command([*arguments, "--output=r.json"])
    measured = results.measure(Representations)
    assert len(measured.plane) == len(measured.positions) == 30
    assert measured.positions == [order.split().index("1") for order in measured.orders]
    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_a_layer_that_the_order_leaves_out(trained, capsys):
    checkpoint = trained("--model.order=0 2")
    error = fails(capsys, analyse_command, checkpoint, "--layer=1")
    assert "layer 1" in error
    assert error.endswith("0 2")


def test_analyses_that_cannot_be(checkpoint, monkeypatch):
    with pytest.raises(ValueError, match="layer 9.* 0 1 2 3$"):
        analyse_command([checkpoint, "--layer=9"])
    with pytest.raises(ValueError, match="images can't be 1.*3"):
        analyse_command([checkpoint, "--images=1"])
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"pip install 'layershuffle\[umap\]'"):
        project(torch.randn(5, 4), 0)
