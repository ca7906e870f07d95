import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import preloaded
import pytest
import timm
import torch
import yaml
from helpers import ROOT, fails, fake_cifar100, fake_imagenet
from small_experiments import TINY, settings

from layershuffle.commands.experiment import experiment_command, perform
from layershuffle.commands.report import report_command
from layershuffle.errors import UserError
from layershuffle.experiments import execution
from layershuffle.experiments.definition import read
from layershuffle.experiments.runs import list_runs
from layershuffle.files import WriterLock
from layershuffle.results import Results
from layershuffle.results.measures import Contributions


def test_a_frozen_model_is_studied_beside_the_methods(tiny):
    torch.save(timm.create_model("test_vit").state_dict(), "weights.pth")
    root = fake_imagenet(Path("imagenet"))
    for split in ("train", "val"):
        # Its classifier has 1,000 classes, and fake_imagenet makes two of them.
        for number in range(998):
            (root / split / f"m{number}").mkdir()
            shutil.copy(root / "val/n01440764/RGB.JPEG", root / split / f"m{number}/a.JPEG")
    options = {"pretrained": "weights.pth", "data.root": "imagenet", "data.test_images": 4, "data.workers": 0}
    frozen = {"model": "test_vit", "configs": ["data/imagenet"], "options": {**options, "images": 3}}
    path = tiny(frozen={"original": frozen}, analyse={"contributions": ["original"]})
    (run,) = list_runs(read(path), [0], ["contributions"])
    perform(run, Path("out"))
    results = Results.load(Path("out") / run.name / "original.json")
    assert results.label == "test_vit"
    assert results.evaluation.options["images"] == len(results.measure(Contributions).orders) == 3


def test_a_run_that_fails_is_reported_and_the_others_continue(tiny, capsys, monkeypatch):
    monkeypatch.setattr(sys, "executable", preloaded.python())
    methods = {
        "broken": settings("method/reduced_depth", model__sampler__k=9),
        "layershuffle": settings("method/layershuffle", trainer__max_epochs=1),
    }
    arguments = [str(tiny(methods=methods)), "--seeds=0"]
    experiment_command([*arguments, "--dry-run"])
    assert "3 to run" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 of 3 runs"):
        experiment_command(arguments)
    log = capsys.readouterr().err
    assert re.search("warning: digits/broken/seed0: .* 9 layers", log)
    assert "digits/layershuffle/seed0: finished" in log
    folder = Path("experiments/tiny/digits")
    assert "| arbitrary, fixed |" in (folder / "table.md").read_text()
    written = (folder / "layershuffle/seed0/results.json").stat().st_mtime_ns
    experiment_command([*arguments, "--only", "layershuffle"])
    assert "2 finished, 0 to run" in capsys.readouterr().err
    assert (folder / "layershuffle/seed0/results.json").stat().st_mtime_ns == written

    with pytest.raises(UserError, match="other options.* --folder"):
        experiment_command([str(tiny()), "--seeds=0"])


def test_a_killed_run_continues_from_its_last_checkpoint(tiny):
    methods = {"baseline": settings("method/baseline", trainer__max_epochs=40)}
    base, killed = list_runs(read(tiny(methods=methods)), [0])
    folder = Path("out")
    perform(base, folder)
    process = multiprocessing.get_context("spawn").Process(target=perform, args=(killed, folder), daemon=True)
    process.start()
    last = folder / killed.name / "last.ckpt"
    while not last.is_file() or torch.load(last, weights_only=True)["epoch"] < 1:
        assert process.is_alive()
        time.sleep(0.05)
    with pytest.raises(UserError, match=f"{killed.name} is being written by process {process.pid} on"):
        perform(killed, folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not execution.is_finished(killed, folder)
    stopped = torch.load(last, weights_only=True)["epoch"]
    assert stopped < 39
    perform(killed, folder)
    assert execution.is_finished(killed, folder)
    assert torch.load(last, weights_only=True)["epoch"] == 39
    with (folder / killed.name / "training/metrics.csv").open() as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert epochs == list(range(40))


@pytest.mark.slow
def test_the_papers_runs_on_cifar100(tmp_path, monkeypatch):
    """As configs/experiment/paper.yaml has them, but for a smaller model, no GPU, one epoch and fewer orders."""
    fake_cifar100(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "configs/experiment/paper.yaml").read_text())
    small = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 12, "num_heads": 2}
    setup = content["setups"]["vit_b16_cifar100"]
    setup["train"]["options"] |= {"model.timm_args": small, "model.pretrained": False}
    setup["train"]["options"] |= {"trainer.accelerator": "cpu", "trainer.precision": "32-true"}
    for method in setup["methods"].values():
        method["options"] = {"trainer.max_epochs": 1}
    setup["evaluations"]["results"]["options"] |= {"random_orders": 2, "depths": [6], "precision": "32-true"}
    content["setups"] = {"vit_b16_cifar100": setup}
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content))
    runs = list_runs(read(path), [0, 1], ["layershuffle_predict", "layershuffle_merged/seed0"])
    for run in runs:
        perform(run, tmp_path / "out")
    assert [run.name.removeprefix("vit_b16_cifar100/") for run in runs] == [
        "layershuffle/seed0",
        "layershuffle_predict/seed0",
        "layershuffle/seed1",
        "layershuffle_predict/seed1",
        "layershuffle_merged/seed0",
    ]
    metadata = torch.load(tmp_path / "out" / runs[0].name / "best.ckpt", weights_only=True)["layershuffle"]
    assert metadata["data"]["args"]["val_fraction"] == 0
    report_command([str(tmp_path / "out")])
    report = (tmp_path / "out/report/report.md").read_text()
    assert "| layershuffle-merged, sequential |" in report
    assert "CIFAR-100" in report


