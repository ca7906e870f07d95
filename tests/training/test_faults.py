"""Runs that go wrong say so: losses that are not finite, images that can't be read, processes that are killed."""

import csv
import json
import math
import os
import struct
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import lightning.pytorch as pl
import pytest
import torch
import wandb
from helpers import FULL, QUIET, ROOT, SMALL, configs, fake_imagenet
from PIL import Image

from layershuffle.commands.errors import run
from layershuffle.commands.logs import set_up_logging
from layershuffle.data import Digits, ImageFolders, decoding
from layershuffle.orders.samplers import GrowingDepth, Shuffle
from layershuffle.training.checkpointing import LastCheckpoint, WholeCheckpointIO
from layershuffle.training.module import FineTuner

# --- Losses -------------------------------------------------------------------------------------------------


SEED = 5
DEPTH = SMALL["depth"]


class Spoil(pl.Callback):
    """Sets one weight to ``value``, before the step ``before`` or when ``done`` steps are done."""

    def __init__(self, before=None, done=None, value=float("inf")):
        self.before = before
        self.done = done
        self.value = value

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.before:
            self._spoil(module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.done:
            self._spoil(module)

    @torch.no_grad()
    def _spoil(self, module):
        module.model.vit.head.weight[0, 0] = self.value


def fit(folder, *callbacks, every_n_steps=None, model=None, **options):
    """Train for two epochs of 8 steps, with the last checkpoint in ``folder``.

    ``model`` has options of the module, and ``options`` are those of the trainer.
    """
    torch.manual_seed(0)
    module = FineTuner("vit_tiny_patch16_224", 10, timm_args=SMALL, seed=SEED, **(model or {}))
    defaults = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "limit_train_batches": 8,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(**(defaults | options), callbacks=[*callbacks, LastCheckpoint(folder, every_n_steps)])
    trainer.strategy.checkpoint_io = WholeCheckpointIO()
    trainer.fit(module, datamodule=Digits())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, value):
    with pytest.raises(ValueError, match="not finite in step 11") as error:
        fit(tmp_path, Spoil(before=11, value=value), log_every_n_steps=4)
    assert f"whose order was {Shuffle().sample_step(DEPTH, SEED, step=11)};" in str(error.value)
    assert f"the last good checkpoint is {tmp_path}/last.ckpt: lower model.optimizer.lr" in str(error.value)

    # The checkpoint is that of the end of the first epoch.
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 8
    for weight in kept["state_dict"].values():
        assert weight.isfinite().all()


def test_no_checkpoint_is_written_after_a_loss_or_weights_went_wrong(tmp_path):
    # Losses are checked when they are logged, which none is here, and before a checkpoint is written.
    with pytest.raises(ValueError, match="not finite in step 4"):
        fit(tmp_path / "loss", Spoil(before=4), log_every_n_steps=100)
    assert not list(tmp_path.glob("loss/*"))

    # The weights go wrong in the last step before a checkpoint, so no loss has shown it.
    with pytest.raises(ValueError, match="not finite in step 4") as error:
        fit(tmp_path / "weights", Spoil(done=5), log_every_n_steps=100, every_n_steps=5, limit_train_batches=5)
    assert "there is no checkpoint yet" in str(error.value)
    assert not list(tmp_path.glob("weights/*"))


def test_the_order_of_a_bad_step_is_that_of_its_share_of_the_budget(tmp_path):
    bad_step = 6
    steps_until_check = 14
    sampler = GrowingDepth(k0=1, end=0.2)
    with pytest.raises(ValueError, match="not finite in step 6") as error:
        fit(
            tmp_path,
            Spoil(before=bad_step),
            log_every_n_steps=steps_until_check,
            model={"sampler": sampler, "budget": "layer_executions"},
        )

    def order_of(step, used):
        planned_steps = 16  # 2 epochs of 8
        return sampler.sample_step(DEPTH, SEED, step, progress=used / planned_steps)

    used = [0.0]  # when each step begins
    for step in range(steps_until_check):
        used.append(used[-1] + len(order_of(step, used[-1])) / DEPTH)
    order = order_of(bad_step, used[bad_step])
    order_by_later_progress = order_of(bad_step, used[steps_until_check])
    assert f"whose order was {order};" in str(error.value)
    assert len(order) < len(order_by_later_progress)


# --- Images -------------------------------------------------------------------------------------------------


def broken_imagenet(folder, *names):
    """A small copy of ImageNet's folders in which the files of these names are no images."""
    root = fake_imagenet(folder)
    for name in names:
        (root / name).write_bytes(b"no image")
    return root


def image_folders(root, workers=0, **options):
    """The images below ``root`` in batches of 3."""
    return ImageFolders(root=str(root), image_size=16, batch_size=3, workers=workers, **options)


