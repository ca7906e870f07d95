"""TensorBoard and MLflow with their real clients and local files: what arrives, and what a missing package says."""

import csv
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from helpers import DIGITS, QUIET, configs, fails, train
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from layershuffle.commands.train import train_command
from layershuffle.training import run_loggers
from layershuffle.training.resume import EarlierRun, continue_run
from layershuffle.training.run_loggers import forgiving

ARGS = [
    *DIGITS,
    *configs("method/layershuffle"),
    *QUIET,
    "--data.train_images=128",
    "--data.batch_size=32",
    "--trainer.max_epochs=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=1",
]
METRICS = {"train/loss", "train/gradient_norm", "train/layer_executions", "val/sequential", "val/arbitrary", "lr-AdamW"}


class Run(NamedTuple):
    """A training with both loggers: the folder of all runs, and the run's own."""

    root: Path
    folder: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains with both loggers."""
    pytest.importorskip("tensorboard")
    pytest.importorskip("mlflow")
    root = tmp_path_factory.mktemp("loggers")
    names = ("TensorBoardLogger", "MLFlowLogger")
    loggers = [{"class_path": name, "init_args": {"save_dir": str(root)}} for name in names]
    config = root / "loggers.yaml"
    config.write_text(yaml.safe_dump({"trainer": {"logger": loggers}}))
    train([*ARGS, f"--config={config}"])
    (events,) = root.rglob("events.out.tfevents.*")
    return Run(root, events.parent)


def test_tensorboard_has_options_and_metrics(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(run.folder)).Reload()
    assert set(events.Tags()["scalars"]) >= METRICS
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2]

    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    options = HParamsPluginData.FromString(content).session_start_info.hparams
    assert options["data/init_args/train_images"].number_value == 128
    assert options["model/sampler/class_path"].string_value == "layershuffle.orders.Shuffle"


def test_mlflow_has_options_and_metrics(run):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.root}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "lightning_logs"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert set(found.data.metrics) >= METRICS
    assert found.data.params["data/init_args/train_images"] == "128"
    assert found.data.params["model/sampler/class_path"] == "layershuffle.orders.Shuffle"
    assert [metric.step for metric in client.get_metric_history(found.info.run_id, "train/loss")] == [0, 1, 2]


def test_there_is_a_file_of_metrics_beside_them(run):
    with (run.folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [row["step"] for row in rows] == ["0", "1", "2"]


@pytest.mark.parametrize("first", ["TensorBoardLogger", "MLFlowLogger"])
def test_a_run_that_goes_on_is_logged_to_the_same_place(tmp_path, first):
    names = [first, "TensorBoardLogger"]
    loggers = [Namespace(class_path=name, init_args=Namespace(version=None)) for name in names]
    config = Namespace(trainer=Namespace(logger=loggers))
    continue_run(config, EarlierRun(tmp_path / "1a2b", tmp_path / "last.ckpt"), 7)

    # TensorBoard forgets what was logged after the step of the checkpoint.
    assert loggers[1].dict_kwargs == {"purge_step": 7}
    # The first logger names the folder of the run. That of MLflow has the name of its run.
    if first == "MLFlowLogger":
        assert loggers[0].init_args == Namespace(version=None, run_id="1a2b")
        assert loggers[1].init_args.version is None
    else:
        assert [logger.init_args.version for logger in loggers] == ["1a2b", "1a2b"]


@pytest.mark.parametrize("name", ["TensorBoardLogger", "MLFlowLogger"])
def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", False)
    line = fails(capsys, train_command, *ARGS, f"--trainer.logger={name}")
    assert f"layershuffle[{run_loggers.EXTRAS[name]}]" in line


def test_a_logger_that_fails_warns_once_and_is_left_alone(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(run_loggers, "_warned", set())
    calls = []

    def fail(*_):
        calls.append(1)
        raise OSError("the disk is full")

    log = forgiving(fail, CSVLogger(tmp_path))
    log({})
    log({})

    assert len(calls) == 1
    assert len(caplog.records) == 1
    assert "CSVLogger" in caplog.text
