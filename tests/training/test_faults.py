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
from helpers import FULL, ROOT, SMALL, fake_imagenet
from PIL import Image

from layershuffle.commands.errors import run
from layershuffle.commands.logs import set_up_logging
from layershuffle.data import Digits, ImageFolders, decoding
from layershuffle.orders.samplers import GrowingDepth, Shuffle
from layershuffle.training.checkpointing import LastCheckpoint, WholeCheckpointIO
from layershuffle.training.module import FineTuner

# --- Losses -------------------------------------------------------------------------------------------------


class Spoil(pl.Callback):
    """Makes one weight not finite, before a step or when a number of steps are done."""

    def __init__(self, before=None, done=None, value=float("inf")):
        self.before, self.done, self.value = before, done, value

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._spoil(trainer.global_step == self.before, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._spoil(trainer.global_step == self.done, module)

    @torch.no_grad()
    def _spoil(self, now, module):
        if now:
            module.model.vit.head.weight[0, 0] = self.value


def fit(folder, *callbacks, every_n_steps=None, model=None, **options):
    torch.manual_seed(0)
    module = FineTuner("vit_tiny_patch16_224", 10, timm_args=SMALL, seed=5, **(model or {}))
    trainer = pl.Trainer(
        **{"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False},
        **{"num_sanity_val_steps": 0, "max_epochs": 2, "limit_train_batches": 8, "limit_val_batches": 0} | options,
        callbacks=[*callbacks, LastCheckpoint(folder, every_n_steps)],
    )
    trainer.strategy.checkpoint_io = WholeCheckpointIO()
    trainer.fit(module, datamodule=Digits())


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, value):
    with pytest.raises(ValueError, match="not finite in step 11") as error:
        fit(tmp_path, Spoil(11, value=value), log_every_n_steps=4)
    assert f"whose order was {Shuffle().sample_step(4, 5, 11)};" in str(error.value)
    assert f"the last good checkpoint is {tmp_path}/last.ckpt: lower model.optimizer.lr" in str(error.value)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 8
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_no_checkpoint_is_written_after_a_loss_or_weights_went_wrong(tmp_path):
    with pytest.raises(ValueError, match="not finite in step 4"):
        fit(tmp_path / "loss", Spoil(4), log_every_n_steps=100)
    assert not list(tmp_path.glob("loss/*"))
    # The weights go wrong in the last step before a checkpoint, so no loss has shown it.
    with pytest.raises(ValueError, match="not finite in step 4") as error:
        fit(tmp_path / "weights", Spoil(done=5), log_every_n_steps=100, every_n_steps=5, limit_train_batches=5)
    assert "there is no checkpoint yet" in str(error.value)
    assert not list(tmp_path.glob("weights/*"))


def test_the_order_of_a_bad_step_is_that_of_its_share_of_the_budget(tmp_path):
    sampler = GrowingDepth(k0=1, end=0.2)
    with pytest.raises(ValueError, match="not finite in step 6") as error:
        fit(tmp_path, Spoil(6), log_every_n_steps=14, model={"sampler": sampler, "budget": "layer_executions"})
    done = [0.0]
    for step in range(14):  # when the loss is checked
        done.append(done[-1] + len(sampler.sample_step(4, 5, step, progress=done[-1] / 16)) / 4)
    order, later = (sampler.sample_step(4, 5, 6, progress=done[step] / 16) for step in (6, 14))
    assert f"whose order was {order};" in str(error.value)
    assert len(order) < len(later)


# --- Images -------------------------------------------------------------------------------------------------


def broken_imagenet(folder, *names):
    root = fake_imagenet(folder)
    for name in names:
        (root / name).write_bytes(b"no image")
    return root


def batches(root, stage="fit", **options):
    data = ImageFolders(root=str(root), image_size=16, batch_size=3, workers=options.pop("workers", 0), **options)
    data.setup(stage)
    return data.train_dataloader() if stage == "fit" else data.test_dataloader()


def test_broken_images_are_named_and_counted_up_to_a_limit(tmp_path, capfd):
    names = ("train/n01443537/L.JPEG", "train/n01440764/RGB.JPEG")
    root = broken_imagenet(tmp_path, *names)
    total = sum(1 for path in root.glob("train/*/*") if path.is_file())
    loader = batches(root, unreadable=2, workers=1)
    for _ in range(2):  # in the second epoch they have been named
        found = list(loader)
        assert [len(labels) for _, labels in found] == [3] * (total // 3)
    said = capfd.readouterr().err
    assert all(said.count(f"{root / name} can't be read as an image") == 1 for name in names)
    assert said.count("1 of at most 2") == said.count("2 of at most 2") == 1
    with pytest.raises(
        ValueError, match=r"JPEG can't be read as an image .*: replace or remove it, and the 1 named before"
    ):
        list(batches(root, unreadable=1))


def test_broken_images_are_left_out_of_an_evaluation(tmp_path):
    root = broken_imagenet(tmp_path, "val/n01440764/RGB.JPEG", "train/n01440764/RGB.JPEG")
    total = sum(1 for path in root.glob("val/*/*") if path.is_file())
    assert sum(len(labels) for _, labels in batches(root, "test", unreadable=1)) == total - 1
    # Also of the training images, of which ``linear-probe`` computes the features: each counts once.
    data = ImageFolders(root=str(root), image_size=16, batch_size=3, workers=0, unreadable=1, val_fraction=0)
    data.setup()
    total = sum(1 for path in root.glob("train/*/*") if path.is_file())
    assert sum(len(labels) for _, labels in data.loader("train")) == total - 1


def test_a_batch_without_any_image_stops_the_run(tmp_path):
    root = fake_imagenet(tmp_path)
    for path in root.glob("train/*/*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no image of a batch of 3 can be read"):
        list(batches(root, unreadable=1000))


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    root = fake_imagenet(tmp_path)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 999)
    Image.new("1", (100, 10)).save(root / "val/n01440764/bomb.png")
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="100 x 10 pixels are more than 999"):
        decoding.open_image(root / "val/n01440764/bomb.png")


