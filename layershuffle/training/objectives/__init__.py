"""What a training step minimises: one file for each kind of loss."""

from layershuffle.training.objectives.classification import Classification
from layershuffle.training.objectives.distillation import Distillation
from layershuffle.training.objectives.instancewise import InstanceWise
from layershuffle.training.objectives.multi_label import MultiLabel
from layershuffle.training.objectives.objective import Objective, StepKey, StepLoss

__all__ = ["Classification", "Distillation", "InstanceWise", "MultiLabel", "Objective", "StepKey", "StepLoss"]
