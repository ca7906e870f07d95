"""What a run says while it lasts, and Lightning's own callbacks."""

import pytest
from helpers import DIGITS

from layershuffle.commands.train import train

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
    assert [line.split()[0] for line in said[1:4]] == ["epoch", "1", "2"]
    assert {"train/loss", "val/loss", "val/sequential", "val/arbitrary"} < set(said[1].split())
    assert all(len(line.split()) == len(said[1].split()) for line in said[2:4])
    assert not "".join(said[4:]).strip()
    assert max(map(len, said)) <= 80
