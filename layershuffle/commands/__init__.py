"""The command lines, and how they fail: what a user can cause is one sentence and a non-zero exit."""

import atexit
import errno
import gc
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch

from layershuffle.errors import UserError
from layershuffle.files import read_yaml

# What Lightning's import makes is there to stay: looking it through for garbage would be a third of the start.
gc.disable()
from lightning.fabric.utilities.exceptions import MisconfigurationException  # noqa: E402
from lightning.pytorch.cli import LightningArgumentParser  # noqa: E402

gc.freeze()
gc.enable()
atexit.register(gc.unfreeze)


class Parser(LightningArgumentParser):
    """A parser whose errors say what is wrong and nothing else; --help says the rest."""

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """As ever, but a config that isn't YAML, or is meant to fill the memory, is named."""
        args = sys.argv[1:] if args is None else args
        for path in option_values(args, "--config"):
            if Path(path).is_file():  # else the parser says it better
                read_yaml(path)
        return super().parse_args(args, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """What argparse and jsonargparse call for every fault in the arguments and configs."""
        if said := _cause(ex):
            raise said
        message = _ALTERNATIVES.sub(lambda found: f"{found['errors'].strip()} (given: {found['value'][:100]})", message)
        message = re.sub(r"\n\s*- Expected a <class 'NoneType'>", "", message)
        message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
        raise UserError(f"{message} (--help lists all options)" if "unrecognized" in message else message) from ex


_ALTERNATIVES = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes:.*?\s+Errors:\s+-(?P<errors>.*?)\s+"
    r"Given value type:.*?\s+Given value: (?P<value>.*)",
    re.DOTALL,
)


def option_values(args: Sequence[str], name: str) -> list[str]:
    """What is given for the option ``name``, as ``name value`` or ``name=value``."""
    spaced = [value for arg, value in pairwise(args) if arg == name]
    return spaced + [arg.partition("=")[2] for arg in args if arg.startswith(f"{name}=")]


def main(command: Callable[[], Any]) -> None:
    """Run a command line and turn what a user can cause into one sentence on stderr, without a traceback."""
    quieten()
    sys.path.append("")  # so that --data my_module.MyData finds a module in the working folder
    signal.signal(signal.SIGINT, signal.default_int_handler)  # train.py and evaluate.py had none while they imported
    try:
        command()
    except (UserError, MisconfigurationException) as error:
        sys.exit(f"error: {_sentence(error)}")
    except ValueError as error:
        if said := _cause(error):  # in what made an object from a config
            sys.exit(f"error: {_sentence(said)}")
        raise
    except SystemExit as end:
        if end.code:
            raise
        # --help: nothing has begun that must be ended, and taking apart what was imported would last another second.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(0)
    except torch.OutOfMemoryError:
        sys.exit("error: the GPU's memory is full: lower --data.batch_size, or evaluate.py's --batch-size")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise
        sys.exit(f"error: {error.filename or 'a file'} could not be read or written: {error.strerror}")


def quieten() -> None:
    """Leave out what the libraries say of themselves rather than of the user's run."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*You have overridden `(on_(before|after)_batch_transfer|transfer_batch_to_device)`.*",
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The dirpath has changed from.*",
        ".*is deprecated.*",
        ".*Corrupt EXIF data.*",
        ".*your dataloader is not resumable.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*LightningCLI's args parameter is intended to run from within Python.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _cause(error: BaseException | None) -> UserError | None:
    """What a user did, if that is why an error was raised."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _sentence(error: Exception) -> str:
    """The message on one line, without the traceback that a DataLoader's worker wraps it in."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.rstrip().rpartition("UserError: ")[2]
    return re.sub(r"\s*\n\s*", " ", text.strip())


def refuse_secrets(config: Any, path: str = "") -> None:
    """Raise a UserError if a config, which is saved and logged, holds a key or a token."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            refuse_secrets(value, f"{path}.{name}".removeprefix("."))
    elif isinstance(config, list):
        for at, value in enumerate(config):
            refuse_secrets(value, f"{path}.{at}")
    elif config and re.search(r"(api_?key|(?<!class_)token|password|secret)$", path, re.IGNORECASE):
        raise UserError(
            f"{path} would be saved with the run: set the environment variable WANDB_API_KEY, or use wandb login"
        )


def continue_wandb(logger: Any, run: dict[str, str] | None) -> None:
    """Let a W&B logger's parsed config (anything else is left alone) go on with ``run``, its "id" and "project"."""
    if run and "WandbLogger" in str(getattr(logger, "class_path", "")) and not logger.init_args.get("id"):
        logger.init_args["id"] = run["id"]
        if logger.init_args.get("project") in (None, "lightning_logs"):  # Lightning's defaults
            logger.init_args["project"] = run["project"]
        logger["dict_kwargs"] = {**(logger.get("dict_kwargs") or {}), "resume": "allow"}
