"""Does the host keep the GPU busy? Training steps that wait for it, and attention that is prepared anew."""

import statistics
from contextlib import nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from layershuffle.gpu_check.checks import Outcome, Setting, WrongResultError, check, train_small
from layershuffle.hardware import seconds

SMALL_MODEL = {"img_size": 32, "depth": 3, "in_chans": 1}
TRAININGS: dict[str, dict[str, Any]] = {
    "layershuffle": {},
    "images choose their order": {"method": "instancewise"},
    "DDP, layers left out": {"method": "layerdrop", "trainer": "ddp", "options": {"trainer.devices": 1}},
    "averaged weights": {"recipe": "finetune", "options": {"model.augmentation.scale": None}},
    "class weights": {
        "options": {"model.objective.class_weights": "balanced", "model.objective.label_smoothing": 0.1},
    },
    "rotary embeddings": {
        "options": {"model.name": "vit_small_patch16_dinov3", "model.timm_args": SMALL_MODEL},
    },
}
"""Trainings whose steps could wait, as arguments of ``train_small``."""
MAX_SLOWER = 1.2
"""How many times as long as flash attention torch's choice may take."""
NEW_SIZES = 20
"""How many batch sizes are tried that no batch had before."""


@check(
    "waits",
    "fast",
    "In training steps that are not logged the host never waits for the GPU: with averaged weights, class weights, "
    "rotary embeddings, DDP, and images that choose their order.",
    seconds=80,
    needs_gpu=True,
)
def waits(setting: Setting) -> Outcome:
    """Train with each of TRAININGS, and let torch raise an error where the host waits."""
    for name, arguments in TRAININGS.items():
        options = {
            "model.compile": False,
            "trainer.accelerator": setting.trainer,
            "trainer.max_steps": ForbidWaits.LAST + 2,
            "trainer.log_every_n_steps": 1000,
            # With so many images, the epoch ends after the steps that are watched. Its end is logged, and so waits.
            "data.images_per_class": 60,
            "data.batch_size": 24,
            "trainer.limit_val_batches": 0,
            "trainer.callbacks+": "layershuffle.gpu_check.waits.ForbidWaits",
            **arguments.get("options", {}),
        }
        try:
            train_small(setting, **{**arguments, "options": options})
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            raise WrongResultError(f"{name}: a training step waited for the GPU") from error
        # Lightning leaves the process group of DDP to the end of the process.
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return Outcome(f"{len(TRAININGS)} kinds of training, none of which waits")


class ForbidWaits(pl.Callback):
    """Lets torch raise an error where the host waits for the GPU, between the steps FIRST and LAST."""

    FIRST = 5
    LAST = 15

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Forbid waiting after the step FIRST, and allow it again after the step LAST."""
        if pl_module.device.type != "cuda":
            return
        if trainer.global_step == self.FIRST:
            torch.cuda.set_sync_debug_mode("error")
        if trainer.global_step == self.LAST:
            torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        """Allow waiting again, because Lightning's clean-up after an error waits."""
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")


@check(
    "attention",
    "fast",
    "The attention that torch chooses is as fast as flash attention, also where every batch has another size, as the "
    "groups of images do that choose their order; cuDNN's prepares each size anew.",
    seconds=30,
    needs_gpu=True,
)
def attention(setting: Setting) -> Outcome:
    """Time the attention of ViT-B/16 with batches of one size and of many, by each backend."""
    backends = {"torch's choice": None, "flash": SDPBackend.FLASH_ATTENTION}
    if setting.is_gpu:
        backends["cuDNN"] = SDPBackend.CUDNN_ATTENTION
    times = {name: _times(setting, backend) for name, backend in backends.items()}

    rows = [f"{name} {row['one size']:.2f} ms, {row['new sizes']:.2f} for new sizes" for name, row in times.items()]
    slow = []
    for sizes in ("one size", "new sizes"):
        ratio = times["torch's choice"][sizes] / times["flash"][sizes]
        if setting.is_gpu and ratio > MAX_SLOWER:
            slow.append(f"flash is {ratio:.1f} times as fast with {sizes}")
    missed = ""
    if slow:
        missed = f"{' and '.join(slow)}: torch.backends.cuda.enable_cudnn_sdp(False) chooses it"
    return Outcome("; ".join(rows), missed, times)


def _times(setting: Setting, backend: SDPBackend | None) -> dict[str, float]:
    """Milliseconds of a forward and backward pass: the median over batches of one size, and over sizes that are new."""
    largest = 256 if setting.is_gpu else 4
    heads, tokens, size = (12, 197, 64) if setting.is_gpu else (2, 17, 16)
    qkv = torch.randn(3, largest, heads, tokens, size, device=setting.device, dtype=torch.bfloat16, requires_grad=True)

    def milliseconds(batch: int) -> float:
        return 1000 * seconds(lambda: _run_attention(qkv[:, :batch]), setting.device)

    with sdpa_kernel(backend) if backend else nullcontext():
        # The first three passes load the kernels, and aren't counted.
        one_size = [milliseconds(largest) for _ in range(3 + NEW_SIZES)][3:]
        # The new sizes are only a little smaller, so that their times can be compared with those of the one size.
        smallest = max(1, largest - NEW_SIZES)
        new_sizes = [milliseconds(batch) for batch in range(largest - 1, smallest - 1, -1)]
    return {"one size": statistics.median(one_size), "new sizes": statistics.median(new_sizes)}


def _run_attention(qkv: Tensor) -> None:
    """Run attention forward and backward, for queries, keys and values [3, batch, heads, tokens, size]."""
    query, key, value = qkv.unbind()
    F.scaled_dot_product_attention(query, key, value).sum().backward()
