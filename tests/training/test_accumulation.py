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


def tuner(**arguments):
    """An untrained module with a small model."""
    torch.manual_seed(0)
    return FineTuner("vit_tiny_patch16_224", 10, timm_args=SMALL, **arguments)


@pytest.mark.parametrize("accumulated", [2, 4])
def test_weights_after_an_update_of_two_batches(tmp_path, accumulated):
    """Two batches in an epoch are one update, whether two or four would be accumulated."""
    # With this optimizer, the weights move by their gradients.
    module = tuner(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    data = Digits(batch_size=16)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=0,
        accumulate_grad_batches=accumulated,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
    after = dict(module.named_parameters())

    # The gradient of the mean loss, by hand.
    untrained = tuner()
    batches = list(data.train_dataloader())[:2]
    order = module.orders.sample(0)
    losses = []
    for images, labels in batches:
        logits = untrained.model(untrained.preprocess(images), order).logits
        losses.append(torch.nn.functional.cross_entropy(logits, labels))
    torch.stack(losses).mean().backward()
    for name, parameter in untrained.named_parameters():
        torch.testing.assert_close(before[name] - after[name], parameter.grad, rtol=1e-3, atol=1e-6)
