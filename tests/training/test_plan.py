"""What a run says before its first step: how long it is, how it learns, and what it is too short for."""

import math

import pytest
import yaml
from helpers import DIGITS, QUIET, ROOT, configs, train

from layershuffle.training.plan import FEWEST_UPDATES, Plan
from layershuffle.training.schedule import Schedule

TINY = [*DIGITS, *QUIET, "--model.timm_args.depth=2", "--data.train_images=300"]


def plan(updates, warmup=0, shuffles=False):
    """The plan of a run of so many updates, of which nothing else is known."""
    return Plan(
        updates=updates,
        shuffles=shuffles,
        optimizer="AdamW",
        rate=0.004,
        schedule=Schedule("cosine", warmup_steps=warmup),
        done=0,
        epochs=None,
        in_layer_executions=False,
        batch_size=None,
    )


@pytest.mark.parametrize(
    ("updates", "warmup", "shuffles", "mentioned"),
    [
        (20, 60, False, ["never reaches 0.004"]),
        (60, 60, False, ["never reaches 0.004"]),
        (100, 60, False, ["60 of the run's 100 updates"]),
        (500, 60, False, []),
        (20, 0.12, False, []),
        (56, 0, True, ["the run has only 56 updates, too few to learn random orders; plan for at least 500"]),
        (20, 60, True, ["never reaches 0.004", "only 20 updates, too few"]),
        (249, 0, True, ["only 249 updates, too few"]),
        (FEWEST_UPDATES, 0, True, []),
        (math.inf, 60, True, []),
    ],
)
def test_a_run_that_is_too_short_says_so(updates, warmup, shuffles, mentioned):
    warnings = plan(updates, warmup, shuffles).warnings()

    assert len(warnings) == len(mentioned)
    for text, warning in zip(mentioned, warnings):
        assert text in warning


@pytest.mark.parametrize("method", ["layershuffle", "baseline"])
def test_the_first_lines_say_what_runs(tmp_path, monkeypatch, caplog, method):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    options = ["--model.schedule.warmup_steps=0.5", "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=2"]
    train([*TINY, *configs(f"method/{method}", "recipe/light"), *options])

    said = "\n".join(caplog.messages)
    assert "(default)" not in said
    assert "input: 8 x 8 pixels, 1 channel, a grid of 4 x 4 patches\n" in said
    assert f"method: {method}, of the configs mini_digits, digits, cpu, mini, {method}, light\n" in said
    assert "plan: 4 updates, 2 epochs, batches of 64 images\n" in said
    assert "AdamW: learning rate 0.0001, 2 updates of warm-up, then cosine\n" in said
    # The lines are wrapped somewhere.
    assert "the validation images are held out from training" in " ".join(said.split())
    # Four updates are too few to learn random orders, which the baseline doesn't have.
    warnings = [text for text in caplog.messages if "too few to learn" in text]
    assert len(warnings) == (1 if method == "layershuffle" else 0)


def test_epochs_of_a_budget_of_layer_executions_are_an_estimate(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    options = ["--model.sampler=FirstLayers", "--model.sampler.k=1", "--model.budget=layer_executions"]
    trainer = train([*TINY, *options, "--trainer.max_epochs=1"])
    said = "\n".join(caplog.messages)
    # With one of two layers, there are twice as many.
    assert trainer.current_epoch == 2
    assert f"plan: layer executions of {trainer.global_step // 2} updates at full depth, about 2 epochs, " in said


def test_a_method_that_nobody_named_is_called_the_default(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    train([*TINY, "--trainer.max_steps=1"])
    assert "method: layershuffle (default), of the configs mini_digits, " in "\n".join(caplog.messages)


def test_pixels_that_belong_to_no_patch_are_named(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    train([*TINY, "--model.timm_args.img_size=9", "--trainer.max_steps=1", "--model.sampler=Sequential"])
    (message,) = [text for text in caplog.messages if "9 x 9 pixels don" in text]
    assert "rows (1) and columns (1)" in message


@pytest.mark.parametrize(("updates", "warmup"), [(703, 60), (20, 2)])
def test_the_small_models_warm_up_for_a_share_of_the_run(updates, warmup):
    """703 is an epoch of the glyphs, for which the recorded experiments had 60 updates of warm-up."""
    for name in ("mini", "muon"):
        schedule = yaml.safe_load((ROOT / f"configs/optimizer/{name}.yaml").read_text())["model"]["schedule"]
        assert Schedule(**schedule).warmup(updates) == warmup
