"""Score a checkpoint in sequential, arbitrary and pruned order: python evaluate.py CHECKPOINT [options]."""

from layershuffle.commands import main
from layershuffle.commands.evaluate import evaluate_command

if __name__ == "__main__":
    main(evaluate_command)