def training_batches(root, **options):
    data = image_folders(root, **options)
    data.setup("fit")
    return data.train_dataloader()


def count_files(root, split):
    return sum(path.is_file() for path in root.glob(f"{split}/*/*"))


def count_images(loader):
    return sum(len(labels) for _, labels in loader)


def test_broken_images_are_named_and_counted_up_to_a_limit(tmp_path, capfd):
    names = ("train/n01443537/L.JPEG", "train/n01440764/RGB.JPEG")
    root = broken_imagenet(tmp_path, *names)
    whole_batches = count_files(root, "train") // 3

    loader = training_batches(root, unreadable=2, workers=1)
    for _ in range(2):  # in the second epoch they have been named
        sizes = [len(labels) for _, labels in loader]
        assert sizes == [3] * whole_batches
    said = capfd.readouterr().err
    for name in names:
        assert said.count(f"{root / name} can't be read as an image") == 1
    assert said.count("1 of at most 2") == 1
    assert said.count("2 of at most 2") == 1

    complaint = r"JPEG can't be read as an image .*: replace or remove it, and the 1 named before"
    with pytest.raises(ValueError, match=complaint):
        list(training_batches(root, unreadable=1))


def test_broken_images_are_left_out_of_an_evaluation(tmp_path):
    root = broken_imagenet(tmp_path, "val/n01440764/RGB.JPEG", "train/n01440764/RGB.JPEG")
    data = image_folders(root, unreadable=1)
    data.setup("test")
    assert count_images(data.test_dataloader()) == count_files(root, "val") - 1

    # Also of the training images, of which ``linear-probe`` computes the features: each counts once.
    data = image_folders(root, unreadable=1, val_fraction=0)
    data.setup()
    assert count_images(data.loader("train")) == count_files(root, "train") - 1


def test_a_batch_without_any_image_stops_the_run(tmp_path):
    root = fake_imagenet(tmp_path)
    for path in root.glob("train/*/*"):
        path.write_bytes(b"")

    with pytest.raises(ValueError, match="no image of a batch of 3 can be read"):
        list(training_batches(root, unreadable=1000))


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 999)
    Image.new("1", (100, 10)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))

    with pytest.raises(ValueError, match="100 x 10 pixels are more than 999"):
        decoding.open_image(tmp_path / "bomb.png")


def _icon(picture):
    """An icon that says that its picture, a PNG, has 16 x 16 pixels."""
    header = struct.pack("<3H", 0, 1, 1)  # an icon, of one picture
    size_of_header_and_entry = 22
    entry = struct.pack("<4BHHII", 16, 16, 0, 0, 1, 32, len(picture), size_of_header_and_entry)
    return header + entry + picture


def test_formats_that_take_much_memory_have_a_lower_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_COSTLY_PIXELS", 999)
    for name in ("a.png", "a.webp", "a.jp2"):
        Image.new("RGB", (100, 20)).save(tmp_path / name)
    (tmp_path / "a.ico").write_bytes(_icon((tmp_path / "a.png").read_bytes()))
    pillows_limit = Image.MAX_IMAGE_PIXELS

    assert decoding.open_image(tmp_path / "a.png").size == (100, 20)
    for name in ("a.webp", "a.jp2", "a.ico"):
        with pytest.raises(ValueError, match="pixels are more than"):
            decoding.open_image(tmp_path / name)
    # Icons are read with a lower limit of Pillow's own, which holds for the whole process.
    assert pillows_limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("size", "complaint"),
    [("12000 10000", "12000 x 10000 pixels are more than"), ("20000 20000", "its pixels are more than 100,000,000")],
)
def test_images_that_pillow_finds_too_large_are_refused_in_our_own_words(tmp_path, size, complaint):
    # A header without pixels. Pillow warns of the first size, and refuses the second one itself.
    path = tmp_path / "large.pgm"
    path.write_text(f"P5 {size} 255\n")

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        set_up_logging()
        with pytest.raises(ValueError, match=complaint):
            decoding.open_image(path)
    assert not warned


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_model_that_fails_on_validation_images_is_not_the_best(tmp_path, value):
    module = FineTuner("vit_tiny_patch16_224", 10, timm_args=SMALL)
    torch.nn.init.constant_(module.model.vit.head.bias, value)
    run = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    run.validate(module, datamodule=Digits(), verbose=False)
    assert float(run.callback_metrics["val/loss"]) == math.inf


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_gpu_is_one_sentence(error):
    def full():
        raise error

    with pytest.raises(SystemExit, match="^error: the GPU's memory is full: lower --data.batch_size"):
        run(full)


# --- W&B ----------------------------------------------------------------------------------------------------


