"""Two processes on the CPU: the same numbers as one, however the work is split between them."""

import itertools
import math
import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import preloaded
import pytest
import torch
from helpers import ROOT, SMALL, batches
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from test_resume import assert_same, rows, state
from two_processes import FINETUNE, PARTS, SCORED, data, pixels_of, trainer, tuner

import layershuffle
from layershuffle.api.compose import compose
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.data.samplers import evaluation_batches
from layershuffle.orders.order import Order
from layershuffle.orders.samplers import LayerDrop, Shuffle
from layershuffle.results.measures import Disagreement
from layershuffle.training.distributed import is_replicated, samples_own_orders, unused_parameters
from layershuffle.training.objectives import Classification

# Those of the module of two_processes.py.
SEED = 5
DEPTH = SMALL["depth"]


class TwoProcesses(NamedTuple):
    """What ran in two processes: what each of them saw, and the folder of the checkpoints."""

    said: list[dict]
    folder: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Runs two_processes.py, which is killed at first; returns what each of the processes then saw."""
    folder = tmp_path_factory.mktemp("two")
    python = preloaded.python()
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def run(argument):
        command = [*torchrun, python, str(ROOT / "tests/training/two_processes.py"), argument]
        return subprocess.run(
            command, cwd=folder, env=environment, check=False, capture_output=True, text=True, timeout=280
        )

    killed = run("killed")
    # torchrun's report has columns, so the number of spaces varies.
    assert "exitcode:-9" in killed.stderr.replace(" ", ""), killed.stderr
    finished = run(str(folder))
    assert finished.returncode == 0, finished.stderr
    return TwoProcesses([torch.load(folder / f"{rank}.pt") for rank in (0, 1)], folder)


def orders(rank):
    """The orders that the module of two_processes.py must run in six steps on a process."""
    return [str(LayerDrop(0.5).sample_step(DEPTH, SEED, step, rank)) for step in range(6)]


def test_processes_draw_orders_of_their_own(two):
    for rank, said in enumerate(two.said):
        assert [step["order"] for step in said["ddp"]] == orders(rank)
    assert orders(rank=0) != orders(rank=1)


def test_a_gradient_is_the_mean_of_those_of_single_processes(two):
    """The first step, before the weights change; of layers dropped by one process, and by both, too."""
    first_steps = [said["ddp"][0] for said in two.said]
    images_of_processes = [step["batch"][0] for step in first_steps]
    assert not torch.equal(*images_of_processes)

    # The gradients of each process by itself, None for layers that it dropped.
    module = tuner()
    module.train()
    singles = []
    for step in first_steps:
        images, labels = step["batch"]
        assert len(labels) == 16
        module.zero_grad()
        logits = module.model(images, step["order"]).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        gradients = {}
        for name, parameter in module.named_parameters():
            gradients[name] = None if parameter.grad is None else parameter.grad.clone()
        singles.append(gradients)

    numbers_of_gradients = set()
    for name in singles[0]:
        of_processes = [gradients[name] for gradients in singles if gradients[name] is not None]
        numbers_of_gradients.add(len(of_processes))
        for step in first_steps:
            mean = step["gradients"][name]
            if of_processes:
                torch.testing.assert_close(mean, sum(of_processes) / 2, rtol=1e-5, atol=1e-7)
            else:
                assert mean is None
    # All three kinds of layers were there: dropped by both processes, by one and by none.
    assert numbers_of_gradients == {0, 1, 2}


def test_every_step_updates_what_any_process_ran(two):
    first, second = [said["ddp"] for said in two.said]
    for one, other in zip(first, second):
        ran = Order(one["order"]).layers | Order(other["order"]).layers
        for layer in range(DEPTH):
            name = f"model.vit.blocks.{layer}.mlp.fc1.weight"
            assert (one["gradients"][name] is not None) == (layer in ran)
        for name, gradient in one["gradients"].items():
            assert (gradient is None) == (other["gradients"][name] is None)
            assert gradient is None or torch.equal(gradient, other["gradients"][name])


def test_validation_counts_every_image_once(two):
    """The same as one process's: 43 images in batches of 32, the second of which is 5 and 6 images."""
    module = tuner()
    module.load_state_dict(torch.load(two.folder / "same order.ckpt", weights_only=True)["state_dict"])
    alone = trainer("auto", devices=1)
    alone.validate(module, datamodule=data(), verbose=False)

    for name in ("val/sequential", "val/arbitrary", "val/loss"):
        expected = pytest.approx(float(alone.callback_metrics[name]), rel=1e-6)
        for said in two.said:
            assert said["same order"]["metrics"][name] == expected


