"""Score a checkpoint in sequential, arbitrary and pruned order: python evaluate.py CHECKPOINT [options]."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports, which take seconds, without a traceback

from layershuffle.commands import main  # noqa: E402
from layershuffle.commands.evaluate import evaluate_command  # noqa: E402

if __name__ == "__main__":
    main(evaluate_command)
