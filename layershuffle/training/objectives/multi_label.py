"""Several labels for each image: the binary cross-entropy of every class, and the threshold from which to name it."""

from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_f1_score

from layershuffle.checkpoints.metadata import CheckpointMetadata
from layershuffle.data.label_scores import NEUTRAL, AveragePrecision
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.training.objectives.classification import Classification


class MultiLabel(Classification):
    """Learns of each class whether an image shows it, as an image can show several or none.

    ``val/sequential`` and ``val/arbitrary`` are mean average precisions, and ``val/loss``, which selects the best
    model, is the binary cross-entropy. Each validation chooses the probability from which on each class is named: the
    one of the highest F1 on the validation images, in the base order. The checkpoint records them.

    Args:
        label_smoothing: How much of each label is spread evenly over yes and no.
        position_loss: See ``Classification``.
    """

    takes_several_labels = True

    def __init__(self, label_smoothing: float = 0.0, position_loss: Literal["sum", "mean"] = "sum") -> None:
        super().__init__(label_smoothing, position_loss=position_loss)
        self.thresholds: list[float] = []

    def check_model(self, model: OrderedViT) -> None:
        super().check_model(model)
        # Without a validation, every threshold stays what it is now.
        self.thresholds = [NEUTRAL] * model.config["num_classes"]

    def class_loss(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over the images and the classes, and the terms to log.

        labels: uint8 [batch, classes], or float32 if the images are mixed. logits: [batch, classes].
        """
        smoothed = labels.float() * (1 - self.label_smoothing) + self.label_smoothing / 2
        classification_loss = F.binary_cross_entropy_with_logits(logits.float(), smoothed)
        return classification_loss, {"classification_loss": classification_loss}

    def batch_scores(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The F1 of all labels of the batch together, each named from a probability of 0.5 on."""
        score = multilabel_f1_score(
            logits.float().sigmoid(), labels, logits.shape[1], average="micro", validate_args=False
        )
        return {"f1": score}

    def validation_loss(self, model: OrderedViT, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """The binary cross-entropy; labels: uint8 [batch, classes]."""
        # The mean of an empty batch would be NaN.
        if not len(labels):
            return logits.sum()
        return F.binary_cross_entropy_with_logits(logits.float(), labels.float())

    def validation_score(self) -> Metric:
        return AveragePrecision()

    def end_validation(self, score: Metric) -> None:
        """Choose the thresholds."""
        assert isinstance(score, AveragePrecision)
        self.thresholds = score.best_thresholds()

    def metadata(self) -> dict[str, Any]:
        return {"position_loss": self.position_loss, "thresholds": self.thresholds}

    def check_resumed(self, metadata: CheckpointMetadata) -> None:
        """Refuse a run with one label for each image; keep the thresholds until the next validation chooses others."""
        if metadata.thresholds is None:
            raise UserError(
                "the checkpoint to resume from was trained with one label for each image: begin a new run, from its "
                "weights with --model.pretrained"
            )
        self.thresholds = metadata.thresholds
