"""Runs a training step again whose loss was not finite, and prints which layer was the first."""

from pathlib import Path

import layershuffle
from layershuffle.commands.parser import Parser


def replay_command(args: list[str] | None = None) -> "layershuffle.ReplayedStep":
    """Replay as ``args`` say, by default those of the process; prints what was not finite first."""
    parser = Parser(
        prog="layershuffle replay",
        description="Run a training step again whose loss or weights were not finite, and show which layer's output "
        "was so first, in which order, and for which images. The training goes on from its last good checkpoint up to "
        "this step, with the options of config.yaml beside the file, and writes nothing.",
    )
    parser.add_argument("step_file", type=Path, help="File non_finite_step_N.safetensors in the folder of a run.")
    config = parser.parse_args(args)
    step = layershuffle.replay(config.step_file)
    print(step)
    return step
