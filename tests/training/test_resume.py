"""Runs that are stopped, at any step and by any signal, and end as if they had not been."""

import csv
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from helpers import QUIET, ROOT, SMALL, configs, train
from jsonargparse import Namespace
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from torchvision.transforms import v2

from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.data import Digits
from layershuffle.data.augmentation import Augmentation
from layershuffle.errors import UserError
from layershuffle.orders.samplers import GrowingDepth, LayerDrop
from layershuffle.training.checkpointing import LastCheckpoint, WholeCheckpointIO
from layershuffle.training.metrics_file import MetricsFile
from layershuffle.training.module import FineTuner
from layershuffle.training.objectives import Classification
from layershuffle.training.resume import EarlierRun, find_earlier_run, run_folder
from layershuffle.training.schedule import Schedule
from layershuffle.training.trainable import Trainable

KILLS = int(os.environ.get("LAYERSHUFFLE_KILLS", "1"))
"""How often the run is killed; more take longer, see docs/findings/reliability.md."""
EPOCHS = 20 + 30 * KILLS


def assert_same(one, other, where=""):
    """Compare bit for bit what checkpoints hold; ``where`` tells which part of them differs."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other)):
            assert_same(left, right, f"{where}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def state(path):
    """What a checkpoint says of the run: weights, optimizer, schedule, progress, and compute except for the time."""
    content = torch.load(path, weights_only=True)
    names = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "loops", "global_step")
    found = {name: content[name] for name in names if name in content}
    found["compute"] = content[METADATA_KEY]["compute"] | {"seconds": None}
    return found


def step_of(path):
    """The step after which a checkpoint was written."""
    return torch.load(path, weights_only=True)["global_step"]


# --- From every checkpoint there is -------------------------------------------------------------------------


class EveryCheckpoint(LastCheckpoint):
    """Keeps a copy of every last.ckpt, named after its step."""

    def between_steps(self, trainer):
        super().between_steps(trainer)
        self._copy()

    def on_train_epoch_end(self, trainer, pl_module):
        super().on_train_epoch_end(trainer, pl_module)
        self._copy()

    def _copy(self):
        copy = Path(self.dirpath) / f"step_{self.saved:02}.ckpt"
        if self.saved and not copy.exists():
            shutil.copy(Path(self.dirpath) / "last.ckpt", copy)


class Labels(pl.Callback):
    """Notes the step and the labels of every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append((trainer.global_step, batch_idx, batch[1].tolist()))


TUNED = {
    "augmentation": Augmentation(
        scale=(0.3, 1.0), flip=0.5, transforms=[v2.RandAugment(), v2.RandomErasing()], mixup=0.8, cutmix=1.0
    ),
    "objective": Classification(label_smoothing=0.1),
    "trainable": Trainable(layer_decay=0.75, decay_norms=False),
    "schedule": Schedule("cosine", warmup_steps=0.3),
}
"""All that the recipe finetune adds to a module."""


GROWING = {"sampler": GrowingDepth(k0=1), "budget": "layer_executions", "orders_per_batch": 2}
"""Options of a run whose steps use up different shares of its budget."""


