"""What an objective may change, and what it need not say. Each kind has a test file of its own."""

import pytest
import torch
from test_module import trainer, tuner
from torch.nn import functional as F

from layershuffle.checkpoints.loading import load
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.data import Digits
from layershuffle.errors import UserError
from layershuffle.orders.order import Order
from layershuffle.training.objectives import Classification, Objective, StepLoss
from layershuffle.training.objectives.objective import mean_cross_entropy


class TwoOrders(Objective):
    """The cross-entropy of each image in two orders; it notes what it is asked for, and nothing else is said."""

    method = "two-orders"

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight = weight
        self.keys = []
        self.calls = []

    def load(self, model):
        self.calls.append("load")

    def read_data(self, data, num_classes):
        self.calls.append(("read_data", type(data).__name__, num_classes))

    def start(self, model):
        self.calls.append("start")

    def fixed_orders(self, model):
        return (model.order, Order(tuple(reversed(model.order))))

    def loss(self, model, images, labels, orders, key):
        self.keys.append(key)
        self.calls.append("loss")
        forwards, backwards = [model(images, order).logits for order in orders]
        forwards_loss = F.cross_entropy(forwards, labels)
        backwards_loss = F.cross_entropy(backwards, labels)
        total = self.weight * forwards_loss + (1 - self.weight) * backwards_loss
        return StepLoss(total, forwards, {"backwards": backwards_loss})

    def validation_loss(self, model, images, labels, logits):
        return torch.tensor(7.0)


def test_an_objective_from_scratch_decides_orders_validation_and_name(tmp_path):
    given = TwoOrders()
    module = tuner(objective=given)
    run = trainer(tmp_path, log_every_n_steps=1, limit_train_batches=3)
    run.fit(module, datamodule=Digits(batch_size=10))

    objective = module.objective
    assert given.calls == []  # the module has a copy
    assert objective.calls[:3] == ["load", ("read_data", "Digits", 10), "start"]
    assert objective.calls[3:] == ["loss"] * 3
    assert objective.keys == [(5, step, 0) for step in range(3)]  # seed, step and rank
    assert module.method == "two-orders"
    assert module.base_order == module.model.order
    # 3 batches of 10 images, in 2 orders of 4 layers.
    assert module.compute.layer_executions == 3 * 10 * 2 * 4
    assert float(run.callback_metrics["val/loss"]) == 7.0
    assert float(run.callback_metrics["train/backwards"]) > 0

    run.save_checkpoint(tmp_path / "run.ckpt")
    metadata = torch.load(tmp_path / "run.ckpt", weights_only=True)[METADATA_KEY]
    assert metadata["method"] == "two-orders"
    # What other objectives record.
    assert metadata["position_loss"] is None
    assert metadata["class_weights"] is None
    assert metadata["distillation"] is None
    assert load(str(tmp_path / "run.ckpt")).model.order == module.model.order


def test_two_modules_share_nothing_of_the_default():
    assert tuner().objective is not tuner().objective


@pytest.mark.parametrize("objective", [Classification(), TwoOrders()])
def test_choices_need_an_objective_that_learns_them(objective):
    with pytest.raises(UserError, match="--model.objective InstanceWise"):
        tuner(objective=objective, choices=["0 1 2 3", "3 2 1 0"])


def test_label_smoothing_is_a_share():
    for wrong in (-0.1, 1.0):
        with pytest.raises(UserError, match="label_smoothing"):
            Classification(label_smoothing=wrong)


def test_the_mean_of_no_images_is_nothing():
    no_images = mean_cross_entropy(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
    assert no_images == 0

    logits = torch.randn(4, 3)
    labels = torch.tensor([0, 1, 2, 0])
    assert mean_cross_entropy(logits, labels) == F.cross_entropy(logits, labels)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 4.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("are_mixed", [False, True])
def test_the_cross_entropy_is_torchs(reduction, weights, smoothing, are_mixed):
    objective = Classification(label_smoothing=smoothing, class_weights=weights)
    weight_of_class = None if weights is None else torch.tensor(weights)
    objective.weight_of_class = weight_of_class
    logits = torch.randn(8, 3)
    labels = torch.rand(8, 3).softmax(1) if are_mixed else torch.arange(8) % 3

    expected = F.cross_entropy(logits, labels, weight=weight_of_class, label_smoothing=smoothing, reduction=reduction)
    torch.testing.assert_close(objective.cross_entropy(logits, labels, reduction), expected)
