"""W&B offline, with the real client: what the run's file holds, what it never holds, and that a run goes on."""

import itertools
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from google.protobuf.message import DecodeError
from helpers import QUIET, ROOT, configs, train
from jsonargparse import Namespace
from wandb.proto import wandb_internal_pb2 as pb

from layershuffle.commands.evaluate import evaluate_command
from layershuffle.errors import UserError
from layershuffle.training.run_loggers import continue_wandb

KEY = "0123456789abcdef0123456789abcdef01234567"


def records(path):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB.

    A record that doesn't fit into the rest of a block is written in several parts. Each part has a header, too: a
    checksum, the part's length and its kind.
    """
    header = struct.Struct("<IHB")
    block = 32 * 1024
    content = path.read_bytes()
    offset = 7
    parts = b""
    while offset + header.size <= len(content):
        left_in_block = block - offset % block
        if left_in_block < header.size:
            offset += left_in_block
            continue
        _, length, kind = header.unpack_from(content, offset)
        offset += header.size
        parts += content[offset : offset + length]
        offset += length
        if kind in (1, 4):  # a full record, or the last part of one
            record = pb.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def name_of(item):
    """The name of a metric, which is in one field or the other."""
    return item.key or "/".join(item.nested_key)


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
                run["history"].append({name_of(item): item.value_json for item in record.history.item})
            elif record.HasField("summary"):
                run["summary"] |= {name_of(item): json.loads(item.value_json) for item in record.summary.update}
        runs.append(run)
    return runs


def read_when_written(folder):
    """The runs once W&B's own process, which may still be writing on a busy machine, has written all of them."""
    deadline = time.monotonic() + 60
    while True:
        try:
            runs = read_back(folder)
        except DecodeError:  # half a record
            runs = []
        # The summary comes last.
        all_written = len(runs) > 0 and all(run["summary"] for run in runs)
        if all_written or time.monotonic() > deadline:
            return runs
        time.sleep(0.5)


class Runs(NamedTuple):
    """Three offline runs of the same id, and the folder in which W&B wrote them."""

    folder: Path
    training: dict
    resumed: dict
    evaluation: dict

    def logged_by_evaluation(self):
        """All values that the evaluation logged, by their names."""
        values = {}
        for row in self.evaluation["history"]:
            for name, value in row.items():
                values[name] = json.loads(value)
        return values

    def table(self, path):
        """The content of a table that the evaluation logged."""
        (file,) = self.folder.glob(f"wandb/offline-run-*/files/{path}")
        return json.loads(file.read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Train, go on from the checkpoint, evaluate: three offline runs."""
    folder = tmp_path_factory.mktemp("wandb")
    training = [
        *configs("model/mini_digits", "data/digits", "method/layershuffle_predict", "trainer/cpu", "optimizer/mini"),
        *QUIET,
        "--trainer.logger=WandbLogger",
        "--trainer.logger.offline=true",
        f"--trainer.logger.save_dir={folder}",
        "--trainer.logger.project=orders",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1",
        "--data.train_images=256",
        f"--checkpoint.dirpath={folder}/kept",
    ]
    evaluation = [
        "--random_orders=1",
        "--depths",
        "3",
        "--data.test_images=20",
        "--logger=WandbLogger",
        "--logger.offline=true",
        f"--logger.save_dir={folder}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", KEY)
        patch.setenv("WANDB_SILENT", "true")
        train([*training, "--trainer.max_epochs=1"])
        train([*training, "--trainer.max_epochs=2", f"--ckpt_path={folder}/kept/last.ckpt"])
        evaluate_command([f"{folder}/kept/last.ckpt", *evaluation])
    return Runs(folder, *read_when_written(folder))


def test_metrics_config_and_sampler(runs):
    config = runs.training["config"]
    assert config["model"]["sampler"]["class_path"] == "layershuffle.orders.Shuffle"
    assert config["data"]["init_args"]["train_images"] == 256
    assert config["trainer"]["max_epochs"] == 1

    logged = set()
    for row in runs.training["history"]:
        logged |= row.keys()
    assert {"train/loss", "train/classification_loss", "train/position_loss", "lr-AdamW"} <= logged
    assert {"val/sequential", "val/arbitrary", "val/loss"} <= logged


def test_a_run_goes_on_and_evaluation_joins_it(runs):
    assert runs.training["id"] == runs.resumed["id"] == runs.evaluation["id"]

    def last_step(run):
        return max(int(row["trainer/global_step"]) for row in run["history"] if "trainer/global_step" in row)

    assert last_step(runs.training) < last_step(runs.resumed)


def test_evaluation_tables(runs):
    summary = runs.evaluation["summary"]
    assert 0 <= summary["evaluation/sequential"] <= 1
    assert 0 <= summary["evaluation/pruned/3/random/random"] <= 1

    logged = runs.logged_by_evaluation()
    assert logged["evaluation/overview/_type"] == "images/separated"
    table = runs.table(logged["evaluation/orders/path"])
    assert table["columns"][:3] == ["order", "n", "top-1 %"]
    assert [row[0] for row in table["data"]] == ["sequential", "arbitrary, per batch", "arbitrary, fixed"]
    assert table["data"][0][2].startswith(f"{100 * summary['evaluation/sequential']:.2f} ± ")


def test_evaluation_by_class(runs):
    summary = runs.evaluation["summary"]
    logged = runs.logged_by_evaluation()
    assert logged["evaluation/confusion/_type"] == "images/separated"

    # Each row has a class, the number of its images, and how many percent of them are classified correctly.
    images = 0
    accuracy = 0.0
    for _, images_of_class, accuracy_of_class, *_ in runs.table(logged["evaluation/classes/path"])["data"]:
        images += int(images_of_class)
        accuracy += int(images_of_class) * float(accuracy_of_class) / 20
    assert images == 20
    assert accuracy == pytest.approx(100 * summary["evaluation/sequential"], abs=0.01)
    assert 0 < summary["evaluation ECE/sequential"] < 1


def test_the_key_is_in_no_file(runs):
    files = [path for path in runs.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_a_key_in_the_arguments_is_refused(tmp_path):
    command = configs("model/mini_digits", "data/digits")
    command += ["--trainer.logger=WandbLogger", f"--trainer.logger.dict_kwargs.settings.api_key={KEY}"]
    with pytest.raises(ValueError, match="api_key would be saved with the run: set the environment variable") as error:
        train(command)
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
    options = configs("model/mini_digits", "data/digits", "trainer/cpu")
    options += ["--trainer.logger=WandbLogger", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    environment = os.environ | {"WANDB_MODE": "disabled"}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)

    assert finished.returncode == 0, finished.stderr
    assert "last checkpoint" in finished.stdout
    assert not list(tmp_path.rglob("*.wandb"))


def test_every_run_of_the_sweep_is_a_command_of_train(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    sweep = yaml.safe_load((ROOT / "configs/sweep.yaml").read_text())
    # W&B replaces the parts that begin with ${, such as ${args}.
    fixed = [part for part in sweep["command"] if not part.startswith("${")]
    options = []
    for name, setting in sweep["parameters"].items():
        options.append([f"--{name}={value}" for value in setting["values"]])
    runs = list(itertools.product(*options))
    assert len(runs) == 8

    # The last run has the last value of every parameter.
    with pytest.raises(SystemExit) as stop:
        train([*fixed, *runs[-1], "--print_config"])
    assert stop.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert resolved["model"]["optimizer"]["init_args"]["lr"] == 3e-4
    assert resolved["data"]["init_args"]["batch_size"] == 640
    assert sweep["metric"]["name"] == "val/loss"
