"""What test_distributed.py runs under torchrun, in two processes on the CPU; each writes what it saw to a file."""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from helpers import ROOT, SMALL
from lightning.pytorch.strategies import ModelParallelStrategy

from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.train import train_command
from layershuffle.data import Digits
from layershuffle.errors import UserError
from layershuffle.orders.order import Order
from layershuffle.orders.samplers import GrowingDepth, LayerDrop, Shuffle
from layershuffle.results.measures import Disagreement
from layershuffle.training.checkpointing import WholeCheckpointIO
from layershuffle.training.module import FineTuner
from layershuffle.training.muon import Muon
from layershuffle.training.objectives import InstanceWise

RUN = [
    *(f"--config={ROOT}/configs/{name}.yaml" for name in ("model/mini_digits", "data/digits", "trainer/cpu")),
    *(f"--config={ROOT}/configs/{name}.yaml" for name in ("method/layerdrop", "trainer/ddp")),
    *(
        "--trainer.devices=2",
        "--trainer.max_epochs=2",
        "--data.batch_size=16",
        "--data.train_images=400",
        "--model.timm_args.depth=3",
    ),
    *("--trainer.enable_progress_bar=false", "--resume", "--trainer.log_every_n_steps=1"),
]
FINETUNE = [*RUN, f"--config={ROOT}/configs/recipe/finetune.yaml", "--save_every_n_steps=2", "--data.workers=1"]
PARTS = {"sampler": GrowingDepth(k0=1), "orders_per_batch": 2, "budget": "layer_executions", "optimizer": Muon}
SCORED = ["--protocols", "sequential", "arbitrary", "--random_orders=3", "--data.test_images=65"]


class Steps(pl.Callback):
    """The batch, the order and the gradients of every step."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        def note(_, args):
            if module.training:
                self.seen.append({"order": str(Order(args[1]))})

        module.model.register_forward_pre_hook(note)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        grads = {name: parameter.grad for name, parameter in module.named_parameters()}
        self.seen[-1] |= {
            "batch": batch,
            "grads": {name: None if grad is None else full(grad).clone() for name, grad in grads.items()},
        }


def full(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def tuner(**arguments):
    torch.manual_seed(0)
    defaults = {"name": "vit_tiny_patch16_224", "num_classes": 10, "timm_args": SMALL, "seed": 5, "position": "encode"}
    return FineTuner(**defaults | {"sampler": LayerDrop(0.5)} | arguments)


def trainer(strategy="ddp", **arguments):
    return pl.Trainer(
        **{"accelerator": "cpu", "strategy": strategy, "use_distributed_sampler": False, "max_epochs": 1},
        **{"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0},
        **{"enable_checkpointing": False, "limit_train_batches": 6, "limit_val_batches": 1.0, **arguments},
    )


def sharded():
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)


def data():
    return Digits(batch_size=16, eval_batch_size=32, val_fraction=0.13, train_images=330)


def weights(module):
    return {name: full(value).clone() for name, value in module.state_dict().items()}


def killed():
    """Begin a run and kill both processes in the second epoch, in a step after which nothing was saved yet."""
    original = FineTuner.training_step

    def step(module, batch, batch_idx):
        if module.global_step == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(module, batch, batch_idx)

    FineTuner.training_step = step
    train_command([*FINETUNE, "--trainer.default_root_dir=killed"])


def pixels_of(images):
    return [image.numpy().tobytes() for image in images]


def go_on(said):
    """Go on with the run that was killed, and train another one without interruption, whose pixels are noted."""
    said["killed after"] = torch.load("killed/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"]
    train_command([*FINETUNE, "--trainer.default_root_dir=killed"])
    said["pixels"] = []
    original = FineTuner.on_after_batch_transfer

    def noted(module, batch, dataloader_idx):
        if module.trainer.training and module.current_epoch == 0:
            said["pixels"] += pixels_of(batch[0])
        return original(module, batch, dataloader_idx)

    FineTuner.on_after_batch_transfer = noted
    train_command([*FINETUNE, "--trainer.default_root_dir=whole"])
    FineTuner.on_after_batch_transfer = original


def train_replicas(said):
    """DDP, each process with its own orders."""
    steps = Steps()
    run = trainer(devices=2, callbacks=[steps])
    run.fit(tuner(), datamodule=data())
    said["ddp"] = steps.seen
    said["validated"] = {name: float(value) for name, value in run.callback_metrics.items()}


def train_in_the_same_orders(said, out):
    """DDP and sharded, all processes with the same orders."""
    for name, strategy in {"same order": "ddp", "sharded": sharded()}.items():
        steps = Steps()
        module = tuner(orders_per_process=False if strategy == "ddp" else None)
        run = trainer(strategy, devices=2, callbacks=[steps])
        if strategy != "ddp":
            strategy.checkpoint_io = WholeCheckpointIO()
        run.fit(module, datamodule=data())
        run.save_checkpoint(out / f"{name}.ckpt")
        metrics = {name: float(value) for name, value in run.callback_metrics.items()}
        said[name] = ([step["order"] for step in steps.seen], weights(module), metrics)


def train_in_parts(said):
    """Several orders in a batch, and a budget of layer executions."""
    for name, strategy, own in (("own", "ddp", None), ("same", "ddp", False), ("parts sharded", sharded(), None)):
        module = tuner(**PARTS, orders_per_process=own)
        trainer(strategy, devices=2, limit_train_batches=3, limit_val_batches=0).fit(module, datamodule=data())
        said[name] = (vars(module.compute), weights(module))


def try_what_is_refused(said):
    """Sharded, what must run in DDP."""
    said["refused"] = []
    for arguments in (
        {"orders_per_process": True},
        {"order": "sublayers", "sampler": Shuffle()},
        {"choices": ["sequential", "reverse(0)"], "objective": InstanceWise()},
    ):
        try:
            trainer(sharded(), devices=2).fit(tuner(**arguments), datamodule=data())
        except UserError as error:
            said["refused"].append(str(error))


def stop_and_go_on(said, rank):
    """Tell the second process to stop in the seventh step, and train to the end with the same command."""
    original = FineTuner.training_step

    def preempted(module, batch, batch_idx):
        if module.global_step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(module, batch, batch_idx)

    if rank == 1:
        FineTuner.training_step = preempted
    try:
        train_command(RUN)
    except SystemExit as stop:
        said["stopped"] = stop.code
    said["stopped at"] = torch.load("runs/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"]
    FineTuner.training_step = original
    said["ended at"] = train_command(RUN).trainer.global_step


def main(out):
    rank = int(os.environ["RANK"])
    said = {}
    go_on(said)
    train_replicas(said)
    train_in_the_same_orders(said, out)
    train_in_parts(said)
    try_what_is_refused(said)
    stop_and_go_on(said, rank)
    results = evaluate_command(["runs/version_0/checkpoints/last.ckpt", *SCORED])
    said["scores"] = [(score.images, score.top1, score.top5, score.loss) for score in results.scores]
    said["together"] = results.measure(Disagreement).to_json()
    torch.save(said, out / f"{rank}.pt")


if __name__ == "__main__":
    killed() if sys.argv[1] == "killed" else main(Path(sys.argv[1]))