def fit(folder, ckpt_path=None, workers=0, tuned=False, growing=False, **options):
    """Train with everything that is random (dropout, stochastic depth, dropped layers); returns the batches it read.

    The run goes on from ``ckpt_path``, if it is given. ``options`` are those of the trainer.
    """
    pl.seed_everything(7, verbose=False)
    module_options = {
        "name": "vit_tiny_patch16_224",
        "num_classes": 10,
        "timm_args": SMALL | {"drop_rate": 0.1, "drop_path_rate": 0.2, "depth": 3},
        "position": "encode",
        "sampler": LayerDrop(0.4),
        "seed": 7,
        "schedule": Schedule("cosine", warmup_steps=2),
    }
    if tuned:
        module_options |= TUNED
    if growing:
        module_options |= GROWING
    module = FineTuner(**module_options)

    labels = Labels()
    best = ModelCheckpoint(folder, "best", monitor="val/loss", enable_version_counter=False)
    callbacks = [labels, best, LearningRateMonitor(), EveryCheckpoint(folder, every_n_steps=1)]
    if tuned:
        callbacks.append(EMAWeightAveraging(decay=0.9, use_buffers=False))

    trainer_options = {
        "max_epochs": 3,
        "log_every_n_steps": 2,
        "limit_val_batches": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    from_step = step_of(ckpt_path) if ckpt_path else None
    logger = MetricsFile(str(folder), "", version="metrics", from_step=from_step)
    trainer = pl.Trainer(**(trainer_options | options), logger=logger, callbacks=callbacks)
    trainer.strategy.checkpoint_io = WholeCheckpointIO()
    data = Digits(train_images=300, batch_size=64, workers=workers)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return labels.seen


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"max_epochs": 2}, 8),
        ({"val_check_interval": 0.5, "max_epochs": 2}, 8),
        ({"max_steps": 6, "max_epochs": -1}, 6),
        ({"workers": 1, "max_epochs": 2, "accumulate_grad_batches": 2}, 8),
        pytest.param({"workers": 2, "max_epochs": 2, "tuned": True}, 8, marks=pytest.mark.slow),
        # The first orders are of one or two of the three layers, so it takes 9 steps to use up the budget of 4.
        ({"max_epochs": 1, "growing": True}, 9),
    ],
    ids=[
        "epochs",
        "validated in mid-epoch",
        "steps",
        "accumulated, with workers",
        "recipe finetune, with workers",
        "growing depth",
    ],
)
def test_from_whichever_step_a_run_goes_on_it_ends_the_same(tmp_path, options, batches):
    # All runs write to the same folder, because checkpoints hold its path. The uninterrupted one is then moved away.
    folder = tmp_path / "run"
    whole = tmp_path / "whole"
    batches_of_whole = fit(folder, **options)
    folder.rename(whole)
    assert len(batches_of_whole) == batches
    copies = sorted(whole.glob("step_*.ckpt"))
    assert len(copies) >= 4

    for copy in copies:
        shutil.copytree(whole, folder)
        shutil.copy(copy, folder / "last.ckpt")
        rest = fit(folder, folder / "last.ckpt", **options)

        first_step = step_of(copy)
        assert rest == [batch for batch in batches_of_whole if batch[0] >= first_step]
        for name in ("best.ckpt", "last.ckpt"):
            assert_same(state(folder / name), state(whole / name), f"{copy.name}: {name}")
        assert (folder / "metrics/metrics.csv").read_text() == (whole / "metrics/metrics.csv").read_text()
        shutil.rmtree(folder)


# --- The command, killed ------------------------------------------------------------------------------------

LOG_EVERY = 3
COMMAND_OF_ANY_LENGTH = [
    *configs("model/mini_digits", "data/digits", "trainer/cpu", "method/layershuffle_position", "optimizer/mini"),
    *QUIET,
    "--data.train_images=360",
    "--model.timm_args.depth=3",
    "--model.timm_args.drop_path_rate=0.2",
    f"--trainer.log_every_n_steps={LOG_EVERY}",
    "--model.optimizer.lr=0.02",  # so high that the best checkpoint is not always the last
    "--save_every_n_steps=2",
]
COMMAND = [*COMMAND_OF_ANY_LENGTH, "--resume", f"--trainer.max_epochs={EPOCHS}"]
STEPS_PER_EPOCH = 5
"""Without the 36 held-out images, 324 are left, which are 5 whole batches of 64."""
RUN = Path("runs/version_0")
"""Where the first run of a folder is."""


def rows(path):
    """The rows of a file of metrics without what depends on the time, which must be plausible, though."""
    with path.open(newline="") as file:
        found = list(csv.DictReader(file))
    for row in found:
        speed = row.pop("train/images_per_second")
        # It would be less if the time before the process began counted.
        assert not speed or float(speed) > 1
        row.pop("train/seconds")
    return found


