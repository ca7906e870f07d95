"""Keeps the messages of libraries that say nothing about the user's run, such as Lightning's, from the user."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

LIGHTNINGS_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")
"""Their INFO lines name the devices, the seed and Lightning's own products."""


def silence() -> None:
    """Silence them in this process."""
    for name in LIGHTNINGS_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for silenced in SILENCED:
        warnings.filterwarnings("ignore", silenced.message, silenced.category, silenced.module)


@contextmanager
def silenced() -> Iterator[None]:
    """Silence them within this context, and leave the program that it is part of as it was."""
    # Python puts its filters for warnings back by itself, but not the levels of loggers.
    loggers = [logging.getLogger(name) for name in LIGHTNINGS_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        silence()
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


class Silenced(NamedTuple):
    """A warning of a library that says nothing about the user's run.

    Attributes:
        message: a regular expression for the beginning of the warning.
        module: a regular expression for the module that warns.
        category: the warning's class or one of its base classes. Importing the exact class would take seconds.
    """

    message: str
    module: str
    category: type[Warning] = UserWarning


SILENCED = (
    # Lightning asks torch in a way that newer versions of torch have another name for.
    Silenced(".*is deprecated", r"lightning\.", FutureWarning),
    # The model moves the batches and the data module leaves that to it.
    Silenced("You have overridden `.*batch", r"lightning\.pytorch\.trainer\.connectors\.data_connector"),
    # Images in memory or on the device need no workers, and the number of workers is chosen from the cores.
    Silenced("The '.*' does not have many workers", r"lightning\.pytorch\.trainer\.connectors\.data_connector"),
    # A resumed run goes on in its folder, and its checkpoints stay where they are.
    Silenced("Checkpoint directory .* exists", r"lightning\.pytorch\.callbacks\.model_checkpoint"),
    Silenced("The dirpath has changed", r"lightning\.pytorch\.callbacks\.model_checkpoint"),
    # The sampler of the training images resumes within an epoch.
    Silenced("You're resuming from a checkpoint that ended", r"lightning\.pytorch\.loops\.training_epoch_loop"),
    # The interval counts across epochs.
    Silenced("The number of training batches .* is smaller", r"lightning\.pytorch\.loops\.fit_loop"),
    # Commands pass their arguments to LightningCLI instead of letting it read those of the process.
    Silenced("LightningCLI's args parameter", r"lightning\.pytorch\.cli"),
    # The fine-tuner refuses to average sharded weights, and this warns of nothing else.
    Silenced("You're using the WeightAveraging callback", r"lightning\.pytorch\.callbacks\.weight_averaging"),
    # Its checkpoint callback asks for a metric that only validation logs; ``train`` says which checkpoints there are.
    Silenced(r"`ModelCheckpoint\(monitor=", r"lightning\.pytorch\.callbacks\.model_checkpoint"),
    # overfit_batches is asked for, and its batches are the same in every epoch.
    Silenced("You requested to overfit", r"lightning\.pytorch\.trainer\.connectors\.data_connector"),
    # It recommends a package that nothing here needs.
    Silenced(r"Starting from v1\.9\.0, `tensorboardX`", r"lightning\.pytorch\.trainer\.connectors\.logger_connector"),
    # Only the pixels of an image are read.
    Silenced("Corrupt EXIF data", r"PIL\.TiffImagePlugin"),
    # Images of this size are refused with an error of our own.
    Silenced("Image size .* exceeds limit of", r"PIL\.Image", RuntimeWarning),
    # Matplotlib draws a box instead, and the table beside the picture has the names.
    Silenced("Glyph .* missing from font", r"layershuffle\."),
)
