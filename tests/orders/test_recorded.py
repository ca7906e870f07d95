"""Orders that a cluster ran: sampled as often as they ran, trained on and scored."""

import json

import pytest
import torch
from helpers import DIGITS, QUIET, fails

from layershuffle import Order, UserError
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.train import train_command
from layershuffle.orders import Recorded
from layershuffle.orders.protocols import trials

BACKWARDS = Order("11 10 9 8 7 6 5 4 3 2 1 0")
TWO_MISSING = Order("0 1 2 3 4 5 6 7 8 9")


@pytest.fixture
def log(tmp_path):
    """Three times all 12 layers backwards, once without two of them, and an order that failed."""
    orders = (BACKWARDS, BACKWARDS, TWO_MISSING, BACKWARDS)
    answered = [{"event": "ended", "order": str(order), "failed": False} for order in orders]
    failed = {"event": "ended", "order": "0", "failed": True}
    events = [{"event": "started"}, *answered, failed]
    path = tmp_path / "events.jsonl"
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return str(path)


def test_orders_are_sampled_as_often_as_they_ran(log):
    sampled = [Recorded(log).sample_step(12, 0, step) for step in range(2000)]
    assert {*sampled} == {BACKWARDS, TWO_MISSING}
    standard_deviation = 0.01  # that of a share of 3/4 in 2,000
    assert sampled.count(BACKWARDS) / 2000 == pytest.approx(0.75, abs=4 * standard_deviation)

    with pytest.raises(UserError, match="layer 11"):
        [Recorded(log).sample_step(4, 0, step) for step in range(20)]


def test_the_protocol_samples_too(log):
    per_batch, *fixed = trials(["recorded"], 12, random_orders=40, seed=0, recorded_orders=log)
    assert per_batch.variant == {"reading": "per batch"}
    assert len(fixed) == 40
    assert {(trial.order, trial.variant["missed"]) for trial in fixed} == {(BACKWARDS, 0), (TWO_MISSING, 2)}

    with pytest.raises(UserError, match="--recorded_orders"):
        trials(["recorded"], 12)


@pytest.mark.heavy
def test_training_on_a_log_and_scoring_on_it(log, tmp_path, capsys):
    options = ["--model.sampler=Recorded", f"--model.sampler.init_args.log={log}", "--trainer.max_steps=2"]
    train_command([*DIGITS, *QUIET, *options, f"--trainer.default_root_dir={tmp_path}"])
    checkpoint = str(tmp_path / "version_0/checkpoints/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["layershuffle"]["method"] == "recorded"

    options = ["--protocols", "recorded", "--random_orders", "4"]
    results = evaluate_command([checkpoint, *options, "--recorded_orders", log])
    assert len(results.of("recorded")) == 1 + 4  # a new order for each batch, and four fixed ones
    assert "recorded" in capsys.readouterr().out
    assert "--recorded_orders" in fails(capsys, evaluate_command, checkpoint, "--protocols", "recorded")