def start(folder, command):
    """Begin a training in a process of its own; returns the process."""
    return subprocess.Popen([sys.executable, str(ROOT / "train.py"), *command], cwd=folder, stderr=subprocess.PIPE)


def stop(folder, command, number, delay):
    """Begin or go on in ``folder``, and send the signal ``number`` some time after the run has got further.

    Returns:
        the exit code, and what was written to stderr.
    """
    last = folder / RUN / "checkpoints/last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else None
    process = start(folder, command)
    while not last.exists() or last.stat().st_mtime_ns == before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)

    time.sleep(delay)
    process.send_signal(number)
    _, errors = process.communicate()
    return process.returncode, errors.decode()


FINETUNE = [*configs("recipe/finetune"), "--data.workers=2"]


@pytest.mark.parametrize(
    ("options", "epochs", "signals"),
    [([], EPOCHS, [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]), (FINETUNE, 2 + 2 * KILLS, [])],
    ids=["paper", "finetune, with workers"],
)
@pytest.mark.slow
def test_killed_at_random_a_run_ends_with_the_same_weights_and_metrics(tmp_path, monkeypatch, options, epochs, signals):
    command = [*COMMAND, *options, f"--trainer.max_epochs={epochs}"]
    steps = STEPS_PER_EPOCH * epochs
    stopped = tmp_path / "stopped"
    whole = tmp_path / "whole"
    stopped.mkdir()
    whole.mkdir()

    rng = random.Random(0)
    reached = []
    for number in [signal.SIGKILL] * KILLS + signals:
        code, said = stop(stopped, command, number, delay=rng.uniform(0, 0.15))
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == 128 + number
            assert f"{number.name}: stopped after step" in said
            assert "saved runs/version_0/checkpoints/last.ckpt; the same command with --resume continues" in said
            assert "Traceback" not in said
        reached.append(step_of(stopped / RUN / "checkpoints/last.ckpt"))
    assert reached == sorted(reached)
    assert 0 < reached[0] <= reached[-1] < steps

    # What was stopped goes on to its end; the other run is not interrupted at all.
    for folder in (stopped, whole):
        monkeypatch.chdir(folder)
        assert train(command).global_step == steps
        assert [path.name for path in Path("runs").iterdir()] == ["version_0"]
        assert {path.name for path in (RUN / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}

    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = RUN / "checkpoints" / name
        assert_same(state(stopped / checkpoint), state(whole / checkpoint), name)
    assert rows(stopped / RUN / "metrics.csv") == rows(whole / RUN / "metrics.csv")

    # A step that is logged has a row of its learning rate and one of its losses. An epoch has a row of its validation
    # and, unless its last step is logged, one of the losses since the row before.
    logged_steps = steps // LOG_EVERY
    ends_of_epochs = range(STEPS_PER_EPOCH, steps + 1, STEPS_PER_EPOCH)
    ends_between_logged_steps = [step for step in ends_of_epochs if step % LOG_EVERY != 0]
    expected_rows = 2 * logged_steps + epochs + len(ends_between_logged_steps)
    assert len(rows(whole / RUN / "metrics.csv")) == expected_rows


# --- Which run the command goes on with ---------------------------------------------------------------------

QUICK = [*COMMAND_OF_ANY_LENGTH, "--resume", "--trainer.max_steps=1"]


def test_the_same_command_goes_on_and_another_begins_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(QUICK)
    train(QUICK)
    assert "continuing runs/version_0\n" in capsys.readouterr().err

    train([*QUICK, "--model.optimizer.lr=0.1"])
    assert "continuing" not in capsys.readouterr().err
    assert {path.name for path in Path("runs").iterdir()} == {"version_0", "version_1"}

    train(QUICK)
    assert "continuing runs/version_0\n" in capsys.readouterr().err

    (RUN / "checkpoints/last.ckpt").unlink()
    train(QUICK)
    assert "continuing runs/version_0 from the beginning\n" in capsys.readouterr().err
    assert len(list(Path("runs").iterdir())) == 2


def test_the_run_that_has_a_checkpoint_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(QUICK)

    # A newer run of the same options, which has no checkpoint.
    newer = Path("runs/version_1")
    newer.mkdir()
    shutil.copy(RUN / "config.yaml", newer)
    # Files that YAML can't read: a date that doesn't exist, and lists nested too deep.
    for name, text in (("date", "a: 2024-99-99"), ("deep", "[" * 5000)):
        Path("runs", name).mkdir()
        Path("runs", name, "config.yaml").write_text(text)

    train(QUICK)
    assert "continuing runs/version_0\n" in capsys.readouterr().err


def test_a_run_that_goes_on_from_anothers_checkpoint_leaves_it_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train([*COMMAND_OF_ANY_LENGTH, "--trainer.max_epochs=1"])
    before = {path: path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()}

    longer = [*COMMAND_OF_ANY_LENGTH, "--trainer.max_epochs=2", f"--ckpt_path={RUN}/checkpoints/last.ckpt"]
    for folder in (Path("runs/version_1"), Path("on/version_0")):
        train([*longer, f"--trainer.default_root_dir={folder.parent}"])
        assert step_of(folder / "checkpoints/last.ckpt") == 2 * STEPS_PER_EPOCH
        assert (folder / "checkpoints/best.ckpt").is_file()
    assert before == {path: path.read_bytes() for path in before}


def test_a_better_checkpoint_replaces_the_best_one_of_before(tmp_path, monkeypatch):
    """The second run names the folder in full; Lightning would take it for another, and remove what it has written."""
    monkeypatch.chdir(tmp_path)
    # By this measure the newest checkpoint is the best.
    command = [*COMMAND_OF_ANY_LENGTH, "--checkpoint.monitor=step", "--checkpoint.mode=max"]
    train([*command, "--trainer.max_epochs=1"])

    folder = (RUN / "checkpoints").resolve()
    train([*command, "--trainer.max_epochs=2", f"--ckpt_path={folder}/last.ckpt", f"--checkpoint.dirpath={folder}"])

    assert step_of(RUN / "checkpoints/best.ckpt") == 2 * STEPS_PER_EPOCH
    assert step_of(RUN / "checkpoints/last.ckpt") == 2 * STEPS_PER_EPOCH


def test_lightnings_own_metrics_file_goes_on_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*COMMAND_OF_ANY_LENGTH, "--resume", "--trainer.max_epochs=2"]
    command += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs"]
    train(command)
    (metrics,) = Path("runs").rglob("metrics.csv")
    before = metrics.read_text()
    assert before.count("\n") > 3

    # The run is over, so it adds nothing, but it must not begin its file anew either.
    train(command)
    assert metrics.read_text() == before


