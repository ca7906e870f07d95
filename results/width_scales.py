"""Asks whether a scale between the sum and the mean of a group's changes is better than both.

    python results/width_scales.py experiments/width/glyphs/layershuffle/seed0/best.ckpt

The change of a group of n layers is the sum of its members' changes times n**-power: power 0 is the sum, 1 the mean.
Prints the accuracy in percent in random groups of glyphs, a line for each power.
"""

import argparse
from collections.abc import Callable, Sequence
from statistics import fmean
from unittest import mock

from torch import Tensor

import layershuffle
from layershuffle.data import Glyphs
from layershuffle.models import model as models
from layershuffle.orders.order import Step

STEPS = (6, 4, 3, 2, 1)


def scaled(power: float) -> Callable[[Step, Tensor, Tensor, Sequence[Tensor]], Tensor]:
    """What the model is to call in place of ``combine``."""

    def combine(step: Step, newest: Tensor, read: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        changes = [output - read for output in outputs]
        total = changes[0]
        for change in changes[1:]:
            total = total + change
        return newest + total * len(outputs) ** -power

    return combine


def main() -> None:
    """Evaluate each checkpoint with each power."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--test_images", type=int, default=500)
    args = parser.parse_args()

    print("model,power," + ",".join(f"{steps} steps" for steps in STEPS))
    for checkpoint in args.checkpoints:
        for power in (0, 0.25, 0.5, 0.75, 1):
            with mock.patch.object(models, "combine", scaled(power)):
                data = Glyphs(test_images=args.test_images)
                results = layershuffle.evaluate(checkpoint, data, protocols=["grouped"], random_orders=3, steps=STEPS)
            means = []
            for steps in STEPS:
                scores = results.of("grouped", steps=steps, layers="random")
                means.append(f"{fmean(100 * score.top1 for score in scores):.1f}")
            print(f"{results.label},{power},{','.join(means)}", flush=True)


if __name__ == "__main__":
    main()
