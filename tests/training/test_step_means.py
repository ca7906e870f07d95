"""Losses in metrics.csv are means over the steps since the row before, and in the table of epochs over the epoch."""

import csv
from statistics import fmean

import pytest
import torch
from helpers import DIGITS, train

from layershuffle.errors import UserError
from layershuffle.training.module import FineTuner
from layershuffle.training.step_means import StepMeans, Sums

TINY = [*DIGITS, "--model.timm_args.depth=2", "--data.train_images=110", "--data.val_fraction=0.1"]
BATCHES = ["--data.batch_size=20"]  # five in an epoch, of 99 images


@pytest.fixture
def losses(tmp_path, monkeypatch):
    """An empty working folder, and the loss of every batch that is trained on there."""
    monkeypatch.chdir(tmp_path)
    losses = []
    original = FineTuner.training_step

    def noted(module, batch, batch_idx):
        loss = original(module, batch, batch_idx)
        losses.append(float(loss))
        return loss

    monkeypatch.setattr(FineTuner, "training_step", noted)
    return losses


def logged(name):
    with open("runs/version_0/metrics.csv") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def test_a_row_has_the_mean_since_the_row_before_and_the_table_that_of_the_epoch(losses, capsys):
    run = train([*TINY, *BATCHES, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=3"])
    assert len(losses) == 8
    steps, values = zip(*logged("train/loss"))
    assert steps == (2, 3, 5, 7)
    groups = [losses[:3], losses[3:4], losses[4:6], losses[6:]]
    assert values == pytest.approx([fmean(group) for group in groups], rel=1e-5)
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(fmean(losses[4:]), rel=1e-5)
    epochs = [line.split() for line in capsys.readouterr().err.splitlines() if line.split()[:1] in (["1"], ["2"])]
    shown = [float(words[1]) for words in epochs]
    assert shown == pytest.approx([fmean(losses[:4]), fmean(losses[4:])], abs=1e-4)


def test_a_run_of_few_updates_logs_its_training_loss(losses, caplog):
    caplog.set_level("INFO")
    train([*TINY, *BATCHES, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    assert logged("train/loss") == [(3, pytest.approx(fmean(losses), rel=1e-5))]
    assert len(logged("train/accuracy")) == 1
    # Without a progress bar, as in the runs of an experiment, the table of epochs is in the log.
    heading, numbers = [line.split() for line in caplog.messages if line.split()[0] in ("epoch", "1")]
    assert (heading[:2], numbers[0]) == (["epoch", "train/loss"], "1")
    assert float(numbers[1]) == pytest.approx(fmean(losses), abs=1e-4)


def test_accumulated_batches_make_one_row(losses):
    accumulated = ["--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=1"]
    train([*TINY, *BATCHES, "--trainer.max_epochs=1", *accumulated])
    assert logged("train/loss") == [(0, pytest.approx(fmean(losses[:2]))), (1, pytest.approx(fmean(losses[2:])))]


def test_sums_go_on_where_a_checkpoint_ends():
    batches = [({"loss": torch.rand(()), "term": torch.rand(())}, images) for images in (3, 5, 2)]
    whole = StepMeans()
    first = StepMeans()
    for values, images in batches:
        whole.add(values, images)
    for values, images in batches[:2]:
        first.add(values, images)
    resumed = StepMeans()
    resumed.restore({"means": first.state()})
    resumed.add(*batches[2])
    assert resumed.of_epoch() == whole.of_epoch()
    expected = sum(float(values["loss"]) * images for values, images in batches) / 10
    assert whole.of_epoch()["train/loss"] == pytest.approx(expected)


def test_a_term_that_only_some_steps_have_is_a_mean_over_these():
    sums = Sums()
    sums.add({"loss": torch.tensor(1.0)}, 4)
    sums.add({"loss": torch.tensor(3.0), "rare": torch.tensor(5.0)}, 4)
    assert {name: float(value) for name, value in sums.means().items()} == {"loss": 2.0, "rare": 5.0}


def test_checkpoints_without_means_or_with_damaged_ones():
    StepMeans().restore({})
    for damaged in ("none", {"since_row": {}}, {"since_row": {"loss": 1}, "before_row": {}}):
        with pytest.raises(UserError, match="means"):
            StepMeans().restore({"means": damaged})
