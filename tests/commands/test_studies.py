"""The command lines that study a model: searching an order, similarities, the depth curve, and the other protocols."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
from helpers import ROOT, fails, train
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


def fit(folder, *options):
    """A six-layer model that was trained for an epoch on the digits."""
    names = ("model/mini_digits", "data/digits", "method/baseline", "trainer/cpu", "optimizer/mini")
    args = [*(f"--config={ROOT}/configs/{name}.yaml" for name in names), "--trainer.enable_progress_bar=false"]
    args += ["--trainer.max_epochs=1", "--trainer.logger=false", f"--checkpoint.dirpath={folder}"]
    train([*args, "--model.depth=6", "--data.train_images=640", *options])
    return str(folder / "best.ckpt")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return fit(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


FEW = "--data.test_images=60"


@pytest.mark.usefixtures("with_rendering")
def test_orders_of_ones_own_and_the_landscape_are_drawn_and_fit_the_terminal(plain, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    evaluate_command([plain, FEW, "--order", "skip(2)", "sublayers", "(0|1|2|3|4|5)*3 0 1 2 3 4 5", "--output=o.json"])
    text = capsys.readouterr().out
    scores = {score.order: score for score in Results.load("o.json").scores}
    assert len(scores) == 4
    for score in scores.values():
        assert f"{100 * score.top1:.2f}" in text
    assert max(map(len, text.splitlines())) <= 80 or "plot:" in max(text.splitlines(), key=len)
    evaluate_command([plain, FEW, "--protocols=landscape", "--output=l.json"])
    for path, count in (("o.png", 4), ("l.png", 2**6 - 1)):
        assert len(Results.load(Path(path).with_suffix(".json")).scores) == count
        assert plt.imread(path)[:, :, :3].std() > 0.05


def test_one_command_sweeps_the_painters_and_draws_them(plain, capsys):
    protocols = ["sequential", "painters", "ablations", "swaps", "swap-matrix", "sublayers"]
    results = evaluate_command(
        [plain, FEW, "--random_orders=2", "--loops", "2", "--protocols", *protocols, "--output=o.json"]
    )
    assert Results.load("o.json") == results
    drawn = ["o.png", "o.layers.png", "o.swap-matrix.png", "o.sublayers.png", "o.confusion.png"]
    assert sorted(str(path) for path in Path().glob("*.png")) == sorted(drawn)
    text = capsys.readouterr().out
    for words in ("middle-repeat", "looped-parallel 2x", "left out", "swapped with"):
        assert words in text
    scores = {(s.protocol, *s.variant.values()): s for s in results.scores}
    # In the middle of one layer, repeated or reversed, nothing changes.
    full = scores["sequential",]
    assert scores["painters", 1, "reverse"].top1 == scores["swap-matrix", 2, 2].top1 == full.top1
    assert scores["painters", 5, "skip"].order == "0"
    assert scores["swaps", 3].loss == scores["swap-matrix", 3, 4].loss


def test_named_orders_on_the_command_line(plain):
    results = evaluate_command([plain, FEW, "--order", "skip(1)", "sandwich(2)", "5 4"])
    expected = ["0 1 5", "0a 1a 2a 0f 3a 1f 4a 2f 5a 3f 4f 5f", "5 4"]
    assert [score.order for score in results.scores][1:] == expected


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
    assert probe.images[2] == results.data.images == 359
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
    # The test images choose nothing.
    for options in (["--split=val"], ["--data.val_fraction=0"]):
        fails(capsys, linear_probe_command, plain, *options)


def test_timm_names_take_images_of_another_size(tmp_path, monkeypatch, caplog, capsys, plain):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    options = ["--pretrained=random", "--img_size=32", "--accelerator=cpu", "--data=Digits", "--data.train_images=60"]
    results = linear_probe_command(["vit_tiny_patch16_224", *options])
    assert results.model.config["img_size"] == 32
    assert "input: 32 x 32 pixels, 3 channels, 2 x 2 patches" in caplog.messages
    assert sum("computing the features of" in text for text in caplog.messages) == 3
    assert sum("resized as timm does" in text for text in caplog.messages) == 1
    (warning,) = [text for text in caplog.messages if "partly chance" in text]
    assert "penalty" in warning
    assert "--data.val_fraction" in warning
    assert "--fraction" not in warning
    fails(capsys, linear_probe_command, plain, "--img_size=32")


def test_a_linear_probe_needs_no_classifier(tmp_path):
    """A model of 500 classes, and weights without a classifier, on data of 10."""
    few = Digits(train_images=300, test_images=100)
    loaded = load("mini_glyphs")
    results = linear_probe(loaded, few)
    assert (results.model.num_classes, loaded.info.num_classes) == (10, 500)

    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    torch.save(weights, tmp_path / "backbone.pth")
    backbone = load("vit_tiny_patch16_224", str(tmp_path / "backbone.pth"), num_classes=10)
    assert (backbone.model.depth, backbone.info.num_classes) == (12, 10)


def test_a_linear_probe_is_written_as_a_model_that_runs_in_any_order(tmp_path, capsys):
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).state_dict()
    torch.save(weights, "backbone.pth")
    few = ["--data.train_images=100", "--data.test_images=40", "--accelerator=cpu"]
    backbone = ["--pretrained=backbone.pth", "--img_size=32", *few]
    results = linear_probe_command(["vit_tiny_patch16_224", "digits", *backbone, "--folder=probe"])
    assert "probe" in capsys.readouterr().out.splitlines()[-1]

    # The folder knows its data, with timm's way of resizing, and the classifier reads the features as they are.
    evaluation = evaluate_command(
        ["probe", "--protocols=sequential", "--order=11 10 9 8 7 6 5 4 3 2 1 0", "--accelerator=cpu"]
    )
    assert evaluation.scores[0].top1 == results.measure(LinearProbe).linear.test
    assert evaluation.scores[1].order == "11 10 9 8 7 6 5 4 3 2 1 0"
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
    model.classifier = linear
    assert torch.allclose(probed(images).logits, model(images).logits, atol=1e-5)
    assert probed.config["num_classes"] == 3
    assert model.vit.head.out_features == 5


def test_a_disk_that_is_full_leaves_the_results_of_a_probe(monkeypatch, capsys, tmp_path):
    def full(*_, **__):
        (tmp_path / "probe").mkdir()
        raise UserError("probe could not be written: No space left on device")

    monkeypatch.setattr("layershuffle.api.linear_probe.export", full)
    few = ["--data.train_images=100", "--data.test_images=20", "--accelerator=cpu"]
    fails(capsys, linear_probe_command, "mini_glyphs", "digits", *few, "--output=r.json", "--folder=probe")
    assert Results.load("r.json").measure(LinearProbe)
    assert not (tmp_path / "probe").exists()


def test_similarities_token_by_token(small, images):
    model = small(order="0 2 1 1")
    found = cosine_similarities(
        model, nn.Identity(), DataLoader(list(zip(images, range(3))), 2), Fabric(accelerator="cpu", devices=1)
    )
    with torch.no_grad():
        state, states = model.embed(images), []
        for position, step in enumerate(Order("0 2 1 1")):
            state, _ = model.run_step(state, step, position)
            states.append(state.tokens)
    for i in range(4):
        for j in range(4):
            cosines = [
                float(states[i][b, t] @ states[j][b, t] / states[i][b, t].norm() / states[j][b, t].norm())
                for b in range(3)
                for t in range(states[0].shape[1])
            ]
            assert float(found[i, j]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)


def test_depth_command_scores_and_times_every_depth(plain, capsys):
    results = depth_command([plain, FEW, "--random_orders=2", "--repeats=1", "--output=d.json"])
    assert list(results.measure(SecondsPerImage).seconds) == [1, 2, 3, 4, 5, 6]
    assert all(seconds > 0 for seconds in results.measure(SecondsPerImage).seconds.values())
    pruned = [s for s in results.scores if s.protocol == "pruned"]
    assert {s.variant["kept"] for s in pruned} == set(range(1, 7))
    assert {s.variant["strategy"] for s in pruned} == {"first", "even", "random"}
    assert all([int(layer) for layer in s.order.split()] == sorted(map(int, s.order.split())) for s in pruned)
    assert [path.name for path in Path().glob("*.png")] == ["d.png"]
    exits = results.measure(EarlyExits).exits
    said = capsys.readouterr()
    assert Results.load("d.json") == results
    assert "threshold for early exit" in said.err
    for f in exits:
        assert f"{f.threshold} {f.layers:.2f} {100 * f.top1:.2f}" in " ".join(said.out.split())
    # If no image is ever sure enough, all run the base order.
    assert {f.top1 for f in exits if f.layers == 6} == {results.of("sequential")[0].top1}
    (setup,), _ = collect(read_files(Path()))
    picture = next(s for s in sections([setup], []) if s.title.startswith("Other orders")).parts[0]
    assert f"probability above 0.5, {exits[5].layers:.2f} layers" in [row[1] for row in picture.data.rows]


def test_times_are_of_the_orders_asked_for(small, images):
    ran = []
    model = small()
    for at, block in enumerate(model.vit.blocks):
        block.register_forward_hook(lambda *_, at=at: ran.append(at))
    assert len(seconds_per_image(model, images, [Order("0"), Order("2 1")], repeats=2)) == 2
    assert ran == [0, 2, 1] * 3


@pytest.mark.parametrize("strategy", ["greedy", "climb", "well-trained"])
def test_search_command(plain, strategy):
    start = ["--start=reverse(0)", "--rounds=2"] if strategy == "climb" else []
    results = search_command([plain, f"--strategy={strategy}", "--fraction=0.25", "--output=s.json", *start])
    own, found, *others = results.scores
    assert own.protocol == "sequential"
    assert found.variant == {"strategy": strategy}
    assert sorted(Order(found.order)) == list(Order(range(6)))
    assert results.data.split == "val"
    # 64 validation images: searched on 16, reported on the other 48.
    assert results.measure(Search).images == 16
    assert {score.images for score in results.scores} == {48}
    trace = results.measure(Search).trace or []
    if strategy == "greedy":
        assert [len(step.order.split()) for step in trace] == list(range(1, 7))
        assert trace[-1].order == found.order
        assert others[0].order == min(trace, key=lambda step: step.loss).order
    if strategy == "climb":
        assert trace[0].order == others[0].order == "0 5 4 3 2 1"
        assert len(trace) == 3
    assert Path("s.png").exists()


def test_shared_layers_from_training_to_results(tmp_path):
    options = [
        f"--config={ROOT}/configs/method/sharing_cycle_rev.yaml",
        "--model.depth=2",
        "--model.order=cycle-rev(4)",
    ]
    checkpoint = fit(tmp_path, *options, "--model.position=predict")
    results = evaluate_command(
        [checkpoint, FEW, "--random_orders=2", "--protocols", "sequential", "arbitrary", "ablations"]
    )
    assert results.label == "baseline-predict on cycle-rev(4)"
    assert results.scores[0].order == "0 1 1 0"
    assert all(sorted(s.order.split()) == list("0011") for s in results.scores[2:4])
    assert results.scores[0].position_accuracy is not None
    shuffled = fit(tmp_path / "again", *options[1:], "--model.sampler=Shuffle", f"--model.pretrained={checkpoint}")
    assert evaluate_command([shuffled, FEW, "--protocols=sequential"]).label == "layershuffle on cycle-rev(4)"


def test_a_reduced_depth_from_training_to_results(tmp_path, capsys):
    """Layers that were never trained run only in orders that name them."""
    options = [f"--config={ROOT}/configs/method/reduced_depth.yaml", "--model.sampler.init_args.k=2"]
    checkpoint = fit(tmp_path, *options, "--model.position=predict")
    every_layer = "0 1 2 3 4 5"
    protocols = ["--protocols", "sequential", "arbitrary", "pruned"]
    results = evaluate_command([checkpoint, FEW, "--random_orders=2", "--order", every_layer, *protocols])
    line = "the model was trained with 2 of its 6 layers, so all layers means those of its base order: 0 1"
    assert line in capsys.readouterr().err
    assert results.label == "reduced-depth-2-predict"
    assert results.model.config["order"] == "0 1"
    orders = {score.order for score in results.scores if score.protocol != "given"}
    assert orders == {None, "0 1", "1 0", "0", "1"}
    sequential, *_, given = results.scores
    assert (sequential.order, given.order) == ("0 1", every_layer)
    export_command([checkpoint, "exported"])
    assert "runs the layers of the trained model in the order 0 1" in Path("exported/README.md").read_text()
    (exported,) = evaluate_command(["exported", FEW, "--protocols=sequential", "--output=e.json"]).scores
    assert exported == sequential
    changes = analyse_command([checkpoint, FEW, "--study=contributions", "--images=5"]).measure(Contributions)
    assert {*changes.orders} <= {"0 1", "1 0"}


def test_instancewise_from_training_to_results(tmp_path):
    choices = ["--model.objective=InstanceWise", "--model.choices=[sequential, reverse(0), 0 2 1 3 4 5]"]
    checkpoint = fit(tmp_path, *choices, "--data.train_images=320")
    args = ["--protocols", "sequential", "instancewise", "--output=i.json"]
    results = evaluate_command([checkpoint, FEW, *args])
    assert results.label == "instancewise"
    shares = [score.chosen for score in results.scores if score.protocol == "instancewise"]
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
