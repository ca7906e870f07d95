"""What test_distributed.py runs under torchrun, in two processes on the CPU; each writes what it saw to a file."""

import os
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from helpers import QUIET, SMALL, configs
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
    *configs("model/mini_digits", "data/digits", "trainer/cpu", "method/layerdrop", "trainer/ddp"),
    *QUIET,
    "--trainer.devices=2",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--data.batch_size=16",
    "--data.train_images=400",
    "--model.timm_args.depth=3",
    "--resume",
]
"""A training of 22 steps: without the held-out images, 360 of the 400 are left, and each process reads 11 whole batches
of 16 in each of the two epochs."""
FINETUNE = [*RUN, *configs("recipe/finetune"), "--save_every_n_steps=2", "--data.workers=1"]
PARTS = {"sampler": GrowingDepth(k0=1), "orders_per_batch": 2, "budget": "layer_executions", "optimizer": Muon}
"""Options of the module with which each process runs each half of its batch in another order."""
SCORED = ["--protocols", "sequential", "arbitrary", "--random_orders=3", "--data.test_images=65"]
"""Options of the evaluation. An odd number of images can't be shared equally."""


class Steps(pl.Callback):
    """Notes the batch, the order and the gradients of every step."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        def note(_, args):
            if module.training:
                self.seen.append({"order": str(Order(args[1]))})

        module.model.register_forward_pre_hook(note)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        gradients = {}
        for name, parameter in module.named_parameters():
            gradients[name] = None if parameter.grad is None else full(parameter.grad).clone()
        self.seen[-1]["batch"] = batch
        self.seen[-1]["gradients"] = gradients


def full(tensor):
    """The whole of a tensor, of which each process may hold a shard."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def tuner(**arguments):
    """An untrained module with a small model that drops layers; ``arguments`` replace the default ones."""
    torch.manual_seed(0)
    defaults = {
        "name": "vit_tiny_patch16_224",
        "num_classes": 10,
        "timm_args": SMALL,
        "seed": 5,
        "position": "encode",
        "sampler": LayerDrop(0.5),
    }
    return FineTuner(**(defaults | arguments))


def trainer(strategy="ddp", **arguments):
    """A quiet trainer of six steps that writes no files; ``arguments`` replace the default ones."""
    defaults = {
        "accelerator": "cpu",
        "strategy": strategy,
        "use_distributed_sampler": False,
        "max_epochs": 1,
        "limit_train_batches": 6,
        "limit_val_batches": 1.0,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**(defaults | arguments))


def sharded():
    """The strategy in which each of the two processes holds half of every weight."""
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)


def data():
    """The digits, of which 43 are validation images: a number that two processes can't share equally."""
    return Digits(batch_size=16, eval_batch_size=32, val_fraction=0.13, train_images=330)


def weights(module):
    """A copy of the whole weights."""
    return {name: full(value).clone() for name, value in module.state_dict().items()}


def send_in_step(step, number):
    """Let this process get the signal ``number`` in this step of the trainings that follow."""
    original = FineTuner.training_step

    def training_step(module, batch, batch_idx):
        if module.global_step == step:
            os.kill(os.getpid(), number)
        return original(module, batch, batch_idx)

    FineTuner.training_step = training_step


def killed():
    """Begin a run and kill both processes in the second epoch, in a step after which nothing was saved yet."""
    send_in_step(15, signal.SIGKILL)
    train_command([*FINETUNE, "--trainer.default_root_dir=killed"])


def pixels_of(images):
    """The images as values that a set can hold."""
    return [image.numpy().tobytes() for image in images]


def go_on(said):
    """Go on with the run that was killed, and train another one without interruption, whose pixels are noted."""
    said["killed after"] = global_step("killed/version_0")
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


def global_step(run):
    """The step of the last checkpoint of the run in this folder."""
    return torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["global_step"]


def train_replicas(said):
    """DDP, each process with its own orders."""
    steps = Steps()
    run = trainer(devices=2, callbacks=[steps])
    run.fit(tuner(), datamodule=data())
    said["ddp"] = steps.seen
    said["validated"] = {name: float(value) for name, value in run.callback_metrics.items()}


def train_in_the_same_orders(said, out):
    """DDP and sharded, all processes with the same orders."""
    replicas = tuner(orders_per_process=False)
    said["same order"] = train_in_one_order("ddp", replicas, out / "same order.ckpt")

    strategy = sharded()
    strategy.checkpoint_io = WholeCheckpointIO()
    # Processes that share the weights have the same orders without being told to.
    said["sharded"] = train_in_one_order(strategy, tuner(), out / "sharded.ckpt")


def train_in_one_order(strategy, module, checkpoint):
    """Train and save a checkpoint; returns the orders of the steps, the weights and the metrics."""
    steps = Steps()
    run = trainer(strategy, devices=2, callbacks=[steps])
    run.fit(module, datamodule=data())
    run.save_checkpoint(checkpoint)
    return {
        "orders": [step["order"] for step in steps.seen],
        "weights": weights(module),
        "metrics": {name: float(value) for name, value in run.callback_metrics.items()},
    }


def train_in_parts(said):
    """Several orders in a batch, and a budget of layer executions."""
    trainings = [
        ("own", "ddp", None),
        ("same", "ddp", False),
        ("parts sharded", sharded(), None),
    ]
    for name, strategy, orders_per_process in trainings:
        module = tuner(**PARTS, orders_per_process=orders_per_process)
        trainer(strategy, devices=2, limit_train_batches=3, limit_val_batches=0).fit(module, datamodule=data())
        said[name] = {"compute": vars(module.compute), "weights": weights(module)}


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
    if rank == 1:
        send_in_step(6, signal.SIGTERM)
    try:
        train_command(RUN)
    except SystemExit as stop:
        said["stopped"] = stop.code
    said["stopped at"] = global_step("runs/version_0")

    FineTuner.training_step = original
    said["ended at"] = train_command(RUN).trainer.global_step


def main(out):
    """Run everything; writes what this process saw to the folder ``out``."""
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
    if sys.argv[1] == "killed":
        killed()
    else:
        main(Path(sys.argv[1]))
