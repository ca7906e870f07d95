"""What matters on a GPU alone. On a CPU a stand-in notices where a GPU would be waited for."""

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from layershuffle.api.train import train
from layershuffle.data import Glyphs
from layershuffle.evaluation.device import make_fabric
from layershuffle.evaluation.metrics import OrderMetrics
from layershuffle.evaluation.scoring import evaluate
from layershuffle.orders.named import permutation
from layershuffle.orders.order import seeded
from layershuffle.orders.protocols import Trial
from layershuffle.training.module import FineTuner

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
item = Tensor.item


def forbid_waiting(on):
    """Raise an error where the host waits for the GPU; on a CPU, where it reads a float from a tensor."""
    if DEVICE.type == "cuda":
        torch.cuda.set_sync_debug_mode("error" if on else "default")
    else:
        Tensor.item = waits if on else item


def waits(tensor):
    assert not tensor.is_floating_point(), "the host waited for the device"
    return item(tensor)


@pytest.fixture(autouse=True)
def waiting_is_allowed_again():
    yield
    forbid_waiting(False)


class NoWaiting(pl.Callback):
    """Forbids to wait in the steps from FIRST to LAST; what comes in between, such as the next batch, counts."""

    FIRST = 10
    LAST = 30

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.FIRST:
            forbid_waiting(True)
        if trainer.global_step == self.LAST:
            forbid_waiting(False)


def train_without_waiting(folder):
    """Train a small model, and fail if a step that isn't logged waits for the device."""
    options = {
        "model.pretrained": False,
        "model.schedule.warmup_steps": 5,
        "data.classes": 10,
        "data.images_per_class": 200,
        "data.test_images_per_class": 10,
        "trainer.log_every_n_steps": 1000,
        "trainer.limit_val_batches": 0,
        "trainer.enable_progress_bar": False,
        "trainer.callbacks+": "test_on_gpu.NoWaiting",
    }
    trainer = "gpu" if DEVICE.type == "cuda" else "cpu"
    train(
        "mini_glyphs",
        "glyphs",
        optimizer="mini",
        trainer=trainer,
        batch_size=15,
        max_steps=NoWaiting.LAST + 5,
        folder=folder / "run",
        options=options,
    )


def test_the_host_never_waits_in_steps_that_are_not_logged(tmp_path):
    train_without_waiting(tmp_path)


def test_a_training_that_waits_is_noticed(tmp_path, monkeypatch):
    training_step = FineTuner.training_step

    def waits_in_training(module, batch, batch_idx):
        loss = training_step(module, batch, batch_idx)
        loss.item()
        return loss

    monkeypatch.setattr(FineTuner, "training_step", waits_in_training)
    with pytest.raises((AssertionError, RuntimeError)):
        train_without_waiting(tmp_path)


def evaluate_without_waiting(model):
    """Evaluate a model in 20 orders, and fail if that waits for the device before the last of them has run."""
    data = Glyphs(classes=10, test_images_per_class=10, batch_size=25)
    data.device = DEVICE
    preprocess = data.prepare_for(*model.image_format)
    data.setup("test")
    loader = data.loader("test")
    trials = [Trial("given", permutation(model.depth, seeded(number))) for number in range(20)]
    fabric = make_fabric(DEVICE.type, "32-true", model)
    different_orders = {trial.order for trial in trials}
    expected_outputs = len(different_orders) * len(loader)
    outputs = 0

    def on_output(*_):
        nonlocal outputs
        outputs += 1
        # From the second order on, until the last one of the last batch has run.
        forbid_waiting(outputs < expected_outputs)

    evaluate(model, preprocess, loader, trials, fabric, on_output=on_output)
    assert outputs == expected_outputs


def test_the_host_never_waits_in_an_evaluation(small):
    evaluate_without_waiting(small(num_classes=10))


def test_an_evaluation_that_waits_is_noticed(small, monkeypatch):
    def update_and_wait(metrics, first, outputs, labels):
        outputs[0].logits.sum().item()

    monkeypatch.setattr(OrderMetrics, "update", update_and_wait)
    with pytest.raises((AssertionError, RuntimeError)):
        evaluate_without_waiting(small(num_classes=10))
