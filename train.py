"""Fine-tune a vision transformer: python train.py --config configs/model/... --config configs/data/... and so on."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports, which take seconds, without a traceback

from layershuffle.commands import main
from layershuffle.commands.train import train_command

if __name__ == "__main__":
    main(train_command)
