"""The means of a training's losses over all its steps: since the loggers wrote last, and over the epoch."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from layershuffle.errors import UserError
from layershuffle.training.callbacks import is_logged

KEY = "means"
"""The key in a checkpoint of what has been added up when it is written."""


class Sums:
    """Adds up values by name, each counted as often as its batch has images.

    The sums stay on the device, so that nothing waits for it.
    """

    def __init__(self) -> None:
        self._totals: dict[str, Tensor | float] = {}
        self._images: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor], images: int) -> None:
        """Add scalars that are means over so many images."""
        for name, value in values.items():
            total = self._totals.get(name, 0.0)
            if not isinstance(total, Tensor):
                # Created on the device: a copy from the host would wait for it.
                total = torch.full((), total, dtype=torch.float32, device=value.device)
            self._totals[name] = torch.add(total, value.detach().float(), alpha=images)
            self._images[name] = self._images.get(name, 0) + images

    def means(self) -> dict[str, Tensor | float]:
        """The mean of each value over the images of all batches that had it."""
        return {name: total / self._images[name] for name, total in self._totals.items()}

    def plus(self, other: "Sums") -> "Sums":
        """The sums over the batches of both."""
        combined = Sums()
        for sums in (self, other):
            for name, total in sums._totals.items():
                combined._totals[name] = combined._totals.get(name, 0.0) + total
                combined._images[name] = combined._images.get(name, 0) + sums._images[name]
        return combined

    def state(self) -> dict[str, list[float]]:
        """Total and number of images by name, as plain numbers; this waits for the device."""
        return {name: [float(total), self._images[name]] for name, total in self._totals.items()}

    @classmethod
    def of_state(cls, state: Mapping[str, list[float]]) -> "Sums":
        """The sums that ``state`` has returned."""
        sums = cls()
        for name, (total, images) in state.items():
            sums._totals[name] = float(total)
            sums._images[name] = int(images)
        return sums


class StepMeans:
    """Logs the means of what the training steps have computed, under names that begin with ``train/``."""

    def __init__(self) -> None:
        # Together they are the sums of the epoch.
        self._since_row = Sums()
        self._before_row = Sums()

    def add(self, values: Mapping[str, Tensor], images: int) -> None:
        """Add the values of a batch, scalars that are means over its images."""
        self._since_row.add(values, images)

    def log_row(self, module: pl.LightningModule) -> None:
        """Log the means since the loggers wrote last, if they write after this step."""
        if not is_logged(module.trainer, module.global_step + 1):
            return
        # Not in the progress bar, for which Lightning waits for the device in every step.
        module.log_dict(_named(self._since_row.means()))
        self._end_row()

    def of_epoch(self) -> dict[str, float]:
        """The means over the steps of this epoch, by the names under which they are logged; waits for the device."""
        means = self._before_row.plus(self._since_row).means()
        return {name: float(value) for name, value in _named(means).items()}

    def end_epoch(self, module: pl.LightningModule) -> None:
        """Log what is left of the epoch, and let callbacks see the means of all of it."""
        of_epoch = self.of_epoch()
        named_rest = _named(self._since_row.means())
        rest = {name: float(value) for name, value in named_rest.items()}
        if rest:
            # Not with log_dict, under whose names the callbacks see the means of the epoch.
            for logger in module.loggers:
                logger.log_metrics({"epoch": module.current_epoch, **rest}, step=module.global_step - 1)
        # Every process must see the same means, or callbacks that act on them would part ways.
        module.log_dict(of_epoch, logger=False, sync_dist=True)
        self._since_row = Sums()
        self._before_row = Sums()

    def _end_row(self) -> None:
        """Begin to add up anew for the next row of the loggers; the sums until now still count for the epoch."""
        self._before_row = self._before_row.plus(self._since_row)
        self._since_row = Sums()

    def state(self) -> dict[str, dict[str, list[float]]]:
        """What a checkpoint needs to go on within an epoch; this waits for the device."""
        return {"since_row": self._since_row.state(), "before_row": self._before_row.state()}

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; those of earlier versions have no means."""
        state = checkpoint.get(KEY)
        if state is None:
            return
        try:
            self._since_row = Sums.of_state(state["since_row"])
            self._before_row = Sums.of_state(state["before_row"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the checkpoint to continue from is damaged: its {KEY} can't be {state}"[:300]) from error


def _named(means: Mapping[str, Any]) -> dict[str, Any]:
    """The means by the names under which they are logged."""
    return {f"train/{name}": value for name, value in means.items()}
