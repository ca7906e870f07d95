"""Instance-wise reordering: each image learns to choose one of a few given orders (IOT, arXiv 2103.03457)."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, seeded
from layershuffle.training.objectives.classification import Classification
from layershuffle.training.objectives.objective import StepKey, StepLoss, mean_cross_entropy


class InstanceWise(Classification):
    """Learns the classes and which of ``--model.choices`` suits each image (IOT, arXiv 2103.03457).

    In training every image runs in all of the orders, and their losses are weighted by a Gumbel-softmax of its choice.

    Args:
        temperature: The temperature of the Gumbel-softmax at the first step.
        decay: Every step multiplies the temperature by exp(-decay).
        min_temperature: The lowest temperature.
        exploration: The weight of the loss that keeps the mean choice near uniform; the authors' example uses 0.1.
        specialisation: The weight of the loss that keeps each choice far from uniform; the authors' example uses 0.01.
        floor: The least value that a probability has in the specialisation loss, which would otherwise be unbounded;
            the authors' example uses 0.05.
        label_smoothing: See ``Classification``.
        class_weights: See ``Classification``. They don't change what the loss is divided by.
        position_loss: Of no use here, because images that choose their order can't predict positions.
    """

    method = "instancewise"
    # In validation each process runs the orders that its own images choose.
    allows_sharding = False

    def __init__(
        self,
        temperature: float = 10.0,
        decay: float = 0.01,
        min_temperature: float = 1.0,
        exploration: float = 0.1,
        specialisation: float = 0.01,
        floor: float = 0.05,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        position_loss: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(label_smoothing, class_weights, position_loss)
        are_temperatures = 0 < temperature < math.inf and 0 < min_temperature < math.inf
        if not are_temperatures or not 0 < floor < 1:
            raise UserError("instance-wise reordering needs temperatures above 0 and a floor between 0 and 1")
        self.temperature = temperature
        self.decay = decay
        self.min_temperature = min_temperature
        self.exploration = exploration
        self.specialisation = specialisation
        self.floor = floor

    def check_model(self, model: OrderedViT) -> None:
        # Not what other objectives check, which refuse models with choices.
        if not model.choice:
            raise UserError(
                "InstanceWise needs orders to choose from: add them as --model.choices, as configs/method/instancewise "
                "does"
            )
        self._set_class_weights(model.config["num_classes"])

    def fixed_orders(self, model: OrderedViT) -> tuple[Order, ...] | None:
        """All the choices."""
        assert model.choice is not None
        return model.choice.orders

    def temperature_at(self, step: int) -> float:
        """The temperature of training step ``step``."""
        return max(self.temperature * math.exp(-self.decay * step), self.min_temperature)

    def loss(
        self, model: OrderedViT, images: Tensor, labels: Tensor, orders: Sequence[Order], key: StepKey
    ) -> StepLoss:
        """The expected cross-entropy over the choices, plus the exploration and the specialisation loss.

        The logits are those of the order that each image finds most probable.
        """
        assert model.choice is not None
        state = model.embed(images)
        choice_logits = model.choice(state.tokens).float()

        # A Gumbel-softmax: random choices that have a gradient, the closer to a single order the lower the temperature.
        noise = gumbel_noise(choice_logits, key)
        weights = ((choice_logits + noise) / self.temperature_at(key.step)).softmax(dim=1)

        # The expected loss of each image, whose orders all start from the same embedding.
        logits_by_order = torch.stack([model.run(state, order).logits for order in orders])
        losses = [self.cross_entropy(logits.float(), labels, reduction="none") for logits in logits_by_order]
        classification = (weights * torch.stack(losses, dim=1)).sum(dim=1).mean()

        exploration, specialisation = choice_losses(choice_logits.softmax(dim=1), self.floor)
        total = classification + self.exploration * exploration + self.specialisation * specialisation
        terms = {
            "classification_loss": classification,
            "exploration_loss": exploration,
            "specialisation_loss": specialisation,
        }
        rows = torch.arange(len(images), device=images.device)
        logits_of_choices = logits_by_order[choice_logits.argmax(dim=1), rows]
        return StepLoss(total, logits_of_choices, terms)

    def validation_loss(self, model: OrderedViT, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """The cross-entropy when each image runs in the order that it chooses."""
        return mean_cross_entropy(model(images).logits, labels)


def gumbel_noise(logits: Tensor, key: StepKey) -> Tensor:
    """Gumbel noise of the shape of ``logits``, which the key alone decides."""
    # Sampled on the CPU, so that it is the same on every device, and copied without waiting for the device.
    generator = torch.Generator().manual_seed(int(seeded(*key).random() * 2**53))
    # Within these bounds both logarithms are finite.
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7)
    if logits.is_cuda:
        uniform = uniform.pin_memory()
    uniform = uniform.to(logits.device, non_blocking=True)
    return -(-uniform.log()).log()


def choice_losses(probabilities: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The exploration and the specialisation loss (arXiv 2103.03457) of probabilities [batch, orders].

    The first is KL(uniform || mean over the batch), the second the negative mean of KL(uniform || each image's own).
    """
    # With n orders, KL(uniform || p) = -mean(log p) - log n.
    log_orders = math.log(probabilities.shape[1])
    exploration = -probabilities.mean(dim=0).clamp_min(1e-9).log().mean() - log_orders
    specialisation = (probabilities.clamp_min(floor).log().mean(dim=1) + log_orders).mean()
    return exploration, specialisation
