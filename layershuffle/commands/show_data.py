"""Draws training images as the model of a run sees them, and prints where the picture is."""

import argparse
from pathlib import Path


def show_data_command(args: list[str] | None = None) -> None:
    """Draw what ``args`` ask for, by default those of the process."""
    parser = argparse.ArgumentParser(
        prog="layershuffle show-data",
        usage="%(prog)s [CONFIG ...] [options of layershuffle train] [--output FILE] [--images N] [--epochs N]",
        description="Draw the first training images of a run as they are evaluated, as the model sees them in the "
        "first epochs, and mixed with each other if the run does that. It takes the arguments of layershuffle train.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, default=Path("data.png"), help="File to write (default: %(default)s).")
    parser.add_argument("--images", type=int, default=6, help="How many images to draw (default: %(default)s).")
    parser.add_argument("--epochs", type=int, default=5, help="How many epochs to draw (default: %(default)s).")
    config, train_args = parser.parse_known_args(args)

    # torch and Lightning take seconds to import.
    from layershuffle.api.show_data import draw_data
    from layershuffle.results.figures import save

    save(draw_data(train_args, config.images, config.epochs), config.output)
    print(f"drawn: {config.output}")