KILL = """
import os, signal, sys
from layershuffle.commands.errors import run
from layershuffle.commands.train import train_command
from layershuffle.training.module import FineTuner

def kill(module):
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = open(f"/proc/{process}/status").read()
        except OSError:
            continue
        if "wandb-core" in status and f"PPid:\\t{os.getpid()}\\n" in status:
            os.kill(int(process), signal.SIGKILL)
            print("killed")

FineTuner.on_train_epoch_start = kill
run(lambda: train_command(sys.argv[1:]))
"""
"""A program that trains, and kills W&B's own process when the first epoch begins."""


class FullAccount(BaseHTTPRequestHandler):
    """A W&B server that begins runs and then takes no more of them."""

    refused = 0

    def do_POST(self):
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        code = 200
        answer = {"data": {}}
        if self.path == "/graphql":
            query = json.loads(asked)
            answer = {"data": self._data(query.get("variables") or {})}
        elif "file_stream" in self.path:
            code = 402
            answer = {"error": "storage quota exceeded"}
            type(self).refused += 1

        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST  # noqa: N815 (names of the standard library)

    def _data(self, variables):
        """The answer to a query of any kind: the client looks for what it has asked for."""
        viewer = {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        project = {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}}
        bucket = {"id": "1", "name": variables.get("name"), "displayName": "run", "config": "{}", "project": project}
        address = f"http://127.0.0.1:{self.server.server_port}/file"
        files = [{"name": name, "uploadUrl": address} for name in variables.get("files") or []]
        return {
            "viewer": viewer,
            "upsertBucket": {"bucket": bucket, "inserted": True},
            "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files},
            "serverInfo": {"features": []},
        }

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def full_account():
    """Starts a local W&B server whose account is full; returns its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FullAccount) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


NEW_CLIENT = pytest.mark.skipif(wandb.__version__ < "0.31", reason="older clients ask the server for other things")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refusing", "no key", "killed", pytest.param("quota", marks=NEW_CLIENT)])
def test_training_goes_on_without_wandb(tmp_path, full_account, fault):
    """The real client: where nobody listens, without a key, with its process killed, and where its quota is hit."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    # There is no file with a key in these places.
    environment["HOME"] = str(tmp_path)
    environment["NETRC"] = str(tmp_path / "none")
    if fault == "quota":
        environment["WANDB_BASE_URL"] = f"http://127.0.0.1:{full_account}"
        environment["WANDB_INIT_TIMEOUT"] = "30"
    else:
        environment["WANDB_BASE_URL"] = "http://127.0.0.1:9"  # a port at which nobody listens
        environment["WANDB_INIT_TIMEOUT"] = "2"
    if fault in ("refusing", "quota"):
        environment["WANDB_API_KEY"] = "0123456789abcdef0123456789abcdef01234567"

    def run_python(*arguments):
        finished = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, check=False, env=environment, capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
        return finished

    options = [
        *configs("model/mini_digits", "data/digits", "trainer/cpu", "method/layershuffle"),
        *QUIET,
        "--trainer.logger=WandbLogger",
        "--trainer.max_epochs=1",
        "--trainer.log_every_n_steps=1",
        "--model.timm_args.depth=2",
        "--data.train_images=300",
    ]
    if fault == "killed":
        training = run_python("-c", KILL, *options, "--trainer.logger.offline=true")
    else:
        training = run_python(str(ROOT / "train.py"), *options)

    if fault == "quota":
        assert FullAccount.refused
        assert "warning: W&B" not in training.stderr  # the client warns itself
        assert "it will still be written to disk" in training.stderr
    else:
        assert training.stderr.count("warning: W&B") == 1
    if fault == "killed":
        assert training.stdout.count("killed") == 1
        assert "warning: W&B takes no more" in training.stderr
    if fault in ("refusing", "no key"):
        assert "later, send the run with: wandb sync runs/wandb/offline-run-" in training.stderr
        assert "Traceback" not in training.stderr

    # The run's own file of metrics is complete, and W&B's file is there.
    (metrics,) = tmp_path.rglob("metrics.csv")
    with metrics.open() as file:
        validations = [row for row in csv.DictReader(file) if row["val/loss"]]
    assert len(validations) == 1
    folder = "run-*" if fault == "quota" else "offline-run-*"
    assert len(list(tmp_path.rglob(f"wandb/{folder}/*.wandb"))) == 1

    if fault == "no key":
        (last,) = tmp_path.rglob("last.ckpt")
        evaluation = run_python(str(ROOT / "evaluate.py"), str(last), "--logger=WandbLogger")
        assert evaluation.stderr.count("warning: W&B can't be reached") == 1
        assert "Traceback" not in evaluation.stderr
