"""Attributes of other libraries that are not part of their public interface, all in this place.

Each entry says why there is no public way and with which version it was checked; tests/test_private_apis.py tests that
it still exists.
"""

from __future__ import annotations

import functools
import pkgutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # All rooms use this module, and not all of them need these libraries, which are slow to import.
    from collections.abc import Iterator

    import lightning.pytorch as pl
    from lightning.fabric import Fabric
    from lightning.pytorch.callbacks import WeightAveraging
    from lightning.pytorch.loggers import WandbLogger
    from torch import Tensor, nn
    from torch.optim import Optimizer


def allow_clipping_of_scaled_gradients(optimizer: Optimizer) -> None:
    """Make the gradient scaler of fp16 unscale the gradients before the optimizer's step instead of within it.

    torch 2.15: fused optimizers announce with this attribute that they can unscale gradients themselves, and Lightning
    then refuses to clip them.
    """
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def begin_next_epoch(trainer: pl.Trainer) -> None:
    """Make a run that was resumed from the end of an epoch begin the next one.

    Lightning 2.6.6: with ``max_steps`` it would run the finished epoch once more, because it counts the epoch as
    completed only after the checkpoint was written.
    """
    loop = trainer.fit_loop
    if not loop.restarted_on_epoch_end:
        return
    # This is what Lightning does at the end of an epoch, once its checkpoint is written.
    loop.epoch_progress.increment_completed()
    for part in (loop, loop.epoch_loop):
        part._restarting = False
        part.reset_restart_stage()


def skip_lightnings_agreement_on_signals(trainer: pl.Trainer) -> None:
    """Keep Lightning from asking all processes in every step whether one has received SIGTERM.

    Lightning 2.6.6: that waits for the device in every step. ``LastCheckpoint`` asks without it.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def average_without_waiting(callback: WeightAveraging) -> None:
    """Make the averages of a run that begins count their updates on the host.

    Lightning 2.6.6 keeps torch's ``AveragedModel`` only here. torch 2.15: that keeps the number of its updates on the
    device, and asks for it twice in every update, which waits for the device. The averages stay the same bit for bit.
    """
    import torch

    # Without a function for a single parameter, torch averages all of them at once, which is left as it is.
    average: Any = callback._average_model
    if average.avg_fn is None:
        return
    # The first update only copies, as torch's does, and buffers are always copied unless they are averaged, too.
    updates = int(average.n_averaged)

    def update(averaged: Tensor, current: Tensor, is_average: bool) -> None:
        value = current.detach().to(averaged.device)
        if is_average and updates:
            value = average.avg_fn(averaged, value, updates)
        averaged.copy_(value)

    @torch.no_grad()
    def update_parameters(model: nn.Module) -> None:
        nonlocal updates
        for averaged, current in zip(average.module.parameters(), model.parameters(), strict=True):
            update(averaged, current, is_average=True)
        for averaged_buffer, buffer in zip(average.module.buffers(), model.buffers(), strict=True):
            update(averaged_buffer, buffer, is_average=average.use_buffers)
        updates += 1
        average.n_averaged += 1

    average.update_parameters = update_parameters


def saves_many_files(strategy: Any) -> bool:
    """Whether a ``ModelParallelStrategy`` writes a checkpoint as a folder.

    Lightning 2.6.6: it keeps its argument ``save_distributed_checkpoint`` only here.
    """
    return bool(strategy._save_distributed_checkpoint)


def set_wandb_mode(logger: WandbLogger, mode: str) -> None:
    """Change the mode, such as "offline", of a W&B run that has not begun.

    Lightning 2.6.6: the logger takes its mode when it is made, but only when it begins a run is it known whether W&B
    can be reached.
    """
    logger._wandb_init["mode"] = mode


def leave_out_anonymous(logger: WandbLogger) -> None:
    """Keep a logger from asking for a setting that W&B has no more, of which W&B warns in every run.

    Lightning 2.6.6: the logger passes it on, with its default, also if nobody has asked for it.
    """
    logger._wandb_init.pop("anonymous", None)


def adds_distributed_sampler(trainer: pl.Trainer) -> bool:
    """Whether the trainer puts a sampler of its own into the loaders of several processes.

    Lightning 2.6.6: it keeps its argument ``use_distributed_sampler`` only here.
    """
    return bool(trainer._accelerator_connector.use_distributed_sampler)


@contextmanager
def ray_keeps_loopback_addresses() -> Iterator[None]:
    """Let Ray start, or look for, a cluster on the loopback address meanwhile.

    Ray 2.60: it replaces the loopback address by one that other machines can reach. A cluster that it starts would
    listen there, and one that listens on loopback would be looked for there, for ever. The only public way to prevent
    this is the environment variable RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which comes too late if the program has
    imported ray already. With 127.0.0.2, which Ray doesn't replace, it would listen on all interfaces.
    """
    from ray._private import services

    resolve = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = resolve


def start_ray_on_loopback(**options: Any) -> None:
    """Start a Ray cluster on this machine, without a dashboard, that only this machine can reach.

    Ray 2.60: ``ray.init`` takes the address to listen on only by this private argument. It also needs
    ``ray_keeps_loopback_addresses``.

    Args:
        options: other arguments of ``ray.init``.
    """
    import ray

    ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **options)


def keep_ray_from_printing() -> None:
    """Keep Ray from printing to stdout what its processes report, such as the death of one.

    Ray 2.60: ``log_to_driver=False`` leaves these reports out of account, and no option of ``ray.init`` is about them.
    """
    from ray._private import worker

    worker._worker_logs_enabled = False


def list_onnx_functions_once() -> None:
    """Let all ONNX exports of this process use one list of the functions that onnxscript has for torch's operators.

    torch 2.15, onnxscript 0.7.2: each export asks for the list, and each time onnxscript parses the source code of 500
    functions anew. That takes about as long as to export one layer. Of other versions nothing is changed that isn't
    there.
    """
    from torch.onnx._internal.exporter import _registration

    apis: Any = getattr(_registration, "onnxscript_apis", None)
    list_functions = getattr(apis, "get_torchlib_ops", None)
    if list_functions is not None and not hasattr(list_functions, "cache_info"):
        apis.get_torchlib_ops = functools.cache(list_functions)


def embed_patches(vit: nn.Module, patches: Tensor) -> Any:
    """Add position embeddings, class tokens and registers to the embedded patches of a timm model.

    timm 1.0.31: its public methods run the layers, too. ``VisionTransformer`` returns the tokens; ``Eva`` returns the
    tokens and the rotary embeddings, or None if it has none.
    """
    return vit._pos_embed(patches)  # type: ignore[operator]


def classes_of_imagenet_set(letter: str) -> list[str]:
    """The WordNet ids of the 200 classes of ImageNet-A ("a") or -R ("r"), in the sequence of ImageNet's labels.

    timm 1.0.31 carries them for its own results; ``ImageNetInfo`` has no name for these sets.
    """
    content = pkgutil.get_data("timm.data", f"_info/imagenet_{letter}_synsets.txt")
    assert content is not None
    return content.decode().split()


def precision_of(fabric: Fabric) -> str:
    """The precision that a fabric computes in, such as "bf16-mixed": the one asked for, or what the device has instead.

    Lightning 2.6.6: ``Fabric`` has no property for it.
    """
    return str(fabric._precision.precision)
