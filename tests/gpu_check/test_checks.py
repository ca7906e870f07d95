"""Each check passes on a CPU, and fails if what it checks is broken. What only a GPU does has a stand-in."""

import random
import subprocess
import tempfile
import time
from types import SimpleNamespace

import pytest
import torch

from layershuffle.data.packed import PackedImages
from layershuffle.evaluation import device
from layershuffle.gpu_check import correct, devices, fast, waits
from layershuffle.gpu_check.checks import CHECKS, CannotCheckError, Outcome, Setting, WrongResultError
from layershuffle.models import OrderedViT
from layershuffle.orders.order import sequential
from layershuffle.training.module import FineTuner
from layershuffle.training.step_orders import StepOrders

CPU = torch.device("cpu")
THREE_LAYERS = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 48, "num_heads": 3, "depth": 3}
"""The model ``mini_glyphs`` with its first three layers."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def small(monkeypatch):
    """Smaller checks."""
    monkeypatch.setattr(correct, "METHODS", ("baseline",))
    lesson = {"data.images_per_class": 40, "data.batch_size": 20, "trainer.max_epochs": 2}
    monkeypatch.setattr(correct, "LESSON", lesson)

    # A small batch makes as many steps of fewer images.
    options = devices._options
    fewer_images = {"data.images_per_class": 8, "data.batch_size": 16}
    monkeypatch.setattr(devices, "_options", lambda **asked: {**options(**asked), **fewer_images})

    monkeypatch.setattr(correct, "ORDERS_TO_COMPILE", 6)
    monkeypatch.setattr(waits, "TRAININGS", {"layershuffle": {}})
    for name, steps in {"WARM": 3, "TIMED": 15, "PROFILED": 5}.items():
        monkeypatch.setattr(fast.StepTimer, name, steps)


@pytest.fixture
def gpu(monkeypatch):
    """Stand-ins for what a CPU can't do: 64 images fit into 80 GB in evaluation, and bf16 takes half the time."""
    monkeypatch.setattr(devices, "seconds", lambda *_: 0.5 if torch.is_autocast_enabled("cpu") else 1.0)
    monkeypatch.setattr(device, "fastest_precision", lambda *_: "bf16-mixed")
    properties = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *_: None)
    monkeypatch.setattr(devices, "largest_evaluation_batch", lambda *_: 64)


def make(name):
    """Make a check on the CPU, in its quick form."""
    return CHECKS[name].run(Setting(CPU, quick=True))


def parameter(value, check):
    """A parameter of a test that makes a check; fine-tuning takes a minute."""
    marks = [pytest.mark.slow] if check == "fine-tuning" else []
    return pytest.param(value, marks=marks)


# The benchmark, step-128, has tests of its own below.
@pytest.mark.parametrize("name", [parameter(name, name) for name in CHECKS if name != "step-128"])
def test_a_check_passes(name, small, gpu):
    outcome = make(name)
    assert isinstance(outcome, Outcome)
    assert outcome.figure


# --- What is broken, to see that checks fail ----------------------------------------------------------------

forward = OrderedViT.forward
training_step = FineTuner.training_step
compile_layers = OrderedViT.compile
setup = FineTuner.setup
getitems = PackedImages.__getitems__


def wrong_logits(model, images, *order):
    output = forward(model, images, *order)
    return output._replace(logits=output.logits + random.random())


def learns_nothing(module, batch, batch_idx):
    return 0 * training_step(module, batch, batch_idx)


def compiled_again(model, **options):
    compile_layers(model, **options)
    run = model.run
    runs = 0

    def run_compiled_again(state, order):
        nonlocal runs
        runs += 1
        # The first orders of each kind may add graphs. Of those that may not, the last one makes the fewest again.
        if runs == 2 * 4 + 2 * correct.ORDERS_TO_COMPILE:
            torch._dynamo.reset()
        return run(state, order)

    model.run = run_compiled_again


def compiled_wrongly(model, **options):
    compile_layers(model, **options)
    model.vit.norm.bias.data += 1


def another_seed(module, stage):
    setup(module, stage)
    strategy = type(module.trainer.strategy).__name__
    module.seed = 0 if strategy == "SingleDeviceStrategy" else 1


def in_sequence(orders, *_):
    return sequential(len(orders.model_order))


def slowly(images, indices):
    time.sleep(0.05)
    return getitems(images, indices)


