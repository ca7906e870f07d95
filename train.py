"""Fine-tune a vision transformer; the same as ``layershuffle train``."""

import sys

from layershuffle.commands import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
