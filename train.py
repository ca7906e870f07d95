"""Fine-tune a vision transformer: python train.py --config configs/model/... --config configs/data/... and so on."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports, which take seconds, without a traceback

from layershuffle.commands import main  # noqa: E402
from layershuffle.commands.train import train_command  # noqa: E402

if __name__ == "__main__":
    main(train_command)
