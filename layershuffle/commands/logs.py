"""What a command writes to stderr: our log lines, and of the libraries only what is about the user's run."""

import logging
import sys
import warnings
from typing import NamedTuple, TextIO


class StderrHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is at the time: progress bars and tests replace it."""

    def __init__(self) -> None:
        # Not that of StreamHandler, which would keep the stream of this moment.
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Where the next line goes."""
        return sys.stderr


class LineFormatter(logging.Formatter):
    """INFO lines are plain; a WARNING begins with "warning: "."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        return f"{record.levelname.lower()}: {line}" if record.levelno > logging.INFO else line


def is_shown(record: logging.LogRecord) -> bool:
    """Whether this process shows the record: of several processes that train, only the first shows INFO lines."""
    # Where Lightning is not imported, there is just one process.
    rank_zero = sys.modules.get("lightning.fabric.utilities.rank_zero")
    return record.levelno > logging.INFO or rank_zero is None or rank_zero.rank_zero_only.rank == 0


def set_up_logging() -> None:
    """Send what the package logs to stderr, from INFO up, and quieten the libraries. A second call changes nothing."""
    logger = logging.getLogger("layershuffle")
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        handler = StderrHandler()
        handler.setFormatter(LineFormatter())
        handler.addFilter(is_shown)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    # Lightning's INFO lines name the devices, the seed and its own products.
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for silenced in SILENCED:
        warnings.filterwarnings("ignore", silenced.message, silenced.category, silenced.module)


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
    # Only the pixels of an image are read.
    Silenced("Corrupt EXIF data", r"PIL\.TiffImagePlugin"),
    # Images of this size are refused with an error of our own.
    Silenced("Image size .* exceeds limit of", r"PIL\.Image", RuntimeWarning),
    # Matplotlib draws a box instead, and the table beside the picture has the names.
    Silenced("Glyph .* missing from font", r"layershuffle\."),
)
