"""Instance-wise reordering: each image takes one of a few given orders (IOT, arXiv 2103.03457)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from layershuffle.errors import UserError
from layershuffle.models.choice import OrderChoice
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import seeded


@dataclass(frozen=True)
class InstanceWise:
    """How instance-wise reordering is trained (arXiv 2103.03457).

    Attributes:
        temperature: of the Gumbel-softmax at the first step.
        decay: the temperature falls by exp(-decay) with every step.
        min_temperature: where it stays.
        exploration: the weight of the loss that keeps the mean choice near uniform; the authors' example uses 0.1.
        specialisation: the weight of the loss that keeps each choice far from uniform; the authors' example uses 0.01.
        floor: probabilities count as at least this in the specialisation loss, which else has no lower end; the
            authors' example uses 0.05.

    Raises:
        UserError: (a ValueError) if a temperature isn't above 0 or the floor isn't between 0 and 1.
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
    model: OrderedViT, choice: OrderChoice, images: Tensor, labels: Tensor, how: InstanceWise, key: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a training step: every image runs in all orders, weighted by a Gumbel-softmax of its choice.

    Args:
        model: the model.
        choice: its module that chooses.
        images: normalised, [batch, channels, height, width].
        labels: int64 [batch].
        how: temperature and weights.
        key: (seed, step, process), which decide the Gumbel noise.

    Returns:
        The sum of the three losses (arXiv 2103.03457), and what to log: the expected cross-entropy as
        ``classification_loss``, the two other losses, and the ``accuracy`` of the likeliest choices.
    """
    state = model.embed(images)
    logits = choice(state.tokens).float()
    generator = torch.Generator().manual_seed(int(seeded(*key).random() * 2**53))
    # Drawn on the CPU, so that every device sees the same noise.
    uniform = torch.rand(logits.shape, generator=generator).clamp(1e-9, 1 - 1e-7).to(logits.device, non_blocking=True)
    weights = ((logits - (-uniform.log()).log()) / how.temperature_at(key[1])).softmax(dim=1)
    by_order = torch.stack([model.run(state, order).logits for order in choice.orders])
    losses = torch.stack([F.cross_entropy(out.float(), labels, reduction="none") for out in by_order], dim=1)
    classification = (weights * losses).sum(dim=1).mean()
    exploration, specialisation = choice_losses(logits.softmax(dim=1), how.floor)
    picked = by_order[logits.argmax(dim=1), torch.arange(len(labels), device=labels.device)]
    return classification + how.exploration * exploration + how.specialisation * specialisation, {
        "classification_loss": classification,
        "exploration_loss": exploration,
        "specialisation_loss": specialisation,
        "accuracy": (picked.argmax(dim=1) == labels).float().mean(),
    }


def choice_losses(probabilities: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """The exploration and the specialisation loss (arXiv 2103.03457), of probabilities [batch, orders].

    The first is KL(uniform || the batch's mean); the second the negative mean of KL(uniform || each image's own).
    """
    uniform = math.log(probabilities.shape[1])
    exploration = -probabilities.mean(dim=0).clamp_min(1e-9).log().mean() - uniform
    specialisation = (probabilities.clamp_min(floor).log().mean(dim=1) + uniform).mean()
    return exploration, specialisation
