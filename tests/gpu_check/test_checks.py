"""Each check passes on a CPU, and fails if what it checks is broken. What only a GPU does has a stand-in."""

import random
import signal
import subprocess
import tempfile
import time

import pytest
import torch
from torch import Tensor

from layershuffle.commands import main, studying
from layershuffle.data.packed import PackedImages
from layershuffle.evaluation import device
from layershuffle.evaluation.metrics import OrderMetrics
from layershuffle.gpu_check import correct, fast
from layershuffle.gpu_check.checks import CHECKS, Found, LeftOut, Setting
from layershuffle.models import OrderedViT
from layershuffle.orders.named import permutation
from layershuffle.orders.order import sequential
from layershuffle.training.module import FineTuner
from layershuffle.training.step_orders import StepOrders

CPU = torch.device("cpu")


def command(args):
    """``layershuffle``, but the cells of an experiment run in this process."""
    if args[0] != "experiment":
        return main(args)
    for method in ("base", "baseline", "layershuffle"):
        main([*args, "--cell", f"vit/{method}/seed0"])


class Killed(BaseException):
    """What a process is killed by that is none."""


class Launched:
    """What subprocess.Popen returns, but the command has run in this process."""

    def __init__(self, arguments, **variables):
        self.code = 0
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            try:
                main(arguments)
            except Killed:
                self.code = -signal.SIGKILL

    def wait(self):
        return self.code


def kill(process, number):
    raise Killed


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def small(monkeypatch):
    """Smaller checks."""
    monkeypatch.setattr(correct, "METHODS", ("baseline",))
    monkeypatch.setattr(correct, "LESSON", ("--data.images_per_class=128", "--trainer.max_epochs=2"))
    monkeypatch.setattr(correct.NoWaiting, "LAST", 30)
    several = correct.several
    monkeypatch.setattr(correct, "several", lambda depth, count: several(depth, min(count, 6)))
    monkeypatch.setattr(correct, "launch", Launched)
    monkeypatch.setattr(correct.os, "kill", kill)
    for name, steps in {"WARM": 3, "TIMED": 15, "PROFILED": 5}.items():
        monkeypatch.setattr(fast.Timed, name, steps)


