"""Trains instance-wise reordering: each image chooses one of a few given orders (IOT, arXiv 2103.03457)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layershuffle.errors import UserError
from layershuffle.models.model import OrderChoice, OrderedViT
from layershuffle.orders.order import seeded


@dataclass(frozen=True)
class InstanceWise:
    """How instance-wise reordering is trained (arXiv 2103.03457).

    Attributes:
        temperature: the temperature of the Gumbel-softmax at the first step.
        decay: every step multiplies the temperature by exp(-decay).
        min_temperature: the lowest temperature.
        exploration: the weight of the loss that keeps the mean choice near uniform; the authors' example uses 0.1.
        specialisation: the weight of the loss that keeps each choice far from uniform; the authors' example uses 0.01.
        floor: the least value that a probability has in the specialisation loss, which would otherwise be unbounded;
            the authors' example uses 0.05.
    """

    temperature: float = 10.0
    decay: float = 0.01
    min_temperature: float = 1.0
    exploration: float = 0.1
    specialisation: float = 0.01
    floor: float = 0.05

    def __post_init__(self) -> None:
        if min(self.temperature, self.min_temperature) <= 0 or not 0 < self.floor < 1:
            raise UserError("instance-wise reordering needs temperatures above 0 and a floor between 0 and 1")

    def temperature_at(self, step: int) -> float:
        """The temperature of training step ``step``."""
        return max(self.temperature * math.exp(-self.decay * step), self.min_temperature)


def expected_loss(
    model: OrderedViT,
    choice: OrderChoice,
    images: Tensor,
    labels: Tensor,
    how: InstanceWise,
    key: tuple[int, ...],
    **how_far: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a training step: every image runs in all orders, weighted by a Gumbel-softmax of its choice.

    Args:
        model: the model.
        choice: the part of the model that chooses orders.
        images: normalised images [batch, channels, height, width].
        labels: int64 [batch], or probabilities [batch, classes].
        how: the temperature and the weights of the losses.
        key: (seed, step, process), which decide the Gumbel noise.
        how_far: arguments of cross_entropy. The weights of classes don't change what the loss is divided by.

    Returns:
        The sum of the three losses (arXiv 2103.03457), and the values to log: the expected cross-entropy as
        ``classification_loss``, the two other losses, and the ``accuracy`` of the most probable choices.
    """
    state = model.embed(images)
    logits = choice(state.tokens).float()
    generator = torch.Generator().manual_seed(int(seeded(*key).random() * 2**53))
    # The noise is drawn on the CPU, so that it is the same on every device.
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(logits.device, non_blocking=True)
    weights = ((logits - (-uniform.log()).log()) / how.temperature_at(key[1])).softmax(dim=1)
    by_order = torch.stack([model.run(state, order).logits for order in choice.orders])
    losses = [F.cross_entropy(out.float(), labels, reduction="none", **how_far) for out in by_order]
    classification = (weights * torch.stack(losses, dim=1)).sum(dim=1).mean()
    exploration, specialisation = choice_losses(logits.softmax(dim=1), how.floor)
    picked = by_order[logits.argmax(dim=1), torch.arange(len(labels), device=labels.device)]
    return classification + how.exploration * exploration + how.specialisation * specialisation, {
        "classification_loss": classification,
        "exploration_loss": exploration,
        "specialisation_loss": specialisation,
        "accuracy": (picked.argmax(dim=1) == (labels if labels.ndim == 1 else labels.argmax(dim=1))).float().mean(),
    }


def choice_losses(probabilities: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The exploration and the specialisation loss (arXiv 2103.03457) of probabilities [batch, orders].

    The first is KL(uniform || mean over the batch), the second the negative mean of KL(uniform || each image's own).
    """
    uniform = math.log(probabilities.shape[1])
    exploration = -probabilities.mean(dim=0).clamp_min(1e-9).log().mean() - uniform
    specialisation = (probabilities.clamp_min(floor).log().mean(dim=1) + uniform).mean()
    return exploration, specialisation
