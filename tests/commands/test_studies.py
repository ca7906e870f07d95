"""The command lines that study a model: searching an order, similarities, the depth curve, and the other protocols."""

import itertools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
from helpers import DIGITS, QUIET, configs, fails, train
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from layershuffle.api.linear_probe import linear_probe, write_linear_probe
from layershuffle.checkpoints.loading import load
from layershuffle.commands.analyse import analyse_command
from layershuffle.commands.depth import depth_command
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.export import export_command
from layershuffle.commands.linear_probe import linear_probe_command
from layershuffle.commands.search import search_command
from layershuffle.commands.similarity import similarity_command
from layershuffle.data import Digits
from layershuffle.errors import UserError
from layershuffle.evaluation.activations import cosine_similarities, seconds_per_image
from layershuffle.files import sha256
from layershuffle.models.fitting import with_linear_classifier
from layershuffle.orders.order import Order
from layershuffle.report.collect import collect, read_files
from layershuffle.report.sections import sections
from layershuffle.results import Results
from layershuffle.results.measures import Contributions, Cosine, EarlyExits, LinearProbe, Search, SecondsPerImage

FEW = "--data.test_images=60"


def fit(folder, *options):
    """Train a six-layer model on the digits for an epoch; returns the path of its checkpoint."""
    run = ["--trainer.max_epochs=1", "--trainer.logger=false", f"--checkpoint.dirpath={folder}"]
    small = ["--model.depth=6", "--data.train_images=640"]
    train([*DIGITS, *configs("method/baseline"), *QUIET, *run, *small, *options])
    return str(folder / "best.ckpt")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The checkpoint of a six-layer model that was trained in sequential order. No test may change it."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return fit(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("with_rendering")