def test_wandbs_project_is_where_its_client_takes_it_from(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/mine/id")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/last.ckpt").touch()
    (folder / "config.yaml").write_text("a: 1")

    logger = Namespace(class_path="WandbLogger", init_args=Namespace(project=None, save_dir="runs"))
    config = Namespace(trainer=Namespace(logger=logger, default_root_dir=None), checkpoint=Namespace(dirpath=None))
    expected = EarlierRun(folder, folder / "checkpoints/last.ckpt")
    assert find_earlier_run(config, options="a: 1", defaults="b: 2") == expected
    assert find_earlier_run(config, options="a: 2", defaults="b: 2") is None

    # The run was begun by a version that didn't know the option b.
    assert find_earlier_run(config, options="{a: 1, b: 2}", defaults="b: 2") == expected
    assert find_earlier_run(config, options="{a: 1, b: 3}", defaults="b: 2") is None


@pytest.mark.parametrize("where", ["--trainer.logger=false", "--trainer.logger.version=mine"])
def test_the_checkpoints_of_another_run_in_the_same_place_are_left_alone(tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    train([*QUICK, where])
    (last,) = tmp_path.rglob("last.ckpt")
    before = last.read_bytes()

    with pytest.raises(ValueError, match=r"last\.ckpt is of another run"):
        train([*QUICK, where, "--model.optimizer.lr=0.1"])
    assert last.read_bytes() == before


def test_a_run_without_resume_leaves_another_alone_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*COMMAND_OF_ANY_LENGTH, "--trainer.max_steps=1", "--trainer.logger.version=mine"]
    train(command)
    last = Path("runs/mine/checkpoints/last.ckpt")
    before = last.read_bytes()

    with pytest.raises(ValueError, match=r"mine/checkpoints/last\.ckpt is of another run, which would be lost"):
        train(command)
    assert last.read_bytes() == before