def test_all_processes_see_the_same_means(two):
    """A callback that watches them, such as EarlyStopping, must decide the same in all processes."""
    first, second = [said["validated"] for said in two.said]
    assert {"train/loss", "train/accuracy", "val/loss"} <= first.keys()
    assert first == second


def test_sharded_processes_run_the_same_order_and_learn_the_same(two):
    first, second = [said["sharded"] for said in two.said]
    replica = two.said[0]["same order"]
    assert first["orders"] == second["orders"] == replica["orders"] == orders(rank=0)
    for name, value in replica["weights"].items():
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-6)

    saved = torch.load(two.folder / "sharded.ckpt", weights_only=True)["state_dict"]
    for name, value in first["weights"].items():
        assert torch.equal(saved[name], value)
    assert first["metrics"]["val/loss"] == pytest.approx(replica["metrics"]["val/loss"], rel=1e-4)


@pytest.mark.parametrize(("kind", "ranks"), [("own", 4), ("same", 2), ("parts sharded", 2)])
def test_all_processes_count_what_all_of_them_run(two, kind, ranks):
    """With two orders a batch; every update counts for the mean of the orders that it averages."""
    planned_steps = 3
    images_per_step = 32  # 16 for each process

    used = 0.0
    layers_of_steps = []
    while used < planned_steps:
        step = len(layers_of_steps)
        drawn = [PARTS["sampler"].sample_step(DEPTH, SEED, step, rank, used / planned_steps) for rank in range(ranks)]
        mean_layers = statistics.fmean(map(len, drawn))
        layers_of_steps.append(mean_layers)
        used += mean_layers / DEPTH

    expected = {
        "images": images_per_step * len(layers_of_steps),
        "updates": len(layers_of_steps),
        "layer_executions": images_per_step * sum(layers_of_steps),
        "full_steps": used,
        "seconds": 0,
    }
    for said in two.said:
        assert said[kind]["compute"] == pytest.approx(expected)


def test_sharded_parts_of_a_batch_learn_the_same(two):
    for said in two.said:
        for name, value in said["same"]["weights"].items():
            torch.testing.assert_close(said["parts sharded"]["weights"][name], value, rtol=1e-4, atol=1e-6)


def test_wrong_combinations_are_refused_before_the_first_step(two):
    for said in two.said:
        own, halves, choices = said["refused"]
        assert "would wait for each other for ever in different orders: leave out orders_per_process" in own
        assert "gathers whole layers, so orders of their halves need the strategy ddp" in halves
        assert "InstanceWise can't be trained with ModelParallelStrategy" in choices


def test_all_processes_stop_after_the_same_step_and_go_on(two):
    """Only the second was told to stop, in the seventh step."""
    # The first one's code is the run's: of others that fail, it could be killed before it is done.
    assert [said["stopped"] for said in two.said] == [128 + signal.SIGTERM, 0]
    for said in two.said:
        assert said["stopped at"] == 7
        assert said["ended at"] == 22
    lines = (two.folder / "runs/version_0/metrics.csv").read_text().splitlines()
    # The heading, two rows for each step (its learning rate and its losses) and one for each of two validations.
    assert len(lines) == 1 + 2 * 22 + 2


def test_killed_and_resumed_it_ends_as_without_the_kill(two):
    """The recipe finetune, killed in the sixteenth step; the last checkpoint is two steps older."""
    for said in two.said:
        assert said["killed after"] == 14

    killed = two.folder / "killed/version_0"
    whole = two.folder / "whole/version_0"
    for name in ("best.ckpt", "last.ckpt"):
        state_of_killed = state(killed / "checkpoints" / name)
        assert "current_model_state" in state_of_killed  # beside the averaged weights
        assert_same(state_of_killed, state(whole / "checkpoints" / name), name)
    assert rows(killed / "metrics.csv") == rows(whole / "metrics.csv")


def test_processes_see_the_pixels_that_one_process_sees(two):
    # The same command without its options for two processes, as far as the first batch.
    command = [option for option in FINETUNE if "ddp" not in option and "devices" not in option]
    alone = compose(command)
    alone.data.trainer = SimpleNamespace(
        lightning_module=alone.model,
        training=False,
        world_size=1,
        global_rank=0,
        strategy=alone.trainer.strategy,
    )
    alone.data.setup()
    images, _ = batches(alone.data.train_dataloader())
    seen_by_one = set(pixels_of(images))

    first, second = [said["pixels"] for said in two.said]
    assert len(first) == len(second) == 11 * 16
    # The 8 images of the 360 that make no whole batch are not the same for one process and for two.
    assert len(set(first + second) - seen_by_one) <= 8
    assert not set(first) & set(second)


