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
from typing import Any

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
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import Trial

DEPTH = 12


def families() -> dict[str, list[Order]]:
    """Families of orders of a 12-layer model, from those that share most of their steps to those that share least."""
    layers = range(DEPTH)
    subsets = {k: [Order(chosen) for chosen in itertools.combinations(layers, k)] for k in range(1, DEPTH + 1)}
    pairs = list(itertools.combinations(range(DEPTH + 1), 2))
    swapped = [list(layers) for _ in range(DEPTH * (DEPTH - 1) // 2)]
    for order, (one, other) in zip(swapped, itertools.combinations(layers, 2)):
        order[one], order[other] = order[other], order[one]
    return {
        "all in-order subsets": [order for orders in subsets.values() for order in orders],
        "six-layer subsets": subsets[6],
        "contiguous skips": [Order([*layers[:start], *layers[end:]]) for start, end in pairs],
        "swaps": [Order(order) for order in swapped],
        "random permutations": [permutation(DEPTH, seeded(draw)) for draw in range(100)],
    }


def main() -> None:
    """Run the benchmark, print the table and write the JSON."""
    parser = arguments("evaluation", "Measure the seconds to score families of orders, all together and one at a time.")
    parser.add_argument("--width", type=int, default=None, help="width of the layers (default: 64 small, 768 full)")
    parser.add_argument("--batch", type=int, default=None, help="images per batch (default: 16 small, 512 full)")
    parser.add_argument("--compile", action="store_true", help="compile the layers, in both cases")
    parser.add_argument("--images", type=int, default=None, help="images to score (default: two batches)")
    parser.add_argument("--families", nargs="+", default=[*families()], help="families of orders (default: all)")
    args = parser.parse_args()
    full, device = args.size == "full", torch.device(args.device)
    width, batch, rounds = args.width or (768 if full else 64), args.batch or (512 if full else 16), args.rounds or 2
    size, patch, channels, mlp = (224, 16, 3, 4) if full else (28, 7, 1, 2)
    timm_args: dict[str, Any] = {"img_size": size, "patch_size": patch, "in_chans": channels, "depth": DEPTH}
    timm_args |= {"embed_dim": width, "num_heads": max(1, width // (64 if full else 32)), "mlp_ratio": mlp}
    torch.manual_seed(0)
    model = create_model("vit_base_patch16_224", 10, **timm_args).to(device).eval()
    count = args.images or 2 * batch
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)
    batches = DataLoader(TensorImages(images, torch.randint(0, 10, (count,))), batch, collate_fn=tuple)
    preprocess = Preprocess(*model.image_format).to(device)
    gpu = device.type == "cuda"
    precision: Any = "bf16-mixed" if gpu else "32-true"
    fabric = Fabric(accelerator="gpu" if gpu else "cpu", devices=[device.index or 0] if gpu else 1, precision=precision)

    def together(orders: list[Order]) -> list[tuple[int, float]]:
        scores = evaluate(model, preprocess, batches, [Trial("given", order) for order in orders], fabric)
        return [(round(score.top1 * score.images), score.loss or 0.0) for score in scores]

    @torch.inference_mode()
    def one_at_a_time(orders: list[Order]) -> list[tuple[int, float]]:
        found = []
        for order in orders:
            right, loss = torch.zeros(2, device=device)
            for raw, labels in batches:
                with fabric.autocast():
                    logits = model(preprocess(raw.to(device)), order).logits.float()
                labels = labels.to(device)
                right += (logits.argmax(dim=1) == labels).sum()
                loss += F.cross_entropy(logits, labels, reduction="sum")
            found.append((int(right), float(loss) / len(images)))
        return found

    if args.compile:
        model.compile()
        together([Order("0")])
    rows = []
    for family in args.families:
        orders = families()[family]
        found: dict[str, list[tuple[int, float]]] = {}
        ways: dict[str, Callable[[], object]] = {
            "together": lambda orders=orders, found=found: found.update(together=together(orders)),  # type: ignore[misc]
            "alone": lambda orders=orders, found=found: found.update(alone=one_at_a_time(orders)),  # type: ignore[misc]
        }
        times = take_turns(ways, rounds, device, warm_up=0)
        for (right, loss), (right_alone, loss_alone) in zip(found["together"], found["alone"], strict=True):
            assert right == right_alone, "the results differ"
            assert math.isclose(loss, loss_alone, rel_tol=1e-5), "the results differ"
        alone = sum(map(len, orders))
        shared = len({order.steps[: end + 1] for order in orders for end in range(len(order))})
        rows.append(
            {
                "orders": family,
                "count": len(orders),
                "passes alone": alone,
                "passes together": shared,
                "times fewer": alone / shared,
                "seconds alone": statistics.median(times["alone"]),
                "seconds together": statistics.median(times["together"]),
                "times as fast": ratio(times, "together", "alone"),
            }
        )
    setting = {"size": args.size, "layers": DEPTH, "width": width, "images": len(images), "batch": batch}
    setting |= {"rounds": rounds, "precision": precision, "compiled": args.compile}
    report("evaluation", rows, device, setting, args.output)


if __name__ == "__main__":
    main()
