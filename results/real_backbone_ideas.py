"""Two ideas that were tried once for docs/findings/real_backbone.md: a teacher of the features, and growing disorder.

    cd results
    layershuffle train layershuffle cpu mini --model.objective real_backbone_ideas.FeatureDistillation ...
    layershuffle train cpu mini --model.sampler real_backbone_ideas.GrowingDisorder ...

The other options are those of ``emoji_small_batches`` in configs/experiment/real_backbone.yaml. A third idea, to crop
and mirror the images, needs no code: the method ``any_width`` with ``--model.augmentation.scale [0.5,1.0]``,
``--model.augmentation.flip 0.5`` and ``--trainer.max_epochs 16``.
"""

import random
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layershuffle.models import OrderedViT
from layershuffle.orders import Order, OrderSampler, permutation
from layershuffle.training.objectives import Classification, StepKey, StepLoss


class FeatureDistillation(Classification):
    """The model in a random order also learns the tokens that it had in its base order before the training.

    The distillation loss is the mean squared difference between the normalised tokens after the last layer.

    Args:
        weight: The share of the distillation loss; the cross-entropy has the rest.
        options: The options of ``Classification``, which recipes set.
    """

    def __init__(self, weight: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.weight = weight
        # In a list, so that the teacher is no part of this module, or of its checkpoints.
        self.teachers: list[OrderedViT] = []

    def load(self, model: OrderedViT) -> None:
        """Keep a frozen copy of the model."""
        self.teachers = [deepcopy(model).requires_grad_(False).eval()]

    def loss(
        self, model: OrderedViT, images: Tensor, labels: Tensor, orders: Sequence[Order], key: StepKey
    ) -> StepLoss:
        """The loss of a batch; see ``Objective.loss``."""
        (random_order,) = orders
        tokens = tokens_after_last_layer(model, images, random_order)
        logits = model.backbone.classify(tokens)

        (teacher,) = self.teachers
        with torch.no_grad():
            target = tokens_after_last_layer(teacher, images, teacher.order)

        width = tokens.shape[-1:]
        feature_loss = F.mse_loss(F.layer_norm(tokens, width), F.layer_norm(target, width))
        classification_loss = self.cross_entropy(logits, labels)
        total = (1 - self.weight) * classification_loss + self.weight * feature_loss
        return StepLoss(total, logits, {"classification_loss": classification_loss, "feature_loss": feature_loss})


def tokens_after_last_layer(model: OrderedViT, images: Tensor, order: Order) -> Tensor:
    """The tokens [batch, tokens, width] before the final norm, for images [batch, channels, height, width]."""
    state = model.embed(images)
    for new_state, _ in model.run_steps(state, order):
        state = new_state
    return state.tokens


class GrowingDisorder(OrderSampler):
    """Layers may move from their places, at first a little and from ``end`` on anywhere.

    Args:
        end: the share of the budget after which all orders are equally likely.
    """

    method = "growing-disorder"
    summary = "All layers, at first nearly in sequence and in the end in any."

    def __init__(self, end: float = 0.8) -> None:
        self.end = end

    def sample(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        grown = progress / self.end
        if grown >= 1:
            return permutation(depth, rng)
        # How many places a layer may move back; it grows beyond all bounds.
        reach = depth / 3 * grown / (1 - grown)
        places = [layer + reach * rng.random() for layer in range(depth)]
        return Order(sorted(range(depth), key=places.__getitem__))

    def at_validation(self, depth: int, rng: random.Random, progress: float = 0.0) -> Order:
        # The aim is any order. If the disorder grew here too, checkpoints could not be compared with each other.
        return permutation(depth, rng)
