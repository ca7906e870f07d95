"""Measures what a layer execution costs in training with each method and optimizer.

docs/findings/beyond_the_paper.md has the figures.

    python -m benchmarks.methods                # the model of the config mini_glyphs, for a CPU
    python -m benchmarks.methods --size full    # ViT-B/16 at 224, for a GPU

Each contender runs whole training steps on one batch that stays on the device: forward, backward and update.
"""

import statistics
from functools import partial
from typing import Any

import torch
from timm.optim.muon import Muon as TimmMuon

from benchmarks.common import arguments, ratio, report, take_turns
from layershuffle.orders.sampler import OrderSampler
from layershuffle.orders.samplers import RandomSubset, Shuffle
from layershuffle.training.compute import layers_run
from layershuffle.training.module import FineTuner
from layershuffle.training.muon import Muon
from layershuffle.training.objectives import StepKey

REFERENCE = "layershuffle, AdamW"
CLASSES = 500
MINI = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 48, "num_heads": 3}
"""The size of the config mini_glyphs."""


class FullDepth:
    """Training steps that together run as many layers as one step at full depth, or somewhat more.

    Args:
        args: the options of the benchmark.
        sampler: of the orders.
        optimizer: the class of the optimizer.
        orders_per_batch: how many orders a batch is divided between.
    """

    def __init__(self, args: Any, sampler: OrderSampler, optimizer: Any, orders_per_batch: int = 1) -> None:
        torch.manual_seed(0)
        is_full = args.size == "full"
        device = torch.device(args.device)
        batch = args.batch or (256 if is_full else 64)
        self.module = FineTuner(
            "vit_base_patch16_224",
            CLASSES,
            sampler=sampler,
            orders_per_batch=orders_per_batch,
            optimizer=partial(optimizer, lr=1e-4),
            compile=args.compile,
            timm_args={} if is_full else MINI,
        ).to(device)
        configured: Any = self.module.configure_optimizers()
        self.optimizer = configured["optimizer"]
        shape = (3, 224, 224) if is_full else (1, 28, 28)
        self.images = torch.randn(batch, *shape, device=device)
        self.labels = torch.randint(0, CLASSES, (batch,), device=device)
        self.step = 0
        self.ahead = 0.0

    def __call__(self) -> None:
        """Run steps until as many layers have run as a model has."""
        # What an earlier call has run beyond its share counts for this one.
        self.ahead -= self.module.model.depth
        while self.ahead < 0:
            orders = self.module.orders.sample_parts(self.step, 0)
            self.optimizer.zero_grad()
            self._loss(orders).backward()
            self.optimizer.step()
            self.step += 1
            self.ahead += statistics.fmean(layers_run(order) for order in orders)

    def _loss(self, orders: Any) -> torch.Tensor:
        device = self.images.device
        key = StepKey(0, self.step, 0)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = self.module.objective.loss(self.module.model, self.images, self.labels, orders, key)
        return loss.total


def main() -> None:
    """Measure, and print the table."""
    parser = arguments("methods", "What a layer execution costs in training, by method and optimizer.")
    parser.add_argument("--batch", type=int, help="Images in a batch (default: 64 small, 256 full).")
    parser.add_argument("--compile", action="store_true", help="Compile the layers.")
    args = parser.parse_args()

    adamw = torch.optim.AdamW
    contenders = {
        REFERENCE: FullDepth(args, Shuffle(), adamw),
        "random-subset, AdamW": FullDepth(args, RandomSubset(), adamw),
        "layershuffle, AdamW, 2 orders": FullDepth(args, Shuffle(), adamw, 2),
        "layershuffle, Muon": FullDepth(args, Shuffle(), Muon),
        "layershuffle, timm's Muon": FullDepth(args, Shuffle(), TimmMuon),
        "layershuffle, Muon, 2 orders": FullDepth(args, Shuffle(), Muon, 2),
        "random-subset, Muon": FullDepth(args, RandomSubset(), Muon),
        "random-subset, Muon, 2 orders": FullDepth(args, RandomSubset(), Muon, 2),
    }
    device = torch.device(args.device)
    times = take_turns(contenders, args.rounds or 20, device, warm_up=2, repeats=5)
    rows = []
    for name, took in times.items():
        rows.append(
            {
                "contender": name,
                "ms for full depth": 1e3 * statistics.median(took),
                "time to AdamW": 1 / ratio(times, name, REFERENCE),
            }
        )
    setting = {"size": args.size, "batch": len(contenders[REFERENCE].images), "compiled": args.compile}
    report("methods", rows, device, setting, args.output)


if __name__ == "__main__":
    main()