@pytest.fixture
def gpu(monkeypatch):
    """Stand-ins: reading a float waits, 64 images fit in evaluation and none in training, bf16 takes half the time."""
    item = Tensor.item

    def mode(name):
        def waits(tensor):
            assert not tensor.is_floating_point(), "the host waited for the device"
            return item(tensor)

        monkeypatch.setattr(Tensor, "item", waits if name == "error" else item)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode)
    monkeypatch.setattr(correct, "seconds", lambda *_: 1.0 - 0.5 * torch.is_autocast_enabled("cpu"))
    monkeypatch.setattr(device, "fastest_precision", lambda *_: "bf16-mixed")
    memory = type("Memory", (), {"total_memory": 80 << 30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: None)
    monkeypatch.setattr(studying, "largest_evaluation_batch", lambda *_: 64)


def out_of_memory(*_):
    raise torch.OutOfMemoryError


def make(name):
    return CHECKS[name].run(Setting(CPU, command, quick=True))


@pytest.mark.parametrize("name", [name for name, check in CHECKS.items() if check.part != "fast"] + ["end-to-end"])
def test_a_check_passes(name, monkeypatch, small, gpu):
    if name == "memory":
        monkeypatch.setattr(FineTuner, "training_step", out_of_memory)
    found = make(name)
    assert isinstance(found, Found)
    assert found.figure


def wrong_logits(model, images, *order):
    output = forward(model, images, *order)
    return output._replace(logits=output.logits + random.random())


def learns_nothing(module, batch, batch_idx):
    return 0 * training_step(module, batch, batch_idx)


def compiled_again(model, **options):
    compile(model, **options)
    run, orders = model.run, []

    def later_again(state, order):
        orders.append(order)
        if len(orders) == 10:  # The first orders of each kind may add graphs.
            torch._dynamo.reset()
        return run(state, order)

    model.run = later_again


def compiled_wrongly(model, **options):
    compile(model, **options)
    model.vit.norm.bias.data += 1


def waits_in_training(module, batch, batch_idx):
    loss = training_step(module, batch, batch_idx)
    loss.item()
    return loss


def waits_in_evaluation(metrics, first, outputs, labels):
    outputs[0].logits.sum().item()


def another_seed(module, stage):
    setup(module, stage)
    module.seed = 0 if type(module.trainer.strategy).__name__ == "SingleDeviceStrategy" else 1


def slowly(images, indices):
    time.sleep(0.05)
    return getitems(images, indices)


forward, training_step, compile = OrderedViT.forward, FineTuner.training_step, OrderedViT.compile
setup, getitems = FineTuner.setup, PackedImages.__getitems__
RANDOMLY = lambda orders, *_: permutation(len(orders.model_order), random.Random())  # noqa: E731
IN_SEQUENCE = lambda orders, *_: sequential(len(orders.model_order))  # noqa: E731
BREAKS = {
    "other logits on the device": ("logits", OrderedViT, "forward", wrong_logits),
    "nothing is learnt": ("methods", FineTuner, "training_step", learns_nothing),
    "an order adds a graph": ("compiled", OrderedViT, "compile", compiled_again),
    "compiled layers differ": ("compiled", OrderedViT, "compile", compiled_wrongly),
    "training waits": ("waiting", FineTuner, "training_step", waits_in_training),
    "evaluation waits": ("waiting", OrderMetrics, "update", waits_in_evaluation),
    "copies arrive too late": (
        "batches",
        FineTuner,
        "transfer_batch_to_device",
        lambda self, batch, *_: 2 * [batch[1]],
    ),
    "orders by chance": ("resuming", StepOrders, "sample", RANDOMLY),
    "a batch that is no larger": ("memory", studying, "largest_evaluation_batch", lambda *_: 32),
    "the memory's traceback": ("memory", FineTuner, "training_step", lambda *_: 1 / 0),
    "the slower precision": ("precision", device, "fastest_precision", lambda *_: "32-true"),
    "strategies differ": ("processes", FineTuner, "setup", another_seed),
    "the authors' weights": ("authors", OrderedViT, "forward", wrong_logits),
    "no order is shuffled": ("fine-tuning", StepOrders, "sample", IN_SEQUENCE),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_a_check_fails_if_what_it_checks_is_broken(fault, monkeypatch, small, gpu):
    name, owner, attribute, broken = BREAKS[fault]
    if name == "memory":
        monkeypatch.setattr(FineTuner, "training_step", out_of_memory)
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises((AssertionError, ZeroDivisionError, SystemExit)):
        make(name)


def test_slow_reading_is_a_missed_goal(monkeypatch, small):
    monkeypatch.setattr(PackedImages, "__getitems__", slowly)
    assert "is lost, more than 3%" in make("end-to-end").missed


def test_idle_share():
    # Busy from 0 to 3, from 5 to 9 and from 10 to 20, also twice at a time.
    assert fast.idle_share([(5, 9), (0, 2), (1, 3), (10, 20), (11, 12), (6, 7)]) == 3 / 20


# --- The benchmarks, which take minutes ---------------------------------------------------------------------


ROW = {"images/s": 4000.0, "of ceiling": 0.62, "forward images/s": 12000.0, "forward of ceiling": 0.61, "peak MB": 4e4}


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, ""),
        ({"of ceiling": 0.41}, "training reaches 41% of the ceiling, not 60%"),
        ({"forward of ceiling": 0.5}, "forward reaches 50%"),
    ],
)
def test_the_step_is_measured_by_the_ceiling(monkeypatch, changed, missed):
    asked = []
    rows = [
        {"contender": "ours, compiled, layers run again", **ROW, **changed},
        {"contender": "timm", "images/s": 2000.0},
    ]

    def benchmark(setting, name, *arguments):
        asked.extend(arguments)
        return {"rows": rows, "setting": {"ceiling in GFLOP/s": 7.9e5}}

    monkeypatch.setattr(fast, "benchmark", benchmark)
    found = CHECKS["step-640"].run(Setting(CPU, main))
    assert "--batch=640" in asked
    assert "4,000 images/s training" in found.figure
    assert "2.00 of timm" in found.figure
    assert missed in found.missed
    assert bool(found.missed) == bool(missed)


@pytest.mark.parametrize(("times", "missed"), [(6.1, False), (5.5, False), (3.0, True)])
def test_orders_together_gain_what_they_save(monkeypatch, times, missed):
    row = {"orders": "all in-order subsets", "count": 4095, "times fewer": 6.0, "times as fast": times}
    monkeypatch.setattr(fast, "benchmark", lambda *_: {"rows": [row | {"seconds together": 2.0}]})
    found = CHECKS["many-orders"].run(Setting(CPU, main))
    assert "4,095 all in-order subsets" in found.figure
    assert bool(found.missed) == missed


def test_a_benchmark_that_breaks_fails(tmp_path, monkeypatch):
    setting = Setting(CPU, main)
    monkeypatch.setattr(fast.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2))
    with pytest.raises(AssertionError, match=r"benchmarks\.step ended with the code 2"):
        fast.benchmark(setting, "step")
    monkeypatch.setattr(fast, "__file__", str(tmp_path / "site-packages/layershuffle/gpu_check/fast.py"))
    with pytest.raises(LeftOut, match="run it from a checkout"):
        fast.benchmark(setting, "step")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_passes_on_a_gpu(name):
    CHECKS[name].run(Setting(torch.device("cuda", 0), main))