def test_orders_of_ones_own_and_the_landscape_are_drawn_and_fit_the_terminal(plain, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    # The last of these orders is wider than any table.
    orders = ["skip(2)", "sublayers", "(0|1|2|3|4|5)*3 0 1 2 3 4 5"]
    evaluate_command([plain, FEW, "--order", *orders, "--output=orders.json"])
    text = capsys.readouterr().out
    scores = {score.order: score for score in Results.load("orders.json").scores}
    assert len(scores) == 4  # beside these three, that in sequential order
    for score in scores.values():
        assert f"{100 * score.top1:.2f}" in text
    longest = max(text.splitlines(), key=len)
    assert len(longest) <= 80 or "plot:" in longest

    evaluate_command([plain, FEW, "--protocols=landscape", "--output=landscape.json"])
    # The landscape has every choice of layers, but for that of none.
    for name, count in (("orders", 4), ("landscape", 2**6 - 1)):
        assert len(Results.load(f"{name}.json").scores) == count
        colours = plt.imread(f"{name}.png")[:, :, :3]
        assert colours.std() > 0.05  # something is drawn


def test_one_command_sweeps_the_painters_and_draws_them(plain, capsys):
    protocols = ["sequential", "painters", "ablations", "swaps", "swap-matrix", "sublayers"]
    options = ["--random_orders=2", "--loops", "2", "--output=o.json"]
    results = evaluate_command([plain, FEW, "--protocols", *protocols, *options])
    assert Results.load("o.json") == results
    drawn = {"o.png", "o.layers.png", "o.swap-matrix.png", "o.sublayers.png", "o.confusion.png"}
    assert {path.name for path in Path().glob("*.png")} == drawn
    text = capsys.readouterr().out
    for words in ("middle-repeat", "looped-parallel 2x", "left out", "swapped with"):
        assert words in text

    scores = {(score.protocol, *score.variant.values()): score for score in results.scores}
    # Neither a middle of one layer that is reversed nor a layer that is swapped with itself changes anything.
    unchanged = scores["sequential",].top1
    assert scores["painters", 1, "reverse"].top1 == unchanged
    assert scores["swap-matrix", 2, 2].top1 == unchanged
    assert scores["painters", 5, "skip"].order == "0"
    # Layer 3 is swapped with the next in both protocols.
    assert scores["swaps", 3].loss == scores["swap-matrix", 3, 4].loss


def test_named_orders_on_the_command_line(plain):
    results = evaluate_command([plain, FEW, "--order", "skip(1)", "sandwich(2)", "5 4"])
    _, *named = results.scores  # the first is that in sequential order
    assert [score.order for score in named] == ["0 1 5", "0a 1a 2a 0f 3a 1f 4a 2f 5a 3f 4f 5f", "5 4"]


def test_similarity_command(plain):
    results = similarity_command([plain, FEW])
    matrix = np.array(results.measure(Cosine).matrix)
    assert matrix.shape == (6, 6)
    assert np.allclose(matrix, matrix.T)
    assert np.allclose(np.diag(matrix), 1)
    assert Results.load(Path(plain).with_name("best.similarity.json")) == results


def test_linear_probe_command(plain, capsys, caplog):
    caplog.set_level("INFO")
    results = linear_probe_command([plain])
    probe = results.measure(LinearProbe)
    _, _, test_images = probe.images
    assert test_images == results.data.images == 359
    # The model had one epoch, but its features are better than chance, which is 0.1.
    assert min(probe.linear.test, probe.nearest.test) > 0.15
    said = capsys.readouterr().out
    assert f"{100 * probe.linear.test:.2f} ± " in said
    assert "chance 10.00%" in said
    assert f"most frequent class {100 * probe.most_frequent:.2f}%" in said
    assert 0.1 <= probe.most_frequent < 0.2
    # The data are described as in training, and their classes differ in size, so that the balanced accuracy is shown.
    assert any("359 test images" in " ".join(text.split()) for text in caplog.messages)
    assert f"{100 * probe.linear.balanced:.2f}" in said
    assert Results.load(Path(plain).with_name("best.linear_probe.json")) == results

    # The validation images choose the penalty, and are neither used for the result nor replaced by the test images.
    fails(capsys, linear_probe_command, plain, "--split=val")
    fails(capsys, linear_probe_command, plain, "--data.val_fraction=0")


def test_timm_names_take_images_of_another_size(tmp_path, monkeypatch, caplog, capsys, plain):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    options = ["--pretrained=random", "--img_size=32", "--accelerator=cpu", "--data=Digits", "--data.train_images=60"]
    results = linear_probe_command(["vit_tiny_patch16_224", *options])
    assert results.model.config["img_size"] == 32
    assert "input: 32 x 32 pixels, 3 channels, a grid of 2 x 2 patches" in caplog.messages
    # Once for the training, validation and test images each.
    assert sum("computing the features of" in text for text in caplog.messages) == 3
    assert sum("resized as timm does" in text for text in caplog.messages) == 1
    # So few validation images choose the penalty by chance.
    (warning,) = [text for text in caplog.messages if "partly chance" in text]
    assert "penalty" in warning
    assert "--data.val_fraction" in warning
    assert "--fraction" not in warning

    # The size of a model that was trained here is fixed.
    fails(capsys, linear_probe_command, plain, "--img_size=32")


def test_a_linear_probe_needs_no_classifier(tmp_path):
    """A model of 500 classes, and weights without a classifier, on data of 10."""
    few = Digits(train_images=300, test_images=100)
    loaded = load("mini_glyphs")
    results = linear_probe(loaded, few)
    assert results.model.num_classes == 10
    assert loaded.info.num_classes == 500

    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    torch.save(weights, tmp_path / "backbone.pth")
    backbone = load("vit_tiny_patch16_224", str(tmp_path / "backbone.pth"), num_classes=10)
    assert backbone.model.depth == 12
    assert backbone.info.num_classes == 10


def test_a_linear_probe_is_written_as_a_model_that_runs_in_any_order(tmp_path, capsys):
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).state_dict()
    torch.save(weights, "backbone.pth")
    few = ["--data.train_images=100", "--data.test_images=40", "--accelerator=cpu"]
    backbone = ["--pretrained=backbone.pth", "--img_size=32", *few]
    results = linear_probe_command(["vit_tiny_patch16_224", "digits", *backbone, "--folder=probe"])
    assert "probe" in capsys.readouterr().out.splitlines()[-1]

    # The folder knows its data, with timm's way of resizing, and the classifier reads the features as they are.
    backwards = "11 10 9 8 7 6 5 4 3 2 1 0"
    evaluation = evaluate_command(["probe", "--protocols=sequential", f"--order={backwards}", "--accelerator=cpu"])
    in_sequence, in_given_order = evaluation.scores
    assert in_sequence.top1 == results.measure(LinearProbe).linear.test
    assert in_given_order.order == backwards
    assert evaluation.data.args["interpolation"] == "bicubic"
    assert evaluation.label == "linear-probe"
    probe = load("probe")
    assert probe.info.sha256 == sha256(tmp_path / "probe" / "model.safetensors")
    for name, value in weights.items():
        assert torch.equal(probe.model.vit.state_dict()[name], value)

    # What is there already isn't touched.
    fails(capsys, linear_probe_command, "vit_tiny_patch16_224", "digits", *backbone, "--folder=probe")
    with pytest.raises(UserError, match="already"):
        write_linear_probe(probe, tmp_path / "probe")
    assert load("probe").info == probe.info


