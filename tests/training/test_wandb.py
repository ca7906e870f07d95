"""W&B offline, with the real client: what the run's file holds, what it never holds, and that a run goes on."""

import itertools
import json
import os
import struct
import subprocess
import sys
import time

import pytest
import yaml
from google.protobuf.message import DecodeError
from helpers import ROOT, train
from jsonargparse import Namespace
from wandb.proto import wandb_internal_pb2 as pb

from layershuffle.commands.evaluate import evaluate_command
from layershuffle.errors import UserError
from layershuffle.training.run_loggers import continue_wandb

KEY = "0123456789abcdef0123456789abcdef01234567"


def records(path):
    """The records of a .wandb file: a header, then LevelDB's log format in blocks of 32 KiB."""
    content, offset, whole = path.read_bytes(), 7, b""
    while offset + 7 <= len(content):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", content[offset : offset + 7])
        whole += content[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = pb.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def read_back(folder):
    """Each offline run in ``folder``, oldest first: its id, and what it says of config, history and summary."""
    runs = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        run = {"id": None, "config": {}, "history": [], "summary": {}}
        for record in records(path):
            if record.HasField("run"):
                run["id"] = record.run.run_id
                run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("config"):
                run["config"] |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif record.HasField("history"):
                row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                run["history"].append(row)
            elif record.HasField("summary"):
                items = record.summary.update
                run["summary"] |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
        runs.append(run)
    return runs


def read_when_written(folder):
    """The runs once W&B's own process, which may still be writing on a busy machine, has written all of them."""
    end = time.monotonic() + 60
    while True:
        try:
            found = read_back(folder)
        except DecodeError:  # half a record
            found = []
        if time.monotonic() > end or (found and all(run["summary"] for run in found)):
            return found
        time.sleep(0.5)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train, go on from the checkpoint, evaluate: three offline runs."""
    folder = tmp_path_factory.mktemp("wandb")
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_API_KEY", KEY)
    patch.setenv("WANDB_SILENT", "true")
    configs = ["model/mini_digits", "data/digits", "method/layershuffle_predict", "trainer/cpu", "optimizer/mini"]
    args = [f"--config={ROOT / 'configs' / name}.yaml" for name in configs]
    args += ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true", f"--trainer.logger.save_dir={folder}"]
    args += ["--trainer.logger.project=orders", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=1"]
    args += ["--data.train_images=256", f"--checkpoint.dirpath={folder}/kept", "--trainer.log_every_n_steps=1"]
    train([*args, "--trainer.max_epochs=1"])
    train([*args, "--trainer.max_epochs=2", f"--ckpt_path={folder}/kept/last.ckpt"])
    options = [
        "--random_orders",
        "1",
        "--depths",
        "3",
        "--logger=WandbLogger",
        "--logger.offline=true",
        "--data.test_images=20",
    ]
    evaluate_command([f"{folder}/kept/last.ckpt", *options, f"--logger.save_dir={folder}"])
    patch.undo()
    return folder, read_when_written(folder)


def test_metrics_config_and_sampler(runs):
    first = runs[1][0]
    assert first["config"]["model"]["sampler"]["class_path"] == "layershuffle.orders.Shuffle"
    assert first["config"]["data"]["init_args"]["train_images"] == 256
    assert first["config"]["trainer"]["max_epochs"] == 1
    logged = set().union(*first["history"])
    assert {"train/loss", "train/classification_loss", "train/position_loss", "lr-AdamW"} <= logged
    assert {"val/sequential", "val/arbitrary", "val/loss"} <= logged


def test_a_run_goes_on_and_evaluation_joins_it(runs):
    first, second, third = runs[1]
    assert first["id"] == second["id"] == third["id"]
    steps = [
        [int(row["trainer/global_step"]) for row in run["history"] if "trainer/global_step" in row]
        for run in (first, second)
    ]
    assert max(steps[0]) < max(steps[1])


def test_evaluation_tables(runs):
    summary = runs[1][2]["summary"]
    assert 0 <= summary["evaluation/sequential"] <= 1
    assert 0 <= summary["evaluation/pruned/3/random/random"] <= 1
    logged = {name: json.loads(value) for row in runs[1][2]["history"] for name, value in row.items()}
    assert logged["evaluation/overview/_type"] == "images/separated"
    (path,) = runs[0].glob(f"wandb/offline-run-*/files/{logged['evaluation/orders/path']}")
    table = json.loads(path.read_text())
    assert table["columns"][:3] == ["order", "n", "top-1 %"]
    assert [row[0] for row in table["data"]] == ["sequential", "arbitrary, per batch", "arbitrary, fixed"]
    assert table["data"][0][2].startswith(f"{100 * summary['evaluation/sequential']:.2f} ± ")


def test_evaluation_by_class(runs):
    summary = runs[1][2]["summary"]
    logged = {name: json.loads(value) for row in runs[1][2]["history"] for name, value in row.items()}
    assert logged["evaluation/confusion/_type"] == "images/separated"
    (path,) = runs[0].glob(f"wandb/offline-run-*/files/{logged['evaluation/classes/path']}")
    rows = json.loads(path.read_text())["data"]
    assert sum(int(row[1]) for row in rows) == 20
    right = sum(int(row[1]) * float(row[2]) for row in rows) / 20
    assert right == pytest.approx(100 * summary["evaluation/sequential"], abs=0.01)
    assert 0 < summary["evaluation ECE/sequential"] < 1


def test_the_key_is_in_no_file(runs):
    files = [path for path in runs[0].rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_key_in_the_arguments_is_refused(tmp_path):
    args = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/mini_digits", "data/digits")]
    args += ["--trainer.logger=WandbLogger", f"--trainer.logger.dict_kwargs.settings.api_key={KEY}"]
    with pytest.raises(ValueError, match="api_key would be saved with the run: set the environment variable") as error:
        train(args)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("key", ["id", "project"])
@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../../elsewhere", "a\\b", "x" * 200, "line\nbreak"])
def test_a_checkpoint_names_no_folder_but_its_runs(key, name):
    logger = Namespace(class_path="WandbLogger", init_args=Namespace())
    with pytest.raises(UserError, match=rf"the {key} of a W&B run"):
        continue_wandb(logger, {"id": "1a2b", "project": "My orders", key: name})
    continue_wandb(logger, {"id": "1a2b", "project": "My orders"})
    assert (logger.init_args.id, logger.init_args.project) == ("1a2b", "My orders")


def test_a_checkpoint_without_an_id():
    with pytest.raises(UserError, match="the id of a W&B run"):
        continue_wandb(Namespace(class_path="WandbLogger", init_args=Namespace()), {"project": "orders"})


@pytest.mark.slow
def test_disabled(tmp_path):
    # In a process of its own: the client reads its mode once.
    configs = ("model/mini_digits", "data/digits", "trainer/cpu")
    args = [f"--config={ROOT}/configs/{name}.yaml" for name in configs]
    args += ["--trainer.logger=WandbLogger", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    command = [sys.executable, str(ROOT / "train.py"), *args]
    environment = os.environ | {"WANDB_MODE": "disabled"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "last checkpoint" in done.stdout
    assert not list(tmp_path.rglob("*.wandb"))


def test_every_run_of_the_sweep_is_a_command_of_train(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())
    fixed = [part for part in sweep["command"] if not part.startswith("${")]
    grid = [[f"--{name}={value}" for value in setting["values"]] for name, setting in sweep["parameters"].items()]
    runs = list(itertools.product(*grid))
    assert len(runs) == 8
    with pytest.raises(SystemExit) as stop:
        train([*fixed, *runs[-1], "--print_config"])
    assert stop.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["model"]["optimizer"]["init_args"]["lr"] == 3e-4
    assert resolved["data"]["init_args"]["batch_size"] == 640
    assert sweep["metric"]["name"] == "val/loss"