@pytest.mark.slow
def test_images_in_class_folders_are_read_by_processes_of_the_run(tiny, tmp_path):
    fake_imagenet(tmp_path / "pets")
    options = {
        "data": "ImageFolders",
        "data.root": "pets",
        "data.workers": 2,
        "data.batch_size": 4,
        "model.timm_args": TINY["model.timm_args"] | {"in_chans": 3},
        "trainer.max_epochs": 1,
    }
    path = tiny(
        train=settings("model/mini_digits", "trainer/cpu", **options),
        base=None,
        methods={"layershuffle": settings("method/layershuffle")},
        evaluations={"results": settings(data__workers=2, random_orders=1, protocols=["sequential"])},
    )
    experiment_command([str(path), "--seeds=0"])
    assert Path("experiments/tiny/digits/layershuffle/seed0/results.json").is_file()


def test_sigterm_stops_the_runs_too(tiny):
    path = tiny(base=None, methods={"baseline": settings("method/baseline", trainer__max_epochs=1000)})
    command = [sys.executable, "-m", "layershuffle", "experiment", str(path), "--seeds=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    last = Path("experiments/tiny/digits/baseline/seed0/last.ckpt")
    while not last.is_file():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.terminate()
    last_line = parent.communicate()[1].splitlines()[-1]
    assert last_line.startswith("interrupted: ")
    assert "the same command continues" in last_line
    log = (last.parent / "log.txt").read_text()
    assert "SIGTERM: stopped after step" in log
    assert re.search(r"^epoch  train/loss .*\n    1  ", log, re.MULTILINE)
    with WriterLock(last.parent):  # A process that still executes the run would hold it.
        pass


LR = "model.optimizer.lr"


def test_a_grid_is_decided_by_validation_images(tiny, capsys):
    path = tiny(base=None, grid={LR: ["1e-3", 1e-9]}, merge=["layershuffle"])
    runs = list_runs(read(path))
    names = [run.name for run in runs]
    assert names[:6] == [
        "digits/baseline/grid/lr=0.001/seed0",
        "digits/layershuffle/grid/lr=0.001/seed0",
        "digits/baseline/grid/lr=1e-09/seed0",
        "digits/layershuffle/grid/lr=1e-09/seed0",
        "digits/baseline/seed0",
        "digits/layershuffle/seed0",
    ]
    assert runs[5].needs == (names[1], names[3])
    assert [run.tasks[0].output for run in runs[:4] if len(run.tasks) == 1] == 4 * ["best.ckpt"]
    arguments = [str(path), "--seeds=1", "--only=layershuffle"]
    chosen = list_runs(read(path), [1], ["layershuffle"])
    assert len(chosen) == 3
    for run in chosen:
        perform(run, Path("experiments/tiny"))
    folder = Path("experiments/tiny/digits/layershuffle")
    losses = {}
    for point in ("lr=0.001", "lr=1e-09"):
        with (folder / "grid" / point / "seed0/training/metrics.csv").open() as file:
            losses[point] = min(float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"])
    best = min(losses, key=losses.get)
    config = yaml.safe_load((folder / "seed1/training/config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == float(best.removeprefix("lr="))
    assert list(Path().rglob("results.json")) == [folder / "seed1/results.json"]
    capsys.readouterr()
    experiment_command(arguments)
    assert "3 finished, 0 to run" in capsys.readouterr().err
    row = f"| layershuffle | {losses['lr=0.001']:.4f} | {losses['lr=1e-09']:.4f} | {best} |"
    assert row in (folder.parent / "grid.md").read_text()

    # With the seed of the trials, the training is the best trial, but for its log.
    trial = folder / "grid" / best / "seed0"
    (trial / "log.txt").write_text("of the trial")
    perform(list_runs(read(path), [0], ["layershuffle"])[-1], Path("experiments/tiny"))
    assert not (folder / "seed0/log.txt").exists()
    assert (folder / "seed0/best.ckpt").read_bytes() == (trial / "best.ckpt").read_bytes()
    records = [json.loads((run_folder / "run.json").read_text()) for run_folder in (folder / "seed0", trial)]
    assert records[0]["best.ckpt"]["seconds"] == records[1]["best.ckpt"]["seconds"]
    assert (folder / "seed0/results.json").is_file()

    # The other point becomes the better one.
    metrics = folder / "grid" / best / "seed0/training/metrics.csv"
    metrics.write_text("step,epoch,val/loss\n1,0,1000\n")
    assert execution.best_trial(chosen[2].trials, Path("experiments/tiny")) != f"digits/layershuffle/grid/{best}/seed0"


def test_a_grid_without_validation_images_is_refused(tiny):
    train = settings("mini_digits", "digits", "cpu", **TINY, data__val_fraction=0)
    path = tiny(base=None, grid={LR: [1e-3]}, train=train)
    with pytest.raises(UserError, match="test images"):
        perform(list_runs(read(path))[0], Path("out"))
    assert not list(Path().rglob("*.ckpt"))


def test_configs_by_their_paths(tiny, tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/short.yml").write_text("trainer: {max_epochs: 1}\n")
    (tmp_path / "mine.yaml").write_text("data: {init_args: {batch_size: 32}}\n")
    train = settings("model/mini_digits", "data/digits", "trainer/cpu", "mine.yaml", **TINY)
    methods = {"baseline": settings("method/baseline", "configs/short.yml", str(tmp_path / "absolute.yaml"))}
    (tmp_path / "absolute.yaml").write_text("trainer: {log_every_n_steps: 1}\n")
    path = tiny(base=None, train=train, methods=methods)
    perform(list_runs(read(path))[0], Path("out"))
    config = yaml.safe_load(Path("out/digits/baseline/seed0/training/config.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 32
    assert (config["trainer"]["max_epochs"], config["trainer"]["log_every_n_steps"]) == (1, 1)
    (tmp_path / "mine.yaml").unlink()
    line = fails(capsys, experiment_command, str(path), "--dry_run")
    assert re.search(r"digits/baseline/seed0 .*mine\.yaml", line)


def test_one_run_alone(tiny, capsys):
    arguments = [str(tiny(base=None)), "--seeds=0", "--run"]
    experiment_command([*arguments, "digits/baseline/seed0"])
    folder = Path("experiments/tiny/digits")
    assert (folder / "baseline/seed0/results.json").is_file()
    assert not (folder / "layershuffle").exists()
    line = fails(capsys, experiment_command, *arguments, "layershuffle")
    assert re.search("layershuffle.*--dry_run", line)


def test_a_folder_that_cant_be_written_is_a_one_line_error(tiny, tmp_path, capfd):
    (tmp_path / "file").touch()
    line = fails(capfd, experiment_command, str(tiny()), "--folder=file/out")
    assert re.search(r"file/out/experiment\.json.*Not a directory", line)


def test_a_damaged_record_is_named(tiny):
    run = list_runs(read(tiny()), [0])[0]
    folder = Path("out")
    (folder / run.name).mkdir(parents=True)
    (folder / run.name / "run.json").write_text("{")
    with pytest.raises(UserError, match=rf"{run.name}/run\.json"):
        execution.is_finished(run, folder)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """In place of SLURM: sbatch keeps what it is given and numbers the jobs, sacct says that all are pending."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text("#!/bin/sh\n")
    (folder / "sbatch").write_text(
        f'#!/bin/sh\nn=$(ls {folder} | grep -c job)\ncp "$1" {folder}/job$n\necho "Submitted batch job $((100 + n))"\n'
    )
    (folder / "sacct").write_text(
        '#!/bin/sh\necho "JobID|State|NodeList"\nfor n in 0 1 2 3; do echo "$((100 + n))|PENDING|None"; done\n'
    )
    for script in folder.iterdir():
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_gets_a_job_for_every_missing_run(tiny, slurm, capsys):
    pytest.importorskip("submitit")
    arguments = [str(tiny()), "--seeds=0", "--slurm={slurm_partition: gpu, gpus_per_node: 1, timeout_min: 90}"]
    experiment_command(arguments)
    assert "digits/base/seed0: job 100" in capsys.readouterr().err
    base, baseline, shuffled = ((slurm / f"job{n}").read_text() for n in range(3))
    assert "#SBATCH --partition=gpu" in base
    assert "#SBATCH --time=90" in base
    assert "dependency" not in base
    assert "#SBATCH --dependency=afterok:100" in baseline
    assert "#SBATCH --dependency=afterok:100" in shuffled
    assert "#SBATCH --job-name=digits-layershuffle-seed0" in shuffled

    experiment_command(arguments)
    assert "digits/layershuffle/seed0: job 102" in capsys.readouterr().err
    assert not (slurm / "job3").exists()


def test_slurm_where_there_is_none(tiny):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="0 of 5 jobs"):
        experiment_command([str(tiny()), "--slurm={timeout_min: 90}"])
