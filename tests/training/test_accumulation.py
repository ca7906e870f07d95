"""An update follows the mean over its batches, also where an epoch ends with fewer batches than are accumulated."""

import math
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from helpers import SMALL

from layershuffle.data import Digits
from layershuffle.training.accumulation import weight_in_update
from layershuffle.training.module import FineTuner


@pytest.mark.parametrize(
    ("accumulated", "batches", "weights"), [(4, 6, [1, 1, 1, 1, 2, 2]), (3, 6, [1] * 6), (4, math.inf, [1] * 6)]
)
def test_the_last_update_of_an_epoch_is_divided_by_its_own_batches(accumulated, batches, weights):
    trainer = SimpleNamespace(accumulate_grad_batches=accumulated, num_training_batches=batches)
    assert [weight_in_update(trainer, batch) for batch in range(6)] == weights


@pytest.mark.parametrize("accumulated", [2, 4])
def test_weights_after_an_update_of_two_batches(tmp_path, accumulated):
    """Two batches in an epoch are one update, whether two or four would be accumulated."""
    torch.manual_seed(0)
    module = FineTuner(
        "vit_tiny_patch16_224", 10, timm_args=SMALL, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    )
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    data = Digits(batch_size=16)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        **quiet,
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=0,
        accumulate_grad_batches=accumulated,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1

    # The gradient of the mean loss, by hand.
    torch.manual_seed(0)
    other = FineTuner("vit_tiny_patch16_224", 10, timm_args=SMALL)
    batches = list(data.train_dataloader())[:2]
    order = module.orders.sample(0)
    losses = []
    for images, labels in batches:
        logits = other.model(other.preprocess(images), order).logits
        losses.append(torch.nn.functional.cross_entropy(logits, labels))
    torch.stack(losses).mean().backward()
    for name, parameter in other.named_parameters():
        moved = before[name] - dict(module.named_parameters())[name]
        torch.testing.assert_close(moved, parameter.grad, rtol=1e-3, atol=1e-6)