@pytest.mark.parametrize("head", ["average", "class"])
def test_both_classifiers_of_a_distilled_model_become_the_linear_one(small, images, head):
    model = small("deit_tiny_distilled_patch16_224", num_classes=5, head=head)
    linear = nn.Linear(32, 3)
    probed = with_linear_classifier(model, linear)
    assert model.vit.head.out_features == 5  # it is a copy that was changed

    model.classifier = linear
    assert torch.allclose(probed(images).logits, model(images).logits, atol=1e-5)
    assert probed.config["num_classes"] == 3


def test_a_disk_that_is_full_leaves_the_results_of_a_probe(monkeypatch, capsys, tmp_path):
    def export_to_full_disk(*_, **__):
        (tmp_path / "probe").mkdir()
        raise UserError("probe could not be written: No space left on device")

    monkeypatch.setattr("layershuffle.api.linear_probe.export", export_to_full_disk)
    few = ["--data.train_images=100", "--data.test_images=20", "--accelerator=cpu"]
    fails(capsys, linear_probe_command, "mini_glyphs", "digits", *few, "--output=r.json", "--folder=probe")
    assert Results.load("r.json").measure(LinearProbe)
    assert not (tmp_path / "probe").exists()


def test_similarities_token_by_token(small, images):
    """The tokens after each step are compared by hand, image by image and token by token."""
    model = small(order="0 2 1 1")
    loader = DataLoader(list(zip(images, range(3))), batch_size=2)
    similarities = cosine_similarities(model, nn.Identity(), loader, Fabric(accelerator="cpu", devices=1))

    tokens_after = []
    with torch.no_grad():
        state = model.embed(images)
        for position, step in enumerate(Order("0 2 1 1")):
            state, _ = model.run_step(state, step, position)
            tokens_after.append(state.tokens)
    for first, second in itertools.product(range(4), range(4)):
        cosines = []
        for image in range(3):
            for one, other in zip(tokens_after[first][image], tokens_after[second][image], strict=True):
                cosines.append(float(one @ other / one.norm() / other.norm()))
        assert float(similarities[first, second]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


def test_depth_command_scores_and_times_every_depth(plain, capsys):
    results = depth_command([plain, FEW, "--random_orders=2", "--repeats=1", "--output=d.json"])
    assert Results.load("d.json") == results
    assert [path.name for path in Path().glob("*.png")] == ["d.png"]
    seconds = results.measure(SecondsPerImage).seconds
    assert list(seconds) == [1, 2, 3, 4, 5, 6]
    assert min(seconds.values()) > 0

    pruned = results.of("pruned")
    assert {score.variant["kept"] for score in pruned} == {1, 2, 3, 4, 5, 6}
    assert {score.variant["strategy"] for score in pruned} == {"first", "even", "random"}
    for score in pruned:
        layers = [int(layer) for layer in score.order.split()]
        assert layers == sorted(layers)

    exits = results.measure(EarlyExits).exits
    said = capsys.readouterr()
    assert "threshold for early exit" in said.err
    printed = " ".join(said.out.split())
    for early in exits:
        assert f"{early.threshold} {early.layers:.2f} {100 * early.top1:.2f}" in printed
    # If no image is ever sure enough, all run the base order.
    (sequential,) = results.of("sequential")
    assert {early.top1 for early in exits if early.layers == 6} == {sequential.top1}

    (setup,), _ = collect(read_files(Path()))
    other_orders = next(section for section in sections([setup], []) if section.title.startswith("Other orders"))
    variants = [row[1] for row in other_orders.parts[0].data.rows]
    assert f"probability above 0.5, {exits[5].layers:.2f} layers" in variants


def test_times_are_of_the_orders_asked_for(small, images):
    model = small()
    layers_run = []
    for layer, block in enumerate(model.vit.blocks):
        block.register_forward_hook(lambda *_, layer=layer: layers_run.append(layer))
    seconds = seconds_per_image(model, images, [Order("0"), Order("2 1")], repeats=2)
    assert len(seconds) == 2
    # Each order runs once to warm up, and is then timed twice.
    assert layers_run == [0, 2, 1] * 3


@pytest.mark.parametrize("strategy", ["greedy", "climb", "well-trained"])
def test_search_command(plain, strategy):
    options = []
    if strategy == "climb":
        options = ["--start=reverse(0)", "--rounds=2"]
    results = search_command([plain, f"--strategy={strategy}", "--fraction=0.25", "--output=s.json", *options])
    assert Path("s.png").exists()
    sequential, found, *others = results.scores
    assert sequential.protocol == "sequential"
    assert found.variant == {"strategy": strategy}
    assert sorted(Order(found.order)) == list(Order(range(6)))  # every layer once
    # 64 validation images: searched on 16, reported on the other 48.
    assert results.data.split == "val"
    assert results.measure(Search).images == 16
    assert {score.images for score in results.scores} == {48}

    trace = results.measure(Search).trace
    if strategy == "greedy":
        # Each step adds a layer. Beside the order of all layers, the best one on the way is scored.
        assert [len(step.order.split()) for step in trace] == [1, 2, 3, 4, 5, 6]
        assert trace[-1].order == found.order
        assert others[0].order == min(trace, key=lambda step: step.loss).order
    if strategy == "climb":
        # The start and two rounds. Beside the order that was found, the start is scored.
        assert len(trace) == 3
        assert trace[0].order == "0 5 4 3 2 1"
        assert others[0].order == "0 5 4 3 2 1"


def test_shared_layers_from_training_to_results(tmp_path):
    shared = ["--model.depth=2", "--model.order=cycle-rev(4)"]
    checkpoint = fit(tmp_path, *configs("method/sharing_cycle_rev"), *shared, "--model.position=predict")
    protocols = ["--protocols", "sequential", "arbitrary", "ablations"]
    results = evaluate_command([checkpoint, FEW, "--random_orders=2", *protocols])
    assert results.label == "baseline-predict on cycle-rev(4)"
    (sequential,) = results.of("sequential")
    assert sequential.order == "0 1 1 0"
    assert sequential.position_accuracy is not None
    drawn = [score.order.split() for score in results.of("arbitrary", reading="fixed")]
    assert [sorted(layers) for layers in drawn] == [["0", "0", "1", "1"]] * 2

    shuffled = fit(tmp_path / "again", *shared, "--model.sampler=Shuffle", f"--model.pretrained={checkpoint}")
    results = evaluate_command([shuffled, FEW, "--protocols=sequential"])
    assert results.label == "layershuffle on cycle-rev(4)"


def test_a_reduced_depth_from_training_to_results(tmp_path, capsys):
    """Layers that were never trained run only in orders that name them."""
    two_layers = [*configs("method/reduced_depth"), "--model.sampler.init_args.k=2"]
    checkpoint = fit(tmp_path, *two_layers, "--model.position=predict")
    every_layer = "0 1 2 3 4 5"
    protocols = ["--protocols", "sequential", "arbitrary", "pruned"]
    results = evaluate_command([checkpoint, FEW, "--random_orders=2", "--order", every_layer, *protocols])
    line = "the model was trained with 2 of its 6 layers, so all layers means those of its base order: 0 1"
    assert line in capsys.readouterr().err
    assert results.label == "reduced-depth-2-predict"
    assert results.model.config["order"] == "0 1"
    orders = {score.order for score in results.scores if score.protocol != "given"}
    assert orders == {None, "0 1", "1 0", "0", "1"}  # None is a new order in every batch
    (sequential,) = results.of("sequential")
    (given,) = results.of("given")
    assert sequential.order == "0 1"
    assert given.order == every_layer

    export_command([checkpoint, "exported"])
    assert "runs the layers of the trained model in the order 0 1" in Path("exported/README.md").read_text()
    (exported,) = evaluate_command(["exported", FEW, "--protocols=sequential", "--output=e.json"]).scores
    assert exported == sequential

    contributions = analyse_command([checkpoint, FEW, "--study=contributions", "--images=5"]).measure(Contributions)
    assert set(contributions.orders) <= {"0 1", "1 0"}


def test_instancewise_from_training_to_results(tmp_path):
    choices = ["--model.objective=InstanceWise", "--model.choices=[sequential, reverse(0), 0 2 1 3 4 5]"]
    checkpoint = fit(tmp_path, *choices, "--data.train_images=320")
    results = evaluate_command([checkpoint, FEW, "--protocols", "sequential", "instancewise", "--output=i.json"])
    assert results.label == "instancewise"
    shares = [score.chosen for score in results.of("instancewise")]
    # The first two scores are those of each image in the order it chooses, and in the order that suits it best. Then
    # come the three orders, with the share of the images that chose each.
    assert shares[:2] == [None, None]
    assert sum(shares[2:]) == pytest.approx(1)
    assert Results.load("i.json") == results
    assert Path("i.png").exists()


@pytest.mark.parametrize(
    ("command", "args", "complaint"),
    [
        (evaluate_command, ["--protocols=painters", "--ends", "3"], "choose n from 0 to 2"),
        (evaluate_command, ["--protocols=painters", "--loops", "0"], "once or more, not 0 times"),
        (evaluate_command, ["--protocols=instancewise"], "model.choices"),
        (evaluate_command, ["--order", "5 4", "5 3", "5 4"], "'5 4'"),
        (evaluate_command, ["--order", "sandwich(7)"], "choose from 0 to 6"),
        (evaluate_command, ["--order", "sandwitch(3)"], "sandwitch"),
        (search_command, ["--fraction=0"], "leaves none for one"),
        (search_command, ["--fraction=1"], "leaves none for one"),
        (search_command, ["--data.train_images=10"], "0.5 of 1 leaves none for one"),
        (search_command, ["--strategy=luck"], "luck"),
        (search_command, ["--start=1 0"], "greedy has no use"),
        (search_command, ["--strategy=climb", "--start=9"], "layer 9"),
        (depth_command, ["--repeats=0"], "--repeats"),
        (similarity_command, ["--split=all"], "all"),
    ],
)
def test_studies_say_what_is_wrong(capsys, plain, command, args, complaint):
    assert complaint in fails(capsys, command, plain, *args)
    assert not list(Path().glob("*.json"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model.order=sequence(7)"], "multiple of 6"),
        (["--model.order=cycle(3)"], "3 visits"),
        (["--model.order=sandwich(9)"], "k = 9"),
        (["--model.depth=0"], "a model has one layer or more, not 0"),
        (["--model.objective=InstanceWise", "--model.objective.temperature=0"], "temperatures above 0"),
        (["--model.choices=[]"], "nothing to choose from"),
        (["--model.choices=['swap(0,1)', sequential, 'swap(0,1)']"], "given more than once"),
    ],
)
def test_models_that_cannot_be_trained_say_why(capsys, tmp_path, options, complaint):
    assert complaint in fails(capsys, lambda args: fit(tmp_path, *args), *options)