def test_a_folder_of_another_runs_checkpoints_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = [*QUICK, "--checkpoint.dirpath=kept"]
    train(kept)
    train(kept)

    with pytest.raises(ValueError, match=r"kept/last\.ckpt is of another run"):
        train([*kept, "--model.optimizer.lr=0.1"])
    with pytest.raises(ValueError, match="leave out --ckpt_path"):
        train([*kept, "--ckpt_path=kept/last.ckpt"])
    with pytest.raises(ValueError, match="--save_every_n_steps"):
        train([*kept, "--save_every_n_steps=0", "--seed=1", "--checkpoint.dirpath=other"])


def test_ctrl_c_is_the_main_process_s_alone_and_twice_it_ends_the_run_at_once():
    # The processes that read images get the signal, too, and go on.
    data = Digits(train_images=300, workers=1)
    data.setup("fit")
    batches = iter(data.train_dataloader())
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == len(data.train_dataloader()) - 1

    callback = LastCheckpoint("unused")
    callback._receive(signal.SIGINT, None)
    # At once again, it comes from torchrun, which repeats it.
    callback._receive(signal.SIGINT, None)
    # A second later it comes from an impatient user.
    callback._interrupted_at -= 1
    with pytest.raises(KeyboardInterrupt):
        callback._receive(signal.SIGINT, None)


def test_a_run_that_fails_leaves_no_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="CIFAR10 is not in the folder"):
        train(["mini_digits", "cifar10", "cpu", "--trainer.enable_progress_bar=false"])
    assert not list(tmp_path.iterdir())


def test_a_run_without_steps_writes_its_checkpoint_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*COMMAND_OF_ANY_LENGTH, "--resume", "--trainer.max_epochs=0", "--trainer.default_root_dir=mine"]
    trainer = train(command)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    saved = torch.load(tmp_path / "mine/version_0/checkpoints/last.ckpt", weights_only=True)
    assert_same(saved["state_dict"], dict(trainer.lightning_module.state_dict()))

    # The same command goes on with the run, in which nothing is left to do.
    assert train(command).global_step == 0
    assert [path.name for path in Path("mine").iterdir()] == ["version_0"]


def test_a_wandb_run_that_has_no_checkpoint_yet_goes_on_as_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    command = [*QUICK, "--trainer.logger=WandbLogger", "--trainer.logger.offline=true"]
    command += ["--trainer.logger.project=mine"]
    train(command)
    (last,) = tmp_path.rglob("last.ckpt")
    last.unlink()

    train(command)
    # The folder of a run is above that of its checkpoints.
    folders = [checkpoint.parents[1] for checkpoint in tmp_path.rglob("last.ckpt")]
    assert folders == [last.parents[1]]
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # wandb's files are there too


def test_what_a_kill_leaves_of_a_checkpoint_is_cleared_away(tmp_path):
    for name in (".last.ckpt.123", ".best.ckpt.123"):
        (tmp_path / name).write_bytes(b"half")
    WholeCheckpointIO().save_checkpoint({"a": 1}, tmp_path / "last.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", ".best.ckpt.123"}


@pytest.mark.parametrize(("option", "value"), [("version", ".."), ("version", "/elsewhere"), ("name", "a/../../b")])
def test_a_run_is_in_the_folder_of_all_runs(tmp_path, option, value):
    logger = MetricsFile(str(tmp_path / "runs"), **{option: value})
    with pytest.raises(UserError, match="can't name a run"):
        run_folder(pl.Trainer(logger=logger, accelerator="cpu", enable_progress_bar=False))
    assert os.listdir(tmp_path) == []
