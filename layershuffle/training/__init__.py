"""How a model learns: the LightningModule, its callbacks, resuming, several processes, loggers."""

from layershuffle.training.module import FineTuner

__all__ = ["FineTuner"]