def test_two_process_evaluation_is_that_of_one(two, monkeypatch):
    monkeypatch.chdir(two.folder)
    alone = evaluate_command(["runs/version_0/checkpoints/last.ckpt", *SCORED])
    (disagreement_of_one,) = alone.measure(Disagreement).to_json()["groups"]

    for said in two.said:
        (disagreement_of_two,) = said["together"]["groups"]
        for name, value in disagreement_of_one.items():
            expected = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            assert disagreement_of_two[name] == expected, name

        # The sequential order, and of the arbitrary ones three fixed orders and one for each batch.
        assert len(said["scores"]) == 5
        for score, (images, top1, top5, loss) in zip(alone.scores, said["scores"]):
            assert (score.images, score.top1, score.top5) == (images, top1, top5)
            assert score.images == 65
            assert score.loss == pytest.approx(loss, rel=1e-6)


# --- Without processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch_size", "ranks"), [(359, 128, 2), (10, 4, 3), (9, 4, 4), (8, 8, 1)])
def test_each_image_is_read_once_by_one_process(images, batch_size, ranks):
    batches_of_ranks = [evaluation_batches(images, batch_size, ranks, rank) for rank in range(ranks)]
    for batches_of_rank in batches_of_ranks:
        assert len(batches_of_rank) == math.ceil(images / batch_size)

    # What the processes read together are the batches that one process would read.
    together = [list(itertools.chain(*parts)) for parts in zip(*batches_of_ranks)]
    all_images = range(images)
    expected = [list(all_images[first : first + batch_size]) for first in range(0, images, batch_size)]
    assert together == expected


def test_more_processes_than_images_are_refused():
    with pytest.raises(ValueError, match="4 processes can't share batches of 3 images"):
        evaluation_batches(3, 8, 4, 0)


@pytest.mark.parametrize("position", ["none", "encode", "encode per_layer", "predict"])
@pytest.mark.parametrize("orders", [["0 2"], ["0a 2f", "1 2a"], [""], ["3 1 2 0"], ["(0|1)", "2f"]])
def test_unused_parameters_are_those_without_gradients(small, images, position, orders):
    position, _, table = position.partition(" ")
    model = small(position=position, positions=4, position_table=table or "shared").train()
    total = 0
    for order in orders:
        output = model(images, order)
        total = total + output.logits.sum()
        if output.position_logits is not None:
            total = total + output.position_logits.sum()
    total.backward()

    unused = {id(parameter) for parameter in unused_parameters(model, map(Order, orders))}
    without_gradient = {id(parameter) for parameter in model.parameters() if parameter.grad is None}
    assert unused == without_gradient


def test_the_strategy_decides_which_processes_sample_orders():
    objective = Classification()
    shuffled = [Shuffle().sample_step(DEPTH, 0, 0)]

    # By default, and unless told otherwise, replicas sample their own orders.
    assert samples_own_orders(DDPStrategy(), None, objective, shuffled) is True
    assert samples_own_orders(DDPStrategy(), True, objective, shuffled) is True
    assert samples_own_orders(DDPStrategy(), False, objective, shuffled) is False

    # Processes that share the weights must run the same layer at the same time.
    assert samples_own_orders(ModelParallelStrategy(), None, objective, shuffled) is False
    assert samples_own_orders(ModelParallelStrategy(), False, objective, shuffled) is False


@pytest.mark.parametrize(("strategy", "waits"), [(DDPStrategy(), True), (SingleDeviceStrategy("cpu"), False)])
def test_the_strategy_decides_which_gradients_are_waited_for(strategy, waits):
    assert is_replicated(strategy) is waits


def test_ddp_with_one_process_trains_a_method_that_leaves_layers_out(tmp_path):
    command = [preloaded.python(), "-m", "layershuffle", "train", "mini_digits", "digits", "layerdrop", "cpu", "ddp"]
    command += ["--trainer.devices=1", "--trainer.max_steps=6", "--trainer.limit_val_batches=0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    # Below the ports that the system gives to others, of which Lightning would take one that another test may have got.
    environment["MASTER_PORT"] = str(20_000 + os.getpid() % 10_000)
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_only_evaluation_runs_under_torchrun(monkeypatch, two):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    checkpoint = str(two[1] / "runs/version_0/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match="only layershuffle evaluate shares its work between processes"):
        layershuffle.similarity(checkpoint)
