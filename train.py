"""Fine-tune a vision transformer: python train.py --config configs/model/... --config configs/data/... and so on."""

from layershuffle.commands import main
from layershuffle.commands.train import train_command

if __name__ == "__main__":
    main(train_command)
