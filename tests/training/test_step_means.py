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
BATCHES = ["--data.batch_size=20"]
"""Of the 99 images that are left without the held-out ones, these are four whole batches."""


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
    """The steps at which the first run of the working folder logged a metric, and its values."""
    with open("runs/version_0/metrics.csv") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def test_a_row_has_the_mean_since_the_row_before_and_the_table_that_of_the_epoch(losses, capsys):
    run = train([*TINY, *BATCHES, "--trainer.max_epochs=2", "--trainer.log_every_n_steps=3"])
    assert len(losses) == 8

    # Every third step, and the last of an epoch, which is the fourth.
    steps, values = zip(*logged("train/loss"))
    assert steps == (2, 3, 5, 7)
    since_row_before = [losses[:3], losses[3:4], losses[4:6], losses[6:]]
    assert values == pytest.approx([fmean(group) for group in since_row_before], rel=1e-5)

    first_epoch = fmean(losses[:4])
    second_epoch = fmean(losses[4:])
    assert float(run.callback_metrics["train/loss"]) == pytest.approx(second_epoch, rel=1e-5)
    # In the table of epochs, the number of the epoch comes first, and then the loss.
    lines = [line.split() for line in capsys.readouterr().err.splitlines() if line.strip()]
    shown = [float(words[1]) for words in lines if words[0] in ("1", "2")]
    assert shown == pytest.approx([first_epoch, second_epoch], abs=1e-4)


def test_a_run_of_few_updates_logs_its_training_loss(losses, caplog):
    caplog.set_level("INFO")
    train([*TINY, *BATCHES, "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"])
    assert logged("train/loss") == [(3, pytest.approx(fmean(losses), rel=1e-5))]
    assert len(logged("train/accuracy")) == 1

    # Without a progress bar, as in the runs of an experiment, the table of epochs is in the log.
    heading, numbers = [line.split() for line in caplog.messages if line.split()[0] in ("epoch", "1")]
    assert heading[:2] == ["epoch", "train/loss"]
    assert numbers[0] == "1"
    assert float(numbers[1]) == pytest.approx(fmean(losses), abs=1e-4)


def test_accumulated_batches_make_one_row(losses):
    accumulated = ["--trainer.accumulate_grad_batches=2", "--trainer.log_every_n_steps=1"]
    train([*TINY, *BATCHES, "--trainer.max_epochs=1", *accumulated])

    first_step = pytest.approx(fmean(losses[:2]))
    second_step = pytest.approx(fmean(losses[2:]))
    assert logged("train/loss") == [(0, first_step), (1, second_step)]


def test_sums_go_on_where_a_checkpoint_ends():
    batches = [({"loss": torch.rand(()), "term": torch.rand(())}, images) for images in (3, 5, 2)]
    whole = StepMeans()
    for values, images in batches:
        whole.add(values, images)

    first = StepMeans()
    for values, images in batches[:2]:
        first.add(values, images)
    resumed = StepMeans()
    resumed.restore({"means": first.state()})
    resumed.add(*batches[2])

    assert resumed.of_epoch() == whole.of_epoch()
    # Each image of the 10 counts alike.
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
