"""Score a checkpoint in sequential, arbitrary and pruned order: python evaluate.py CHECKPOINT [options]."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports, which take seconds, without a traceback

from layershuffle.commands import main
from layershuffle.commands.evaluate import evaluate_command

if __name__ == "__main__":
    main(evaluate_command)
