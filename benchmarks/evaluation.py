"""Measures the scoring of many orders together against scoring them one at a time.

    python -m benchmarks.evaluation                # small, for a CPU: 12 layers of width 64 on 28 x 28 images
    python -m benchmarks.evaluation --size full    # ViT-B/16 at 224 in bf16, for a GPU

Both score the same orders on the same images, and must find the same scores. One at a time is the loop that a user
would write: for each order, each batch is read, moved and preprocessed, and the right answers are counted.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.common import arguments, ratio, report, take_turns
from layershuffle import create_model
from layershuffle.data import Preprocess
from layershuffle.data.sets import TensorImages
from layershuffle.evaluation.scoring import evaluate
from layershuffle.orders.named import permutation
from layershuffle.orders.order import Order, Step, seeded
from layershuffle.orders.protocols import Trial

DEPTH = 12
Precision = Literal["32-true", "bf16-mixed"]


def families() -> dict[str, list[Order]]:
    """Families of orders of a 12-layer model, from those that share most of their steps to those that share least."""
    layers = list(range(DEPTH))
    all_subsets: list[Order] = []
    for count in range(1, DEPTH + 1):
        all_subsets += _subsets(count)
    skips = []
    for start, end in itertools.combinations(range(DEPTH + 1), 2):
        skips.append(Order([*layers[:start], *layers[end:]]))
    swaps = []
    for one, other in itertools.combinations(layers, 2):
        swapped = list(layers)
        swapped[one] = other
        swapped[other] = one
        swaps.append(Order(swapped))
    return {
        "all in-order subsets": all_subsets,
        "six-layer subsets": _subsets(6),
        "contiguous skips": skips,
        "swaps": swaps,
        "random permutations": [permutation(DEPTH, seeded(number)) for number in range(100)],
    }


def _subsets(count: int) -> list[Order]:
    """All orders of so many layers in the original sequence."""
    return [Order(chosen) for chosen in itertools.combinations(range(DEPTH), count)]


class Scoring:
    """A model and images, and two ways to score orders. Both return the right answers and the loss of each order.

    Args:
        device: where the model runs.
        is_full: whether the model and the images are those of ViT-B/16, or small.
        width: the width of the layers.
        batch: images in a batch.
        images: the number of images.
    """

    def __init__(self, device: torch.device, is_full: bool, width: int, batch: int, images: int) -> None:
        self.device = device
        self.images = images
        timm_args: dict[str, Any]
        if is_full:
            timm_args = {"img_size": 224, "patch_size": 16, "in_chans": 3, "mlp_ratio": 4}
            head_width = 64
        else:
            timm_args = {"img_size": 28, "patch_size": 7, "in_chans": 1, "mlp_ratio": 2}
            head_width = 32
        timm_args.update(depth=DEPTH, embed_dim=width, num_heads=max(1, width // head_width))
        torch.manual_seed(0)
        self.model = create_model("vit_base_patch16_224", 10, **timm_args).to(device).eval()
        pixels = torch.randint(0, 256, (images, *self.model.image_shape), dtype=torch.uint8)
        labels = torch.randint(0, 10, (images,))
        self.batches = DataLoader(TensorImages(pixels, labels), batch, collate_fn=tuple)
        self.preprocess = Preprocess(*self.model.image_format).to(device)
        is_gpu = device.type == "cuda"
        self.precision: Precision = "bf16-mixed" if is_gpu else "32-true"
        devices = [device.index or 0] if is_gpu else 1
        self.fabric = Fabric(accelerator="gpu" if is_gpu else "cpu", devices=devices, precision=self.precision)

    def together(self, orders: list[Order]) -> list[tuple[int, float]]:
        """Score all orders at once, as the package does."""
        trials = [Trial("given", order) for order in orders]
        scores = evaluate(self.model, self.preprocess, self.batches, trials, self.fabric)
        # Counts can be compared exactly, accuracies can't.
        return [(round(score.top1 * score.images), score.loss or 0.0) for score in scores]

    @torch.inference_mode()
    def one_at_a_time(self, orders: list[Order]) -> list[tuple[int, float]]:
        """Score one order after the other, as a user would write it."""
        scores = []
        for order in orders:
            right = torch.zeros((), device=self.device)
            loss = torch.zeros((), device=self.device)
            for raw, labels_on_host in self.batches:
                with self.fabric.autocast():
                    logits = self.model(self.preprocess(raw.to(self.device)), order).logits.float()
                labels = labels_on_host.to(self.device)
                right += (logits.argmax(dim=1) == labels).sum()
                loss += F.cross_entropy(logits, labels, reduction="sum")
            scores.append((int(right), float(loss) / self.images))
        return scores


def row(family: str, orders: list[Order], scoring: Scoring, rounds: int) -> dict[str, Any]:
    """Time both ways, and require that they find the same."""
    scores: dict[str, list[tuple[int, float]]] = {}
    ways: dict[str, Callable[[], object]] = {
        "together": lambda: scores.update(together=scoring.together(orders)),
        "alone": lambda: scores.update(alone=scoring.one_at_a_time(orders)),
    }
    times = take_turns(ways, rounds, scoring.device, warm_up=0)
    for (right, loss), (right_alone, loss_alone) in zip(scores["together"], scores["alone"], strict=True):
        assert right == right_alone, "the results differ"
        assert math.isclose(loss, loss_alone, rel_tol=1e-5), "the results differ"

    # Together, layers run once for all orders that begin alike.
    passes_alone = sum(len(order) for order in orders)
    beginnings: set[tuple[Step, ...]] = set()
    for order in orders:
        beginnings.update(order.steps[:end] for end in range(1, len(order) + 1))
    return {
        "orders": family,
        "count": len(orders),
        "passes alone": passes_alone,
        "passes together": len(beginnings),
        "times fewer": passes_alone / len(beginnings),
        "seconds alone": statistics.median(times["alone"]),
        "seconds together": statistics.median(times["together"]),
        "times as fast": ratio(times, "together", "alone"),
    }


def main() -> None:
    """Run the benchmark, print the table and write the JSON."""
    parser = arguments("evaluation", "Measure the seconds to score families of orders, all together and one at a time.")
    option = parser.add_argument
    option("--width", type=int, help="Width of the layers (default: 64 small, 768 full).")
    option("--batch", type=int, help="Images per batch (default: 16 small, 512 full).")
    option("--compile", action="store_true", help="Compile the layers, in both cases.")
    option("--images", type=int, help="Images to score (default: two batches).")
    option("--families", nargs="+", default=[*families()], help="Families of orders (default: all).")
    args = parser.parse_args()
    is_full = args.size == "full"
    width = args.width or (768 if is_full else 64)
    batch = args.batch or (512 if is_full else 16)
    rounds = args.rounds or 2
    scoring = Scoring(torch.device(args.device), is_full, width, batch, args.images or 2 * batch)
    if args.compile:
        scoring.model.compile()
        # The compiler's time belongs to neither way.
        scoring.together([Order("0")])

    all_families = families()
    rows = [row(family, all_families[family], scoring, rounds) for family in args.families]
    setting = {
        "size": args.size,
        "layers": DEPTH,
        "width": width,
        "images": scoring.images,
        "batch": batch,
        "rounds": rounds,
        "precision": scoring.precision,
        "compiled": args.compile,
    }
    report("evaluation", rows, scoring.device, setting, args.output)


if __name__ == "__main__":
    main()
