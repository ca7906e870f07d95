"""Score a checkpoint under many orders; the same as ``layershuffle evaluate``."""

import sys

from layershuffle.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
