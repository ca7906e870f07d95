"""How a model learns: the LightningModule, its losses, callbacks, resuming, several processes, loggers."""

from layershuffle.training.module import FineTuner
from layershuffle.training.objectives import Classification, Distillation, InstanceWise, Objective
from layershuffle.training.schedule import Schedule
from layershuffle.training.trainable import Trainable

__all__ = ["Classification", "Distillation", "FineTuner", "InstanceWise", "Objective", "Schedule", "Trainable"]
