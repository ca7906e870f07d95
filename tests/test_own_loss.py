"""The loss that docs/guides/extend.md tells a stranger to write, as it is printed there."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import DIGITS, QUIET, ROOT, configs, train
from test_own_sampler_and_protocol import write_files
from torch.nn import functional as F

from layershuffle.api.compose import compose
from layershuffle.checkpoints.loading import load

FEW = ["--model.depth=2", "--data.train_images=80", "--trainer.max_steps=2", "--trainer.limit_val_batches=1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files("Add a loss")
    yield
    sys.modules.pop("my_losses", None)


def test_a_loss_is_one_file_and_a_config():
    logged = ["--trainer.log_every_n_steps=1", "--config=configs/method/focal.yaml"]
    run = train([*DIGITS, *QUIET, *FEW, *logged])
    objective = run.lightning_module.objective
    assert type(objective).__name__ == "FocalLoss"
    assert objective.position_loss == "mean"  # as the config optimizer/mini says
    assert float(run.callback_metrics["train/focal_loss"]) == float(run.callback_metrics["train/loss"]) > 0
    checkpoint = Path("runs/version_0/checkpoints/last.ckpt")
    assert load(str(checkpoint)).info.method == "layershuffle"
    assert train([*DIGITS, *QUIET, *FEW, *logged, f"--ckpt_path={checkpoint}"]).global_step == 2


def test_the_loss_is_the_papers_formula():
    from my_losses import FocalLoss

    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 0, 1])
    probability = logits.softmax(dim=1)[range(5), labels]
    loss, terms = FocalLoss(gamma=1.5).class_loss(torch.empty(5, 1, 8, 8), labels, logits)
    torch.testing.assert_close(loss, (-((1 - probability) ** 1.5) * probability.log()).mean())
    assert terms == {"focal_loss": loss}
    plain, _ = FocalLoss(gamma=0.0).class_loss(torch.empty(5, 1, 8, 8), labels, logits)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))


def test_an_option_names_it_with_any_method_and_recipe():
    command = [*DIGITS[:3], *configs("method/layershuffle_predict", "recipe/finetune"), *FEW]
    options = ["--model.objective.gamma=3", "--model.objective=my_losses.FocalLoss"]
    objective = compose([*command, *options]).model.objective
    assert (objective.gamma, objective.label_smoothing) == (3.0, 0.1)


def test_the_page_shows_the_files_of_the_objectives():
    page = (ROOT / "docs/guides/extend.md").read_text()
    for name in ("objective", "distillation", "instancewise"):
        assert f"{name}.py" in page
        assert (ROOT / f"layershuffle/training/objectives/{name}.py").is_file()
