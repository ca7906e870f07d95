"""What ``layershuffle.evaluate`` takes for a model, and what it refuses."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

import layershuffle
from layershuffle.api.evaluate import evaluate
from layershuffle.api.export import ExportedModel
from layershuffle.api.merge import MergedCheckpoint
from layershuffle.api.pack import PackedFolder
from layershuffle.api.study import as_loaded
from layershuffle.api.train import TrainedRun
from layershuffle.checkpoints.loading import load
from layershuffle.data import Glyphs
from layershuffle.errors import UserError
from layershuffle.results import Results
from layershuffle.results.measures import Disagreement


@pytest.mark.parametrize("random_orders", [0, -1])
def test_fewer_than_one_random_order(random_orders):
    with pytest.raises(UserError, match="random_orders"):
        evaluate("mini_glyphs", random_orders=random_orders)


def test_what_train_returns_is_a_model():
    """It stands for its best checkpoint, or for the last one of a training without validation."""
    run = TrainedRun(
        folder=Path("run"),
        best=Path("best.ckpt"),
        last=Path("last.ckpt"),
        compute=None,
        metrics={},
        trainer=None,
    )
    without_validation = replace(run, best=None)
    assert run.checkpoint == Path("best.ckpt")
    assert Path(run) == Path("best.ckpt")
    assert without_validation.checkpoint == Path("last.ckpt")

    # The checkpoints aren't there, and the errors name them.
    with pytest.raises(UserError, match=r"best\.ckpt"):
        as_loaded(run)
    with pytest.raises(UserError, match=r"last\.ckpt"):
        layershuffle.load(without_validation)
    with pytest.raises(UserError, match=r"best\.ckpt"):
        layershuffle.merge([run, run])
    without_checkpoints = replace(run, best=None, last=None)
    with pytest.raises(UserError, match="first"):
        as_loaded(without_checkpoints)


@pytest.mark.parametrize(
    "returned",
    [
        MergedCheckpoint(Path("it"), [0, 1]),
        ExportedModel(Path("it"), "timm", 0.0, "8 images"),
        PackedFolder(Path("it"), {}, 0, False),
    ],
)
def test_what_other_functions_return_stands_for_its_path(returned):
    assert os.fspath(returned) == "it"


def test_a_single_word_or_value_is_no_sequence_of_them():
    found = evaluate(
        "mini_glyphs",
        Glyphs(test_images=20),
        accelerator="cpu",
        protocols="pruned",
        orders="2 1",
        depths=3,
        random_orders=1,
    )
    assert found.evaluation.protocols == ["pruned", "given"]
    assert found.evaluation.options["keep"] == [3]
    assert [score.order for score in found.of("given")] == ["2 1"]


@pytest.mark.parametrize("updates", [0, 1])
def test_a_checkpoint_of_0_updates_is_warned_of(caplog, updates):
    loaded = load("mini_glyphs")
    info = replace(loaded.info, compute={"updates": updates})
    evaluate(replace(loaded, info=info), Glyphs(test_images=20), accelerator="cpu")
    was_warned = any("0 updates" in text for text in caplog.messages)
    assert was_warned == (updates == 0)


def test_the_random_orders_together(tmp_path):
    """They are told of beside the scores, and stand in the results file."""
    found = evaluate("mini_glyphs_any_width", Glyphs(test_images=40), accelerator="cpu", random_orders=3)
    measure = found.measure(Disagreement)
    (group,) = measure.groups
    assert group.protocol == "arbitrary"
    assert group.samples == 3
    assert 0 < group.disagreement < 1
    assert 0.5 < group.agreement <= 1
    found.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").measure(Disagreement) == measure
    assert "AUROC" in str(found)


def test_one_random_order_has_nothing_to_disagree_with():
    found = evaluate("mini_glyphs", Glyphs(test_images=20), accelerator="cpu", protocols="arbitrary", random_orders=1)
    assert found.measure(Disagreement) is None
