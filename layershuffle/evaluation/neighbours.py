"""A classifier without training: the training images vote whose features are nearest (arXiv 2104.14294)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layershuffle.evaluation.features import Features

NEIGHBOURS = 20
TEMPERATURE = 0.07
"""The neighbours and the temperature of DINO (arXiv 2104.14294, appendix F.1)."""
UNIFORM = 0.001
"""The part of the probability that all classes share, so that the loss is finite where the label has no vote."""
MOST_SIMILARITIES = 1 << 27
"""How many similarities are in memory at a time. In float32 they take 512 MiB."""


class NearestNeighbours(nn.Module):
    """Classifies features by a vote of the training images that are most similar to them.

    The weight of a vote is exp(cosine similarity / 0.07), as in DINO (arXiv 2104.14294, appendix F.1). The probability
    of a class is its share of the votes, but for a thousandth, which all classes share.

    Args:
        train: the images that vote.
        classes: how many classes there are.
        neighbours: how many of the images vote; all of them if there are fewer.

    Attributes:
        neighbours: how many images vote.
        directions: their features, each of norm 1, float32 [images, dim].
        labels: their labels, int64 [images].
    """

    directions: Tensor
    labels: Tensor

    def __init__(self, train: Features, classes: int, neighbours: int = NEIGHBOURS) -> None:
        super().__init__()
        self.classes = classes
        self.neighbours = min(neighbours, len(train.labels))
        # These are data and no weights, so a state dict should not hold them.
        self.register_buffer("directions", F.normalize(train.features, dim=1), persistent=False)
        self.register_buffer("labels", train.labels, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """The logarithm of the probability of each class, float32 [images, classes], of features [images, dim]."""
        size = max(1, MOST_SIMILARITIES // len(self.labels))
        # In half precision the similarities of neighbours would be too coarse for their weights.
        with torch.autocast(features.device.type, enabled=False):
            return torch.cat([self._vote(chunk) for chunk in features.float().split(size)])

    def _vote(self, features: Tensor) -> Tensor:
        """``forward`` for as many images as MOST_SIMILARITIES allows."""
        similarities = F.normalize(features, dim=1) @ self.directions.T
        nearest = similarities.topk(self.neighbours, dim=1)
        weights = (nearest.values / TEMPERATURE).exp()
        votes = torch.zeros(len(features), self.classes, device=features.device)
        votes.scatter_add_(1, self.labels[nearest.indices], weights)
        shares = votes / weights.sum(dim=1, keepdim=True)
        return ((1 - UNIFORM) * shares + UNIFORM / self.classes).log()
