"""``python -m layershuffle`` does what the ``layershuffle`` command does."""

from layershuffle.commands import main

if __name__ == "__main__":
    main()
