"""The cross-entropy of the classes, plus that of the positions where the model predicts them (LayerShuffle-predict)."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order
from layershuffle.training.objectives.objective import Objective, StepKey, StepLoss


class Classification(Objective):
    """Learns the classes, and the positions if the model predicts them (arXiv 2407.04513, section 3.3).

    Args:
        label_smoothing: The share of each label that is spread evenly over all classes.
        class_weights: How much the training loss of each class counts: a number for each class, in the sequence of the
            labels, or "balanced" for images / (classes x images of the class), as in scikit-learn. The losses of
            validation and evaluation are without them.
        position_loss: Whether the "sum" (arXiv 2407.04513, section 3.3) or the "mean" (the authors' code) of the
            steps' position cross-entropies is added to the classification loss.
    """

    weight_of_class: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        position_loss: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise UserError(f"label_smoothing is a share from 0 to below 1, not {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.position_loss = position_loss
        # A buffer follows the model to its device; class_weights keeps the numbers for the checkpoint.
        self.register_buffer("weight_of_class", None, persistent=False)

    def check_model(self, model: OrderedViT) -> None:
        super().check_model(model)
        self._set_class_weights(model.config["num_classes"])

    def _set_class_weights(self, num_classes: int) -> None:
        if not isinstance(self.class_weights, list):
            return
        all_positive = all(0 < weight < math.inf for weight in self.class_weights)
        if len(self.class_weights) != num_classes or not all_positive:
            raise UserError(
                f"class_weights is a number above 0 for each of the {num_classes} classes, or balanced, not "
                f"{self.class_weights}"
            )
        self.weight_of_class = torch.tensor(self.class_weights)

    def read_data(self, data: ImageData | None, num_classes: int) -> None:
        """Count the images of each class, if the classes are to be balanced."""
        if self.class_weights == "balanced":
            self.weight_of_class = balanced_weights(data, num_classes)
            # Noted now, because the precision of the run may round those in the buffer.
            self.class_weights = self.weight_of_class.tolist()

    def loss(
        self, model: OrderedViT, images: Tensor, labels: Tensor, orders: Sequence[Order], key: StepKey
    ) -> StepLoss:
        """Run equal parts of the batch in an order each: the loss of the classes plus that of the positions.

        A part has one image more than another where they can't be equal.
        """
        # The parts are forward passes of their own, but they have one loss and make one update.
        parts = images.tensor_split(len(orders))
        outputs = [model(part, order) for part, order in zip(parts, orders)]
        logits = torch.cat([output.logits for output in outputs])
        total, terms = self.class_loss(images, labels, logits)

        if model.prediction:
            terms["position_loss"] = self._position_loss(outputs)
            total = total + terms["position_loss"]
        return StepLoss(total, logits, terms)

    def class_loss(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the classes, a mean over the images, and the terms to log. The arguments are those of ``loss``.

        logits: [batch, classes].
        """
        classification_loss = self.cross_entropy(logits, labels)
        return classification_loss, {"classification_loss": classification_loss}

    def cross_entropy(self, logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        """The cross-entropy with class weights and label smoothing.

        logits: [batch, classes]. labels: int64 [batch], or probabilities [batch, classes]. Returns a scalar, or [batch]
        if the ``reduction`` is "none".
        """
        weights = self.weight_of_class
        entropy = partial(F.cross_entropy, logits, labels, weight=weights, label_smoothing=self.label_smoothing)
        if reduction != "mean" or weights is None or not self.label_smoothing or labels.ndim == 2:
            return entropy(reduction=reduction)
        # The same mean, written out: for this one, torch would wait for the device to select the labels that it doesn't
        # ignore.
        return entropy(reduction="sum") / weights[labels].sum()

    def _position_loss(self, outputs: Sequence[Output]) -> Tensor:
        """The position loss of a batch whose parts have these outputs: the mean over its images."""
        images = sum(len(output.logits) for output in outputs)
        losses = []
        for output in outputs:
            of_steps = position_cross_entropy(output)
            of_part = of_steps.sum() if self.position_loss == "sum" else of_steps.mean()
            # A part counts by its images, of which one part may have one more than another.
            losses.append(len(output.logits) / images * of_part)
        return torch.stack(losses).sum()

    def metadata(self) -> dict[str, Any]:
        return {"position_loss": self.position_loss, "class_weights": self.class_weights}


def position_cross_entropy(output: Output) -> Tensor:
    """Cross-entropy between each step's predicted and true position (arXiv 2407.04513, section 3.3).

    The output is that of a model with position prediction. Returns [steps], the means over the batch.
    """
    assert output.position_logits is not None
    steps, batch, _ = output.position_logits.shape
    targets = output.position_targets().repeat_interleave(batch)
    losses = F.cross_entropy(output.position_logits.flatten(0, 1), targets, reduction="none")
    return losses.view(steps, batch).mean(dim=1)


def balanced_weights(data: ImageData | None, num_classes: int) -> Tensor:
    """Weights [classes] with which all classes count alike: images / (classes x images of the class).

    Raises:
        UserError: if the labels are unknown, or a class has no image.
    """
    if data is None:
        raise UserError("class_weights balanced needs an ImageData that has the labels: give the numbers themselves")
    counts = data.training_labels("model.objective.class_weights balanced").bincount(minlength=num_classes)
    if not counts.all():
        empty = int(counts.argmin())
        name = data.class_names[empty] if data.class_names else empty
        raise UserError(
            f"class_weights can't be balanced, because the class {name} has no training image: give a number for each "
            "class"
        )
    return counts.sum() / (num_classes * counts)