BREAKS = {
    "other logits on the device": ("logits", OrderedViT, "forward", wrong_logits),
    "nothing is learnt": ("methods", FineTuner, "training_step", learns_nothing),
    "an order adds a graph": ("compiled", OrderedViT, "compile", compiled_again),
    "compiled layers differ": ("compiled", OrderedViT, "compile", compiled_wrongly),
    "a batch that is no larger": ("memory", devices, "largest_evaluation_batch", lambda *_: 32),
    "the slower precision": ("precision", device, "fastest_precision", lambda *_: "32-true"),
    "strategies differ": ("processes", FineTuner, "setup", another_seed),
    "no order is shuffled": ("fine-tuning", StepOrders, "sample", in_sequence),
}
"""The check that must notice it, and what is replaced by what."""


@pytest.mark.parametrize("fault", [parameter(fault, check) for fault, (check, *_) in BREAKS.items()])
def test_a_check_fails_if_what_it_checks_is_broken(fault, monkeypatch, small, gpu):
    name, owner, attribute, broken = BREAKS[fault]
    monkeypatch.setattr(owner, attribute, broken)
    with pytest.raises(WrongResultError):
        make(name)


def test_slow_reading_is_a_missed_goal(monkeypatch, small):
    monkeypatch.setattr(PackedImages, "__getitems__", slowly)
    assert "is lost, more than 3%" in make("end-to-end").missed


def test_idle_share():
    # Busy from 0 to 3, from 5 to 9 and from 10 to 20, also twice at a time.
    assert fast.idle_share([(5, 9), (0, 2), (1, 3), (10, 20), (11, 12), (6, 7)]) == 3 / 20


# --- The benchmark, which takes minutes ---------------------------------------------------------------------


MEASURED = {
    "images/s": 4200.0,
    "of ceiling": 0.56,
    "forward images/s": 13000.0,
    "forward of ceiling": 0.58,
    "peak MB": 4e4,
}
"""What the benchmark might measure on an H200."""
H200 = 4.8e12  # bytes a second, the speed of its memory
H100 = 3.35e12


def step_128(monkeypatch, bandwidth, **changed):
    """The outcome of the check for what a GPU with this bandwidth might measure, and the options of the benchmark."""
    options = []
    ours = {"contender": "ours, compiled, layers run again", **MEASURED, **changed}
    timm = {"contender": "timm", "images/s": 2100.0}

    def benchmark(setting, name, *arguments):
        options.extend(arguments)
        return {"rows": [ours, timm], "setting": {"ceiling in GFLOP/s": 7.9e5}}

    monkeypatch.setattr(fast, "benchmark", benchmark)
    monkeypatch.setattr(fast, "memory_bandwidth", lambda device: bandwidth)
    outcome = CHECKS["step-128"].run(Setting(CPU))
    return outcome, options


# The roofline expects 3,500 images/s in training and 11,143 forward of an H200, with caution.
@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, ""),
        ({"images/s": 3510.0, "forward images/s": 11150.0}, ""),
        ({"images/s": 3490.0}, "training reaches 3,490 images/s"),
        ({"forward images/s": 11100.0}, "forward reaches 11,100 images/s"),
    ],
)
def test_the_goal_of_the_step_is_the_cautious_estimate(monkeypatch, changed, missed):
    outcome, _ = step_128(monkeypatch, H200, **changed)
    assert missed in outcome.missed
    assert bool(outcome.missed) == bool(missed)


def test_a_step_is_reported_as_shares_of_the_ceiling_and_of_the_limit(monkeypatch):
    outcome, options = step_128(monkeypatch, H200)
    assert "--batch=128" in options
    # The limit is 4,864 images/s in training, and 15,867 forward.
    assert "4,200 images/s training (56% of the ceiling, 86% of" in outcome.figure
    assert "13,000 images/s forward (58% of the ceiling, 82% of" in outcome.figure
    assert "2.00 of timm" in outcome.figure
    assert outcome.details["roofline"]["training"]["limit images/s"] == pytest.approx(4864, abs=1)

    # With an H100's memory, the same speeds would be beyond the limit.
    outcome, _ = step_128(monkeypatch, H100)
    assert "56% of the ceiling, 101% of" in outcome.figure


def test_the_step_has_no_goal_where_the_speed_of_the_memory_is_unknown(monkeypatch):
    with pytest.raises(CannotCheckError):
        step_128(monkeypatch, 0.0)


def test_a_benchmark_that_breaks_fails(tmp_path, monkeypatch):
    setting = Setting(CPU)
    monkeypatch.setattr(fast.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 2))
    with pytest.raises(WrongResultError, match=r"benchmarks\.step.* 2"):
        fast.benchmark(setting, "step")

    # An installed package has no benchmarks beside it.
    monkeypatch.setattr(fast, "__file__", str(tmp_path / "site-packages/layershuffle/gpu_check/fast.py"))
    with pytest.raises(CannotCheckError, match="checkout"):
        fast.benchmark(setting, "step")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_passes_on_a_gpu(name):
    CHECKS[name].run(Setting(torch.device("cuda", 0)))