def _icon(picture):
    """An icon that says that its picture, a PNG, has 16 x 16 pixels."""
    entry = struct.pack("<4BHHII", 16, 16, 0, 0, 1, 32, len(picture), 22)
    return struct.pack("<3H", 0, 1, 1) + entry + picture


def test_formats_that_take_much_memory_have_a_lower_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_COSTLY_PIXELS", 999)
    for name in ("a.png", "a.webp", "a.jp2"):
        Image.new("RGB", (100, 20)).save(tmp_path / name)
    (tmp_path / "a.ico").write_bytes(_icon((tmp_path / "a.png").read_bytes()))
    usual = Image.MAX_IMAGE_PIXELS
    assert decoding.open_image(tmp_path / "a.png").size == (100, 20)
    for name in ("a.webp", "a.jp2", "a.ico"):
        with pytest.raises(ValueError, match="pixels are more than"):
            decoding.open_image(tmp_path / name)
    assert usual == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("size", "complaint"),
    [("12000 10000", "12000 x 10000 pixels are more than"), ("20000 20000", "its pixels are more than 100,000,000")],
)
def test_images_that_pillow_finds_too_large_are_refused_in_our_own_words(tmp_path, size, complaint):
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
import os, signal, sys, time
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


class FullAccount(BaseHTTPRequestHandler):
    """A W&B server that begins runs and then takes no more of them."""

    refused = 0

    def do_POST(self):
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        code, answer = 200, {"data": {}}
        if self.path == "/graphql":
            query = json.loads(asked)
            answer = {"data": self._data(query.get("variables") or {})}
        elif "file_stream" in self.path:
            code, answer = 402, {"error": "storage quota exceeded"}
            type(self).refused += 1
        content = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST  # noqa: N815 (names of the standard library)

    def _data(self, variables):
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
    """The port of a local server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FullAccount) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


OLD = pytest.mark.skipif(wandb.__version__ < "0.31", reason="older clients ask the server for other things")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["refusing", "no key", "killed", pytest.param("quota", marks=OLD)])
def test_training_goes_on_without_wandb(tmp_path, full_account, fault):
    """The real client: where nobody listens, without a key, with its process killed, and where its quota is hit."""
    configs = ("model/mini_digits", "data/digits", "trainer/cpu", "method/layershuffle")
    args = [f"--config={ROOT}/configs/{name}.yaml" for name in configs]
    args += ["--trainer.logger=WandbLogger", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    args += ["--model.timm_args.depth=2", "--data.train_images=300", "--trainer.log_every_n_steps=1"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    env |= {
        "WANDB_INIT_TIMEOUT": "2",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "HOME": str(tmp_path),
        "NETRC": str(tmp_path / "none"),
    }
    command = [str(ROOT / "train.py"), *args]
    if fault == "killed":
        command = ["-c", KILL, *args, "--trainer.logger.offline=true"]
    if fault == "quota":
        env |= {"WANDB_INIT_TIMEOUT": "30", "WANDB_BASE_URL": f"http://127.0.0.1:{full_account}"}
    if fault in ("refusing", "quota"):
        env["WANDB_API_KEY"] = "0123456789abcdef0123456789abcdef01234567"
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, check=False, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: W&B") == (fault != "quota")  # of which the client itself warns
    if fault == "quota":
        assert FullAccount.refused
        assert "it will still be written to disk" in done.stderr
    elif fault == "killed":
        assert done.stdout.count("killed") == 1
        assert "warning: W&B takes no more" in done.stderr
    else:
        assert "later, send the run with: wandb sync runs/wandb/offline-run-" in done.stderr
        assert "Traceback" not in done.stderr
    (metrics,) = tmp_path.rglob("metrics.csv")
    with metrics.open() as file:
        assert sum(bool(row["val/loss"]) for row in csv.DictReader(file)) == 1
    assert len(list(tmp_path.rglob(f"wandb/{'' if fault == 'quota' else 'offline-'}run-*/*.wandb"))) == 1
    if fault == "no key":
        (last,) = tmp_path.rglob("last.ckpt")
        command = [str(ROOT / "evaluate.py"), str(last), "--logger=WandbLogger"]
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, check=False, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("warning: W&B can't be reached") == 1
        assert "Traceback" not in done.stderr
