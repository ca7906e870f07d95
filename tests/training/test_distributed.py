"""Two processes on the CPU: the same numbers as one, however the work is split between them."""

import os
import statistics
import subprocess
import sys
from types import SimpleNamespace

import preloaded
import pytest
import torch
from helpers import ROOT, batches
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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two processes saw; and the folder in which they ran."""
    folder = tmp_path_factory.mktemp("two")
    python = preloaded.python()
    command = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command += [python, str(ROOT / "tests/training/two_processes.py")]
    path = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    how = {"cwd": folder, "env": path, "capture_output": True, "text": True, "timeout": 280}
    done = subprocess.run([*command, "killed"], check=False, **how)
    assert "exitcode: -9" in done.stderr.replace(" ", "").replace("exitcode:", "exitcode: "), done.stderr
    done = subprocess.run([*command, str(folder)], check=False, **how)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)], folder


def orders(seed, steps, rank):
    return [str(LayerDrop(0.5).sample_step(4, seed, step, rank)) for step in range(steps)]


def test_processes_draw_orders_of_their_own(two):
    for rank, said in enumerate(two[0]):
        assert [step["order"] for step in said["ddp"]] == orders(5, 6, rank)
    assert orders(5, 6, 0) != orders(5, 6, 1)


def test_a_gradient_is_the_mean_of_those_of_single_processes(two):
    """The first step, before the weights change; of layers dropped by one process, and by both, too."""
    module = tuner()
    module.train()
    singles = []
    for said in two[0]:
        step = said["ddp"][0]
        module.zero_grad()
        images, labels = step["batch"]
        assert len(labels) == 16
        logits = module.model(images, step["order"]).logits
        torch.nn.functional.cross_entropy(logits, labels).backward()
        singles.append({name: p.grad if p.grad is None else p.grad.clone() for name, p in module.named_parameters()})
    assert not torch.equal(two[0][0]["ddp"][0]["batch"][0], two[0][1]["ddp"][0]["batch"][0])
    kinds = set()
    for name, first in singles[0].items():
        parts = [grad for grad in (first, singles[1][name]) if grad is not None]
        kinds.add(len(parts))
        for said in two[0]:
            mean = said["ddp"][0]["grads"][name]
            if parts:
                torch.testing.assert_close(mean, sum(parts) / 2, rtol=1e-5, atol=1e-7)
            else:
                assert mean is None
    assert kinds == {0, 1, 2}


def test_every_step_updates_what_any_process_ran(two):
    first, second = (said["ddp"] for said in two[0])
    for one, other in zip(first, second):
        ran = Order(one["order"]).layers | Order(other["order"]).layers
        for layer in range(4):
            name = f"model.vit.blocks.{layer}.mlp.fc1.weight"
            assert (one["grads"][name] is not None) == (layer in ran)
        for name, grad in one["grads"].items():
            assert (grad is None) == (other["grads"][name] is None)
            assert grad is None or torch.equal(grad, other["grads"][name])


def test_validation_counts_every_image_once(two):
    """The same as one process's: 43 images in batches of 32, the second of which is 5 and 6 images."""
    module = tuner()
    module.load_state_dict(torch.load(two[1] / "same order.ckpt", weights_only=True)["state_dict"])
    alone = trainer("auto", devices=1)
    alone.validate(module, datamodule=data(), verbose=False)
    for name in ("val/sequential", "val/arbitrary", "val/loss"):
        value = float(alone.callback_metrics[name])
        for said in two[0]:
            assert said["same order"][2][name] == pytest.approx(value, rel=1e-6)


def test_all_processes_see_the_same_means(two):
    """A callback that watches them, such as EarlyStopping, must decide the same in all processes."""
    first, second = (said["validated"] for said in two[0])
    assert {"train/loss", "train/accuracy", "val/loss"} <= first.keys()
    assert first == second


