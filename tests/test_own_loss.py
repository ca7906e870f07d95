"""The loss that docs/guides/extend.md tells a stranger to write, as it is printed there."""

import sys

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
    """A working folder with the page's files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_files("Add a loss")
    yield
    sys.modules.pop("my_losses", None)


def test_a_loss_is_one_file_and_a_config():
    options = [*DIGITS, *QUIET, *FEW, "--trainer.log_every_n_steps=1", "--config=configs/method/focal.yaml"]

    trainer = train(options)
    objective = trainer.lightning_module.objective
    assert type(objective).__name__ == "FocalLoss"
    assert objective.position_loss == "mean"  # as the config optimizer/mini says
    logged = trainer.callback_metrics
    assert float(logged["train/focal_loss"]) == float(logged["train/loss"]) > 0

    checkpoint = "runs/version_0/checkpoints/last.ckpt"
    assert load(checkpoint).info.method == "layershuffle"
    assert train([*options, f"--ckpt_path={checkpoint}"]).global_step == 2


def test_the_loss_is_the_papers_formula():
    from my_losses import FocalLoss

    images = torch.empty(5, 1, 8, 8)  # the loss doesn't depend on them
    labels = torch.tensor([0, 1, 2, 0, 1])
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))

    loss, terms = FocalLoss(gamma=1.5).class_loss(images, labels, logits)
    probability = logits.softmax(dim=1)[range(5), labels]
    expected = (-((1 - probability) ** 1.5) * probability.log()).mean()
    torch.testing.assert_close(loss, expected)
    assert terms == {"focal_loss": loss}

    plain, _ = FocalLoss(gamma=0.0).class_loss(images, labels, logits)
    torch.testing.assert_close(plain, F.cross_entropy(logits, labels))


def test_an_option_names_it_with_any_method_and_recipe():
    model_data_and_trainer = DIGITS[:3]
    method_and_recipe = configs("method/layershuffle_predict", "recipe/finetune")
    options = ["--model.objective.gamma=3", "--model.objective=my_losses.FocalLoss"]

    objective = compose([*model_data_and_trainer, *method_and_recipe, *FEW, *options]).model.objective

    assert objective.gamma == 3.0
    assert objective.label_smoothing == 0.1  # the recipe's


def test_the_page_shows_the_files_of_the_objectives():
    page = (ROOT / "docs/guides/extend.md").read_text()
    for name in ("objective", "distillation", "instancewise"):
        assert f"{name}.py" in page
        assert (ROOT / f"layershuffle/training/objectives/{name}.py").is_file()
