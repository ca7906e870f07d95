"""Distillation: a frozen teacher shows the model that is trained how likely it finds each class of each image."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layershuffle.checkpoints.loading import load
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT


@dataclass(frozen=True)
class Distillation:
    """How a model learns from a frozen teacher (arXiv 1503.02531, section 2). Without a teacher it does not.

    Attributes:
        teacher: a checkpoint, or anything else that ``layershuffle.load`` takes. It runs in its base order, on the same
            images, augmented and mixed, as the model that is trained.
        weight: the share of the distillation loss in the loss of the classes, above 0 and at most 1. The cross-entropy
            with the labels has the rest.
        temperature: what the logits of both models are divided by in the distillation loss.
    """

    teacher: str | None = None
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1 or not 0 < self.temperature < math.inf:
            raise UserError("distillation needs a weight above 0 and at most 1, and a temperature above 0")

    def loss(self, logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """temperature**2 * KL(teacher || student), the mean over the images, for logits [batch, classes] of both.

        The factor keeps the size of the gradients much the same at every temperature, as the paper says.
        """
        student, teacher = ((each.float() / self.temperature).log_softmax(dim=1) for each in (logits, teacher_logits))
        return self.temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class Teacher:
    """The frozen teacher of a student. It is no module, so it is no part of the student or of its checkpoints.

    Args:
        how: names the teacher.
        student: the model that it teaches.

    Attributes:
        record: what checkpoints tell of the distillation: its options, and the SHA-256 of the teacher's file.

    Raises:
        UserError: if the teacher can't be loaded, tells other classes apart, or takes other images. They may be
            normalised in another way. But another size is refused: the images are cropped, changed and mixed in the
            student's size, and the pixels of another size are lost by then.
    """

    def __init__(self, how: Distillation, student: OrderedViT) -> None:
        loaded = load(str(how.teacher))
        self.name, self.model = how.teacher, loaded.model.requires_grad_(False)
        self.record = asdict(how) | {"sha256": loaded.record.get("sha256")}
        self.class_names = loaded.names if loaded.data else None  # timm's names of a class may differ from the data's
        own, wanted = loaded.model.config["num_classes"], student.config["num_classes"]
        if own != wanted:
            raise UserError(f"the teacher {self.name} tells {own} classes apart, but the model {wanted}")
        size, mean, std = (torch.tensor(value) for value in loaded.model.image_format[:3])
        student_size, student_mean, student_std = (torch.tensor(value) for value in student.image_format[:3])
        if size != student_size or len(mean) not in (len(student_mean), 3 * len(student_mean)):
            shapes = [" x ".join(map(str, model.image_shape)) for model in (loaded.model, student)]
            raise UserError(
                f"the teacher {self.name} takes images of {shapes[0]} (channels, height, width), but the model takes "
                f"{shapes[1]}: choose a teacher that sees the same images"
            )
        # These undo the student's normalisation and apply the teacher's, which may make three channels of a grey one.
        self.scale = (student_std / std).view(-1, 1, 1)
        self.shift = ((student_mean - mean) / std).view(-1, 1, 1)

    def __deepcopy__(self, memo: Any) -> "Teacher":
        """Averaged copies of the student share its teacher, which never changes."""
        return self

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the teacher to the student's device and precision."""
        self.model.to(device, dtype)
        self.scale, self.shift = self.scale.to(device, dtype), self.shift.to(device, dtype)

    def check_names(self, names: list[str] | None) -> None:
        """Raise a UserError if the teacher's classes are known to have other names than those of the data."""
        if self.class_names and names and self.class_names != names:
            theirs, own = next((a, b) for a, b in zip(self.class_names, names) if a != b)
            raise UserError(
                f"the teacher {self.name} was trained on other classes than those of the data: {theirs} stands where "
                f"the data have {own}"
            )

    def check_same(self, recorded: dict[str, Any] | None) -> None:
        """Raise a UserError if the file has changed since ``recorded``, the ``record`` of a checkpoint, was made."""
        if recorded and recorded["teacher"] == self.name and recorded["sha256"] != self.record["sha256"]:
            raise UserError(
                f"the teacher {self.name} is another file than the one that this run began with: put that one back, or "
                "begin a new run"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The logits [batch, classes] for the student's images [batch, channels, height, width], in evaluation mode."""
        return self.model(images * self.scale + self.shift).logits
