"""Fine-tune a vision transformer; the same as ``layershuffle train``."""

import sys

from layershuffle.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
