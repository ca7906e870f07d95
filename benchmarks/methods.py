"""Measures what a layer execution costs in training with the methods and optimizers of docs/beyond_the_paper.md.

    python -m benchmarks.methods                # the model of the config mini_glyphs, for a CPU
    python -m benchmarks.methods --size full    # ViT-B/16 at 224, for a GPU

Each contender runs whole training steps on one batch that stays on the device: forward, backward and update.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.optim.muon import Muon as TimmMuon

from benchmarks.common import arguments, ratio, report, take_turns
from layershuffle.orders.samplers import OrderSampler, RandomSubset, Shuffle
from layershuffle.training.compute import layers_run
from layershuffle.training.module import FineTuner
from layershuffle.training.muon import Muon
from layershuffle.training.objectives import StepKey

REFERENCE = "layershuffle, AdamW"


def main() -> None:
    """Measure, and print the table."""
    parser = arguments("methods", "What a layer execution costs in training, by method and optimizer.")
    parser.add_argument("--batch", type=int, help="images in a batch")
    parser.add_argument("--compile", action="store_true", help="compile the layers")
    args = parser.parse_args()
    full, device = args.size == "full", torch.device(args.device)
    name, batch = "vit_base_patch16_224", args.batch or (256 if full else 64)
    mini = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 48, "num_heads": 3}
    timm_args: dict[str, Any] = {} if full else mini
    precision = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def training(sampler: OrderSampler, optimizer: Any, orders_per_batch: int = 1) -> Callable[[], None]:
        """Training steps that together run as many layers as one step at full depth, or somewhat more."""
        torch.manual_seed(0)
        module = FineTuner(
            name, 500, sampler, orders_per_batch=orders_per_batch, optimizer=partial(optimizer, lr=1e-4),
            compile=args.compile, timm_args=timm_args,
        ).to(device)  # fmt: skip
        made: Any = module.configure_optimizers()
        images = torch.randn(batch, *((3, 224, 224) if full else (1, 28, 28)), device=device)
        labels = torch.randint(0, 500, (batch,), device=device)
        step, ahead = 0, 0.0

        def run() -> None:
            nonlocal step, ahead
            ahead -= module.model.depth
            while ahead < 0:
                orders = module.orders.sample_parts(step, 0)
                made["optimizer"].zero_grad()
                with precision:
                    loss = module.objective.loss(module.model, images, labels, orders, StepKey(0, step, 0)).total
                loss.backward()
                made["optimizer"].step()
                step, ahead = step + 1, ahead + statistics.fmean(map(layers_run, orders))

        return run

    subset, adamw = RandomSubset(), torch.optim.AdamW
    contenders = {
        REFERENCE: training(Shuffle(), adamw),
        "random-subset, AdamW": training(subset, adamw),
        "layershuffle, AdamW, 2 orders": training(Shuffle(), adamw, 2),
        "layershuffle, Muon": training(Shuffle(), Muon),
        "layershuffle, timm's Muon": training(Shuffle(), TimmMuon),
        "layershuffle, Muon, 2 orders": training(Shuffle(), Muon, 2),
        "random-subset, Muon": training(subset, Muon),
        "random-subset, Muon, 2 orders": training(subset, Muon, 2),
    }
    times = take_turns(contenders, args.rounds or 20, device, warm_up=2, repeats=5)
    rows = [
        {
            "contender": each,
            "ms for full depth": 1e3 * statistics.median(took),
            "time to AdamW": 1 / ratio(times, each, REFERENCE),
        }
        for each, took in times.items()
    ]
    report("methods", rows, device, {"size": args.size, "batch": batch, "compiled": args.compile}, args.output)


if __name__ == "__main__":
    main()
