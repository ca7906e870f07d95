"""The command that finds which layers to keep."""

import re
import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import timm
import torch
import yaml
from helpers import QUIET, fails, train

import layershuffle
from layershuffle.api.depth import seconds_by_depth
from layershuffle.api.study import start_study
from layershuffle.checkpoints.loading import load
from layershuffle.commands.prune import prune_command
from layershuffle.errors import UserError
from layershuffle.orders.order import Order
from layershuffle.results import Results
from layershuffle.results.measures import Grouping, Pruning

FEW = ["--repeats=1", "--data.train_images=600"]
"""Times each order once, and searches on half of 60 validation images."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("with_rendering")
def test_what_is_kept_is_scored_timed_exported_and_refined(shuffled_digits, capsys, images):
    results = prune_command([shuffled_digits, *FEW, "--keep=2", "--output=p.json", "--export=out"]).results
    said = capsys.readouterr().out
    assert Results.load("p.json") == results
    assert results.data.images == 30
    pruning = results.measure(Pruning)
    assert pruning.images == 30
    # Layers are left out one after the other, and then those that are kept are put into another sequence.
    all_layers, *thinned = [score for score in results.of("prune") if "sequence" not in score.variant]
    assert all_layers.order == "0 1 2 3 4"
    assert [len(Order(score.order)) for score in thinned] == [4, 3, 2]
    chosen = Order(pruning.chosen)
    assert f"chosen: {chosen}" in said
    assert sorted(chosen) == list(Order(thinned[-1].order))
    for kept, milliseconds in pruning.milliseconds.items():
        if int(kept) >= 2:
            assert f" {milliseconds:#.3g} " in said
    colours = plt.imread("p.png")[:, :, :3]
    assert colours.std() > 0.05  # something is drawn

    # The export: a plain model of two layers, its score on the images that weren't searched on, a config to refine it.
    plain = timm.create_model("local-dir:out", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(plain(images), load(shuffled_digits).model.eval()(images, chosen).logits)
    (score,) = [score for score in results.of("prune") if score.order == str(chosen)]
    card = Path("out/README.md").read_text()
    assert re.search(rf"\| given, {chosen} \| 1 \| {100 * score.top1:.2f}", card)
    assert "Digits, 30 images (val)" in card
    (command,) = re.findall("refine it with: layershuffle train (.*)", said)
    train([*command.split(), *QUIET, "--trainer.logger=false", "--checkpoint.dirpath=refined"])
    assert load("refined/best.ckpt").model.depth == 2
    assert yaml.safe_load(Path("out/refine.yaml").read_text())["model"]["pretrained"] == "out/model.safetensors"


def test_times_never_fall_with_more_layers(shuffled_digits, monkeypatch):
    study = start_study(shuffled_digits, None, split="val", accelerator="cpu")
    monkeypatch.setattr("layershuffle.api.depth.seconds_per_image", lambda *_: [1.0, 3.0, 2.0, 5.0, 4.0])
    assert seconds_by_depth(study, repeats=1) == {1: 1.0, 2: 2.0, 3: 2.0, 4: 4.0, 5: 4.0}


def test_without_a_budget_of_time_the_search_comes_first_and_only_what_is_shown_is_timed(shuffled_digits, monkeypatch):
    calls = []

    def noted_search(order, *_):
        calls.append("search")
        return [(order, 0.0)]

    def noted_timing(*args):
        calls.append("time")
        return seconds_by_depth(*args)

    monkeypatch.setattr("layershuffle.api.prune.climb", noted_search)
    monkeypatch.setattr("layershuffle.api.prune.seconds_by_depth", noted_timing)
    pruned = layershuffle.prune(shuffled_digits, keep=4, repeats=1)
    assert calls == ["search", "time"]
    assert list(pruned.results.measure(Pruning).milliseconds) == [4, 5]


def test_without_timings_nothing_is_timed(shuffled_digits, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("a time was measured")

    monkeypatch.setattr("layershuffle.api.prune.seconds_by_depth", refuse)
    monkeypatch.setattr("layershuffle.api.prune.milliseconds_when_merged", refuse)
    options = ["--keep=4", "--steps=3", "--rounds=0", "--timings=false", "--output=p.json"]
    results = prune_command([shuffled_digits, *FEW, *options]).results
    assert " ms" not in capsys.readouterr().out
    assert Results.load("p.json") == results
    assert results.measure(Pruning).milliseconds == {}
    assert results.measure(Grouping).milliseconds == {}

    # The pictures have layers and steps on their axes in place of times.
    (axis,) = results.measure(Pruning).figure(results).axes
    assert axis.get_xlabel() == "layers kept"
    assert axis.lines[-1].get_xdata().tolist() == [5, 4]
    (axis,) = results.measure(Grouping).figure(results).axes
    assert axis.get_ylabel() == "top-1 accuracy, %"

    with pytest.raises(UserError, match="timings"):
        layershuffle.prune(shuffled_digits, milliseconds=1.0, timings=False)


def test_few_images_per_class_are_warned_of(shuffled_digits, caplog):
    with caplog.at_level("WARNING", "layershuffle"):
        layershuffle.prune(shuffled_digits, keep=4, repeats=1, rounds=0)
    (warning,) = caplog.records
    images, classes, per_class = warning.args[1:4]
    assert classes == 10
    assert per_class == 10
    assert images < 100


def test_a_budget_of_time_and_refinement(shuffled_digits, capsys):
    results = prune_command([shuffled_digits, *FEW, "--milliseconds=1e6", "--output=p.json"]).results
    assert len(Order(results.measure(Pruning).chosen)) == 5  # all layers, because they are quick enough
    assert "export it with: layershuffle export" in capsys.readouterr().out

    # Refinement changes the weights, but only little in one epoch.
    export = ["--export=out", "--refine=1"]
    prune_command([shuffled_digits, *FEW, "--keep=1", "--rounds=0", "--output=q.json", *export])
    (best,) = re.findall("refined: (.*); export it with", capsys.readouterr().out)
    (before,) = load("out").model.vit.blocks
    (after,) = load(best).model.vit.blocks
    assert not torch.equal(before.mlp.fc1.weight, after.mlp.fc1.weight)
    assert (before.mlp.fc1.weight - after.mlp.fc1.weight).abs().max() < 0.1


def test_layers_are_grouped_into_few_steps_timed_and_exported(shuffled_digits, capsys, images):
    options = ["--keep=4", "--steps=2", "--rounds=2", "--output=p.json", "--export=out"]
    results = prune_command([shuffled_digits, *FEW, *options]).results
    said = capsys.readouterr().out
    assert Results.load("p.json") == results
    grouping = results.measure(Grouping)
    scores = results.of("grouping")
    assert [score.variant["steps"] for score in scores] == [4, 3, 2]
    for score in scores:
        order = Order(score.order)
        # A group whose attentions run side by side, and then its MLPs, is one step in two parts of the order.
        in_halves = {unit.half for unit in order.units} == {"a", "f"}
        parts_of_step = 2 if in_halves else 1
        assert len(order) == parts_of_step * score.variant["steps"]
        assert len(order.layers) == 4
        assert grouping.milliseconds[score.order] > 0
        assert score.order in said
    *_, fewest_steps = scores
    assert grouping.chosen == fewest_steps.order
    assert f"chosen: {grouping.chosen}" in said

    # What is exported has merged layers, which can't be refined.
    assert "\nmerged: " in said
    assert "refine" not in said
    assert not Path("out/refine.yaml").exists()
    assert f"| {100 * fewest_steps.top1:.2f}" in Path("out/README.md").read_text()
    wide = runpy.run_path("out/wide_vit.py")["load"]("out")
    with torch.inference_mode():
        expected = load(shuffled_digits).model.eval()(images, grouping.chosen).logits
        torch.testing.assert_close(wide(images), expected, rtol=0, atol=1e-5)


def test_what_is_not_pruned(shuffled_digits, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for options, complaint in [
        ([], "say how much to keep"),
        (["--keep=2", "--milliseconds=1"], "say how much to keep"),
        (["--keep=6"], "6 layers"),
        (["--keep=2", "--split=test"], "test images"),
        (["--keep=2", "--data.val_fraction=0"], "test images"),
        (["--milliseconds=1e-9"], "one layer already takes"),
        (["--keep=2", "--refine=1"], "--export"),
        (["--keep=2", "--export=mine"], "mine is there"),
        (["--keep=2", "--beam=0"], "--beam"),
        (["--keep=2", "--steps=3"], "2 layers can't run in 3 steps"),
        (["--keep=2", "--steps=1", "--export=out", "--refine=1"], "can't be refined"),
    ]:
        assert complaint in fails(capsys, prune_command, shuffled_digits, *FEW, "--output=p.json", *options)
    assert not (tmp_path / "p.json").exists()
