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


@pytest.fixture
def log(tmp_path):
    """Three times all 12 layers backwards, and once without two of them."""
    path = tmp_path / "events.jsonl"
    whole, missing = Order(range(12)[::-1]), Order(range(10))
    ended = [{"event": "ended", "order": str(order), "failed": False} for order in (whole, whole, missing, whole)]
    events = [{"event": "started"}, *ended, {"event": "ended", "order": "0", "failed": True}]
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events))
    return str(path)


def test_orders_are_sampled_as_often_as_they_ran(log):
    sampled = [Recorded(log).sample_step(12, 0, step) for step in range(2000)]
    assert {*sampled} == {Order(range(12)[::-1]), Order(range(10))}
    assert len([order for order in sampled if len(order) == 12]) / 2000 == pytest.approx(0.75, abs=4 * 0.01)
    with pytest.raises(UserError, match="layer 11"):
        [Recorded(log).sample_step(4, 0, step) for step in range(20)]


def test_the_protocol_samples_too(log):
    to_score = trials(["recorded"], 12, random_orders=40, seed=0, recorded_orders=log)
    assert {(str(trial.order), trial.variant["missed"]) for trial in to_score[1:]} == {
        (" ".join(map(str, range(12)[::-1])), 0), (" ".join(map(str, range(10))), 2)
    }  # fmt: skip
    assert len(to_score) == 1 + 40
    with pytest.raises(UserError, match="--recorded_orders"):
        trials(["recorded"], 12)


@pytest.mark.heavy
def test_training_on_a_log_and_scoring_on_it(log, tmp_path, capsys):
    train_command(
        [*DIGITS, "--model.sampler=Recorded", f"--model.sampler.init_args.log={log}", "--trainer.max_steps=2", *QUIET,
         f"--trainer.default_root_dir={tmp_path}"]
    )  # fmt: skip
    checkpoint = str(tmp_path / "version_0/checkpoints/last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["layershuffle"]["method"] == "recorded"
    results = evaluate_command(
        [checkpoint, "--protocols", "recorded", "--random_orders", "4", "--recorded_orders", log]
    )
    assert len(results.of("recorded")) == 5
    assert "recorded" in capsys.readouterr().out
    assert "--recorded_orders" in fails(capsys, evaluate_command, checkpoint, "--protocols", "recorded")
