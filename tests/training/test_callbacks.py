"""What a run says while it lasts, and Lightning's own callbacks."""

import pytest
import torch
from helpers import DIGITS

from layershuffle.checkpoints.loading import load
from layershuffle.commands.train import checkpoint_paths, train

TINY = [*DIGITS, "--model.timm_args.depth=2", "--data.train_images=300"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def test_each_epoch_is_one_line_within_80_columns(capsys):
    train([*TINY, "--trainer.max_epochs=2"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("model: vit_tiny_patch16_224, 2 layers, 0.0")
    assert said[0].endswith("M parameters, random weights")
    first = next(index for index, line in enumerate(said) if line.split()[:1] == ["epoch"])  # after the data
    assert [line.split()[0] for line in said[first : first + 3]] == ["epoch", "1", "2"]
    assert {"train/loss", "val/loss", "val/sequential", "val/arbitrary"} < set(said[first].split())
    assert all(len(line.split()) == len(said[first].split()) for line in said[first + 1 : first + 3])
    assert not "".join(said[first + 3 :]).strip()
    assert max(map(len, said)) <= 80


def test_early_stopping_and_weight_averaging_work(tmp_path, capsys):
    stop = [
        "--trainer.callbacks=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.patience=0",
    ]
    ended = train([*TINY, "--trainer.max_epochs=9", *stop, "--trainer.callbacks.min_delta=9"])
    assert ended.current_epoch == 2
    with pytest.raises(ValueError, match="conditioned on metric `val/los` which is not available"):
        train([*TINY, "--trainer.max_epochs=2", *stop, "--trainer.callbacks.monitor=val/los"])
    averaged = [*TINY, "--trainer.max_steps=3", "--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0"]
    kept = [train([*TINY, "--trainer.max_steps=3"]), train(averaged), train([*averaged[:-1], "--resume=auto"])]
    found = [load(checkpoint_paths(run)["last"]).model.state_dict() for run in kept]
    assert all(
        torch.allclose(value, found[1][name]) for name, value in found[0].items()
    )  # a decay of 0 averages nothing
    assert not all(torch.equal(value, found[2][name]) for name, value in found[0].items())
