"""What several members say of the same images together: the orders of one model, or anything else that has logits."""

import torch
from torch import Tensor

from layershuffle.evaluation.metrics import best_class


class Ensemble:
    """The members' answers for the images of a batch, of which sums and the likeliest classes are kept.

    Call ``add`` with one member after another, and then the other methods.
    """

    def __init__(self) -> None:
        self._likeliest: list[Tensor] = []
        # Sums over the members. They get the shapes [images, classes] and [images] with the first member.
        self._probabilities = torch.zeros(())
        self._entropy = torch.zeros(())

    def add(self, logits: Tensor) -> None:
        """Take the logits of the next member, [images, classes]."""
        logits = logits.float()
        probabilities = logits.softmax(dim=-1)
        self._likeliest.append(best_class(logits))
        self._probabilities = self._probabilities.to(logits.device) + probabilities
        self._entropy = self._entropy.to(logits.device) + torch.special.entr(probabilities).sum(dim=-1)

    @property
    def probabilities(self) -> Tensor:
        """The mean of the members' probabilities, float32 [images, classes]."""
        return self._probabilities / len(self._likeliest)

    def mutual_information(self) -> Tensor:
        """By how much the members disagree, in nats, float32 [images]: 0 if all have the same probabilities.

        It is the entropy of the mean probabilities less the mean entropy of each member's (arXiv 1112.5745,
        equation 2). It is 0 also where all members are unsure in the same way.
        """
        entropy_of_mean = torch.special.entr(self.probabilities).sum(dim=-1)
        mean_entropy = self._entropy / len(self._likeliest)
        # Where all members agree, rounding can make the difference a little less than 0.
        return (entropy_of_mean - mean_entropy).clamp(min=0)

    def agreement(self) -> Tensor:
        """The share of members, 0 to 1, whose likeliest class is the likeliest on average, float32 [images].

        Where logits are NaN, no class is the likeliest, and the share is 0.
        """
        likeliest = best_class(self.probabilities)
        agrees = (torch.stack(self._likeliest) == likeliest) & (likeliest >= 0)
        return agrees.float().mean(dim=0)
