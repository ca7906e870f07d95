"""Distillation: the model also learns how likely a frozen teacher finds each class of each image."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from layershuffle.checkpoints.loading import load
from layershuffle.checkpoints.metadata import CheckpointMetadata
from layershuffle.checkpoints.training_data import match_classes
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.plurals import counted
from layershuffle.training.objectives.classification import Classification


class Distillation(Classification):
    """Learns the classes from the labels and from a frozen teacher (arXiv 1503.02531, section 2).

    Args:
        teacher: A checkpoint, or anything else that ``layershuffle.load`` takes. It runs in its base order, on the same
            images, augmented and mixed, as the model that is trained.
        weight: The share of the distillation loss in the loss of the classes, above 0 and at most 1. The cross-entropy
            with the labels has the rest.
        temperature: What the logits of both models are divided by in the distillation loss.
        label_smoothing: See ``Classification``.
        class_weights: See ``Classification``.
        position_loss: See ``Classification``.
    """

    def __init__(
        self,
        teacher: str,
        weight: float = 0.5,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        position_loss: Literal["sum", "mean"] = "sum",
    ) -> None:
        super().__init__(label_smoothing, class_weights, position_loss)
        if not 0 < weight <= 1 or not 0 < temperature < math.inf:
            raise UserError("distillation needs a weight above 0 and at most 1, and a temperature above 0")
        self.teacher_name = teacher
        self.weight = weight
        self.temperature = temperature
        self.teacher: Teacher | None = None

    def load(self, model: OrderedViT) -> None:
        """Load the teacher."""
        self.teacher = Teacher(self.teacher_name, model)

    def read_data(self, data: ImageData | None, num_classes: int) -> None:
        super().read_data(data, num_classes)
        if data is not None:
            self._loaded_teacher.match_names(data.class_names)

    def start(self, model: OrderedViT) -> None:
        parameter = next(model.parameters())
        self._loaded_teacher.to(parameter.device, parameter.dtype)

    def class_loss(self, images: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        classification_loss = self.cross_entropy(logits, labels)
        teacher_logits = self._loaded_teacher(images)
        distillation_loss = self.distillation_loss(logits, teacher_logits)
        total = (1 - self.weight) * classification_loss + self.weight * distillation_loss
        return total, {"classification_loss": classification_loss, "distillation_loss": distillation_loss}

    def distillation_loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """temperature**2 * KL(teacher || student), the mean over the images, for logits [batch, classes] of both.

        The factor keeps the size of the gradients much the same at every temperature, as the paper says.
        """
        student = (logits.float() / self.temperature).log_softmax(dim=1)
        teacher = (teacher_logits.float() / self.temperature).log_softmax(dim=1)
        return self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)

    def metadata(self) -> dict[str, Any]:
        # The hash, because another file may stand under the same path when the run is resumed.
        distillation = {
            "teacher": self.teacher_name,
            "weight": self.weight,
            "temperature": self.temperature,
            "sha256": self._loaded_teacher.sha256,
        }
        return {**super().metadata(), "distillation": distillation}

    def check_resumed(self, metadata: CheckpointMetadata) -> None:
        """Refuse a teacher whose file has changed since the run began."""
        before = metadata.distillation
        if before is None or before["teacher"] != self.teacher_name:
            return
        if before["sha256"] != self._loaded_teacher.sha256:
            raise UserError(
                f"the teacher {self.teacher_name} is another file than the one that this run began with: put that one "
                "back, or begin a new run"
            )

    @property
    def _loaded_teacher(self) -> "Teacher":
        assert self.teacher is not None, "load() comes first"
        return self.teacher


class Teacher:
    """The frozen teacher of a student. It is no module, so it is no part of the student or of its checkpoints.

    Args:
        name: What ``layershuffle.load`` takes.
        student: The model that it teaches.

    Attributes:
        sha256: The SHA-256 of the teacher's file, if it has one.
        class_names: The names of its classes, if it was trained on data of ours.

    Raises:
        UserError: if the teacher can't be loaded, has other classes, or takes other images. They may be normalised in
            another way. But another size is refused: the images are cropped, changed and mixed in the student's size,
            and the pixels of another size are lost by then.
    """

    def __init__(self, name: str, student: OrderedViT) -> None:
        loaded = load(name)
        self.name = name
        self.model = loaded.model.requires_grad_(False)
        self.sha256 = loaded.info.sha256
        # timm's names of a class may differ from the data's, so they are not compared.
        self.class_names = loaded.class_names if loaded.data else None
        # The teacher's label of each class of the data, if they have another sequence.
        self.label_of_class: list[int] | None = None
        self._check_classes(student)
        self._check_images(student)

        # These undo the student's normalisation and apply the teacher's, which may make three channels of a grey one.
        mean = torch.tensor(self.model.image_format.mean)
        std = torch.tensor(self.model.image_format.std)
        student_mean = torch.tensor(student.image_format.mean)
        student_std = torch.tensor(student.image_format.std)
        self.scale = (student_std / std).view(-1, 1, 1)
        self.shift = ((student_mean - mean) / std).view(-1, 1, 1)

    def _check_classes(self, student: OrderedViT) -> None:
        # Their names are compared later, when the data are there, see ``match_names``.
        classes = self.model.config["num_classes"]
        student_classes = student.config["num_classes"]
        if classes != student_classes:
            raise UserError(f"the teacher {self.name} has {counted(classes, 'class')}, but the model {student_classes}")

    def _check_images(self, student: OrderedViT) -> None:
        channels = len(self.model.image_format.mean)
        student_channels = len(student.image_format.mean)
        same_size = self.model.image_format.size == student.image_format.size
        # A grey image can be repeated in three channels.
        if same_size and channels in (student_channels, 3 * student_channels):
            return
        takes = " x ".join(map(str, self.model.image_shape))
        student_takes = " x ".join(map(str, student.image_shape))
        raise UserError(
            f"the teacher {self.name} takes images of {takes} (channels, height, width), but the model takes "
            f"{student_takes}: choose a teacher that sees the same images"
        )

    def __deepcopy__(self, memo: Any) -> "Teacher":
        """Averaged copies of the student share its teacher, which never changes."""
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the teacher to the student's device and precision."""
        self.model.to(device, dtype)
        self.scale = self.scale.to(device, dtype)
        self.shift = self.shift.to(device, dtype)

    def match_names(self, names: list[str] | None) -> None:
        """Bring the teacher's classes into the data's sequence; raises UserError if their names are known to differ."""
        self.label_of_class = match_classes(self.class_names, names, f"the teacher {self.name}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The logits [batch, classes] for the student's images [batch, channels, height, width], in evaluation mode."""
        logits = self.model(images * self.scale + self.shift).logits
        if self.label_of_class is None:
            return logits
        return logits[:, self.label_of_class]