def test_sharded_processes_run_the_same_order_and_learn_the_same(two):
    (first, second), folder = two
    assert first["sharded"][0] == second["sharded"][0] == first["same order"][0] == orders(5, 6, 0)
    for name, value in first["same order"][1].items():
        torch.testing.assert_close(first["sharded"][1][name], value, rtol=1e-4, atol=1e-6)
    whole = torch.load(folder / "sharded.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(whole[name], value) for name, value in first["sharded"][1].items())
    assert first["sharded"][2]["val/loss"] == pytest.approx(first["same order"][2]["val/loss"], rel=1e-4)


@pytest.mark.parametrize(("kind", "ranks"), [("own", 4), ("same", 2), ("parts sharded", 2)])
def test_all_processes_count_what_all_of_them_run(two, kind, ranks):
    """With two orders a batch; every update counts for the mean of the orders that it averages."""
    done, ran = 0.0, []
    while done < 3:
        drawn = [PARTS["sampler"].sample_step(4, 5, len(ran), rank, done / 3) for rank in range(ranks)]
        ran.append(statistics.fmean(map(len, drawn)))
        done += ran[-1] / 4
    for said in two[0]:
        images = 32 * len(ran)
        counted = {"images": images, "updates": len(ran), "layer_executions": 32 * sum(ran), "full_steps": done}
        assert said[kind][0] == pytest.approx(counted | {"seconds": 0})


def test_sharded_parts_of_a_batch_learn_the_same(two):
    for said in two[0]:
        for name, value in said["same"][1].items():
            torch.testing.assert_close(said["parts sharded"][1][name], value, rtol=1e-4, atol=1e-6)


def test_wrong_combinations_are_refused_before_the_first_step(two):
    for said in two[0]:
        own, halves, choices = said["refused"]
        assert "would wait for each other for ever in different orders: leave out orders_per_process" in own
        assert "gathers whole layers, so orders of their halves need the strategy ddp" in halves
        assert "InstanceWise can't be trained with ModelParallelStrategy" in choices


def test_all_processes_stop_after_the_same_step_and_go_on(two):
    """Only the second was told to stop, in the seventh step."""
    # The first one's code is the run's: of others that fail, it could be killed before it is done.
    assert [said["stopped"] for said in two[0]] == [128 + 15, 0]
    for said in two[0]:
        assert said["stopped at"] == 7
        assert said["ended at"] == 22
    rows = (two[1] / "runs/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 22 + 2


def test_killed_and_resumed_it_ends_as_without_the_kill(two):
    """The recipe finetune, killed in the sixteenth step; the last checkpoint is two steps older."""
    for said in two[0]:
        assert said["killed after"] == 14
    killed, whole = (two[1] / name / "version_0" for name in ("killed", "whole"))
    for name in ("best.ckpt", "last.ckpt"):
        found = [state(folder / "checkpoints" / name) for folder in (killed, whole)]
        assert "current_model_state" in found[0]  # beside the averaged weights
        assert_same(*found, name)
    assert rows(killed / "metrics.csv") == rows(whole / "metrics.csv")


def test_processes_see_the_pixels_that_one_process_sees(two):
    alone = compose([*(option for option in FINETUNE if "ddp" not in option and "devices" not in option)])
    one_process = {"world_size": 1, "global_rank": 0, "strategy": alone.trainer.strategy}
    alone.data.trainer = SimpleNamespace(lightning_module=alone.model, training=False, **one_process)
    alone.data.setup()
    seen = pixels_of(batches(alone.data.train_dataloader())[0])
    parts = [said["pixels"] for said in two[0]]
    assert [len(part) for part in parts] == [11 * 16] * 2
    # The 8 images of the 360 that make no whole batch are not the same for one process and for two.
    assert len({*parts[0], *parts[1]} - {*seen}) <= 8
    assert len({*parts[0]} & {*parts[1]}) == 0


def test_two_process_evaluation_is_that_of_one(two, monkeypatch):
    monkeypatch.chdir(two[1])
    alone = evaluate_command(["runs/version_0/checkpoints/last.ckpt", *SCORED])
    (together,) = alone.measure(Disagreement).to_json()["groups"]
    for said in two[0]:
        (together_of_two,) = said["together"]["groups"]
        for name, value in together.items():
            expected = pytest.approx(value, abs=1e-5) if isinstance(value, float) else value
            assert together_of_two[name] == expected, name
        assert len(said["scores"]) == 5
        for score, (images, top1, top5, loss) in zip(alone.scores, said["scores"]):
            assert (score.images, score.top1, score.top5) == (images, top1, top5)
            assert score.images == 65
            assert score.loss == pytest.approx(loss, rel=1e-6)


# --- Without processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "batch_size", "ranks"), [(359, 128, 2), (10, 4, 3), (9, 4, 4), (8, 8, 1)])
def test_each_image_is_read_once_by_one_process(images, batch_size, ranks):
    parts = [evaluation_batches(images, batch_size, ranks, rank) for rank in range(ranks)]
    for rank in range(ranks):
        assert len(parts[rank]) == len(evaluation_batches(images, batch_size, ranks, rank)) == -(-images // batch_size)
    together = [[index for part in batch for index in part] for batch in zip(*parts)]
    assert together == [list(range(first, min(first + batch_size, images))) for first in range(0, images, batch_size)]


def test_more_processes_than_images_are_refused():
    with pytest.raises(ValueError, match="4 processes can't share batches of 3 images"):
        evaluation_batches(3, 8, 4, 0)


@pytest.mark.parametrize("position", ["none", "encode", "encode per_layer", "predict"])
@pytest.mark.parametrize("orders", [["0 2"], ["0a 2f", "1 2a"], [""], ["3 1 2 0"], ["(0|1)", "2f"]])
def test_unused_parameters_are_those_without_gradients(small, images, position, orders):
    position, *table = position.split()
    model = small(position=position, positions=4, position_table=(table or ["shared"])[0]).train()
    total = 0
    for order in orders:
        output = model(images, order)
        total = total + output.logits.sum()
        if output.position_logits is not None:
            total = total + output.position_logits.sum()
    total.backward()
    unused = {id(parameter) for parameter in unused_parameters(model, map(Order, orders))}
    assert unused == {id(parameter) for parameter in model.parameters() if parameter.grad is None}


def test_the_strategy_decides_which_processes_sample_orders():
    objective = Classification()
    shuffled = [Shuffle().sample_step(4, 0, 0)]
    for choice, own in ((None, True), (True, True), (False, False)):
        assert samples_own_orders(DDPStrategy(), choice, objective, shuffled) is own
    for choice in (None, False):
        assert samples_own_orders(ModelParallelStrategy(), choice, objective, shuffled) is False


@pytest.mark.parametrize(("strategy", "waits"), [(DDPStrategy(), True), (SingleDeviceStrategy("cpu"), False)])
def test_the_strategy_decides_which_gradients_are_waited_for(strategy, waits):
    assert is_replicated(strategy) is waits


def test_ddp_with_one_process_trains_a_method_that_leaves_layers_out(tmp_path):
    command = [preloaded.python(), "-m", "layershuffle", "train", "mini_digits", "digits", "layerdrop", "cpu", "ddp"]
    command += ["--trainer.devices=1", "--trainer.max_steps=6", "--trainer.limit_val_batches=0"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    # Below the ports that the system gives to others, of which Lightning would take one that another test may have got.
    environment["MASTER_PORT"] = str(20_000 + os.getpid() % 10_000)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_evaluation_runs_under_torchrun(monkeypatch, two):
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    checkpoint = str(two[1] / "runs/version_0/checkpoints/last.ckpt")
    with pytest.raises(ValueError, match="only layershuffle evaluate shares its work between processes"):
        layershuffle.similarity(checkpoint)
