import csv
import json
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


def logged_validation_losses(run_folder):
    """The epochs and validation losses that a run's training has logged, in a list of pairs."""
    with (run_folder / "training/metrics.csv").open() as file:
        # Most rows are of training steps, and have no validation loss.
        return [(int(row["epoch"]), float(row["val/loss"])) for row in csv.DictReader(file) if row["val/loss"]]


def test_a_frozen_model_is_studied_beside_the_methods(tiny):
    torch.save(timm.create_model("test_vit").state_dict(), "weights.pth")
    root = fake_imagenet(Path("imagenet"))
    for split in ("train", "val"):
        # Its classifier has 1,000 classes, and fake_imagenet makes two of them.
        for number in range(998):
            (root / split / f"m{number}").mkdir()
            shutil.copy(root / "val/n01440764/RGB.JPEG", root / split / f"m{number}/a.JPEG")
    frozen = {
        "model": "test_vit",
        "configs": ["data/imagenet"],
        "options": {
            "pretrained": "weights.pth",
            "data.root": "imagenet",
            "data.test_images": 4,
            "data.workers": 0,
            "images": 3,
        },
    }
    path = tiny(frozen={"original": frozen}, analyse={"contributions": ["original"]})
    (run,) = list_runs(read(path), seeds=[0], only=["contributions"])

    perform(run, Path("out"))

    results = Results.load(Path("out") / run.name / "original.json")
    assert results.label == "test_vit"
    assert results.evaluation.options["images"] == 3
    assert len(results.measure(Contributions).orders) == 3  # each image ran in an order of its own


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

    # What is finished isn't done again.
    written = (folder / "layershuffle/seed0/results.json").stat().st_mtime_ns
    experiment_command([*arguments, "--only", "layershuffle"])
    assert "2 finished, 0 to run" in capsys.readouterr().err
    assert (folder / "layershuffle/seed0/results.json").stat().st_mtime_ns == written

    # Another experiment of the same name doesn't go into its folder.
    with pytest.raises(UserError, match="other options.* --folder"):
        experiment_command([str(tiny()), "--seeds=0"])


def test_a_killed_run_continues_from_its_last_checkpoint(tiny):
    methods = {"baseline": settings("method/baseline", trainer__max_epochs=40)}
    path = tiny(methods=methods)
    base, killed = list_runs(read(path), seeds=[0])
    folder = Path("out")
    perform(base, folder)
    last = folder / killed.name / "last.ckpt"

    def last_epoch():
        return torch.load(last, weights_only=True)["epoch"]

    command = [preloaded.python(), "-m", "layershuffle", "experiment", str(path), "--folder=out", "--seeds=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, f"--run={killed.name}"], env=environment)
    while not last.is_file() or last_epoch() < 1:
        assert process.poll() is None
        time.sleep(0.05)
    with pytest.raises(UserError, match=f"{killed.name} is being written by process ") as refusal:
        perform(killed, folder)
    # The process that trains is a fork, whose number the message has.
    (number,) = re.findall(r"by process (\d+) on", str(refusal.value))
    os.kill(int(number), signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not execution.is_finished(killed, folder)
    assert last_epoch() < 39  # it was killed in time

    perform(killed, folder)
    assert execution.is_finished(killed, folder)
    assert last_epoch() == 39
    # Every epoch was logged once, also that in which the run was killed.
    assert [epoch for epoch, _ in logged_validation_losses(folder / killed.name)] == list(range(40))


@pytest.mark.slow
def test_the_papers_runs_on_cifar100(tmp_path, monkeypatch):
    """As configs/experiment/paper.yaml has them, but for a smaller model, no GPU, one epoch and fewer orders."""
    fake_cifar100(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "configs/experiment/paper.yaml").read_text())
    setup = content["setups"]["vit_b16_cifar100"]
    setup["train"]["options"] |= {
        "model.timm_args": {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 12, "num_heads": 2},
        "model.pretrained": False,
        "trainer.accelerator": "cpu",
        "trainer.precision": "32-true",
    }
    for method in setup["methods"].values():
        method["options"] = {"trainer.max_epochs": 1}
    setup["evaluations"]["results"]["options"] |= {"random_orders": 2, "depths": [6], "precision": "32-true"}
    content["setups"] = {"vit_b16_cifar100": setup}
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content))

    runs = list_runs(read(path), seeds=[0, 1], only=["layershuffle_predict", "layershuffle_merged/seed0"])
    # The merged model needs two models that were trained with shuffled layers.
    assert [run.name for run in runs] == [
        "vit_b16_cifar100/layershuffle/seed0",
        "vit_b16_cifar100/layershuffle_predict/seed0",
        "vit_b16_cifar100/layershuffle/seed1",
        "vit_b16_cifar100/layershuffle_predict/seed1",
        "vit_b16_cifar100/layershuffle_merged/seed0",
    ]
    for run in runs:
        perform(run, tmp_path / "out")
    metadata = torch.load(tmp_path / "out" / runs[0].name / "best.ckpt", weights_only=True)["layershuffle"]
    assert metadata["data"]["args"]["val_fraction"] == 0

    report_command([str(tmp_path / "out")])
    report = (tmp_path / "out/report/report.md").read_text()
    assert "| layershuffle-merged, sequential |" in report
    assert "CIFAR-100" in report


@pytest.mark.slow
def test_images_in_class_folders_are_read_by_processes_of_the_run(tiny, tmp_path):
    fake_imagenet(tmp_path / "pets")
    path = tiny(
        train={
            "configs": ["model/mini_digits", "trainer/cpu"],
            "options": {
                "data": "ImageFolders",
                "data.root": "pets",
                "data.workers": 2,
                "data.batch_size": 4,
                "model.timm_args": TINY["model.timm_args"] | {"in_chans": 3},
                "trainer.max_epochs": 1,
            },
        },
        base=None,
        methods={"layershuffle": settings("method/layershuffle")},
        evaluations={"results": settings(data__workers=2, random_orders=1, protocols=["sequential"])},
    )
    experiment_command([str(path), "--seeds=0"])
    assert Path("experiments/tiny/digits/layershuffle/seed0/results.json").is_file()


def test_sigterm_stops_the_runs_too(tiny):
    python = preloaded.python()
    path = tiny(base=None, methods={"baseline": settings("method/baseline", trainer__max_epochs=1000)})
    # The run's process is a fork as well.
    code = f"import sys; sys.executable = {python!r}; from layershuffle.commands import main; main()"
    command = [python, "-c", code, "experiment", str(path), "--seeds=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    last = Path("experiments/tiny/digits/baseline/seed0/last.ckpt")
    while not last.is_file():
        assert parent.poll() is None
        time.sleep(0.05)

    parent.terminate()  # which sends SIGTERM
    _, said = parent.communicate()

    last_line = said.splitlines()[-1]
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

    # First come the trials, one for each method and learning rate, which only train.
    runs = list_runs(read(path))
    trials = runs[:4]
    assert [run.name for run in trials] == [
        "digits/baseline/grid/lr=0.001/seed0",
        "digits/layershuffle/grid/lr=0.001/seed0",
        "digits/baseline/grid/lr=1e-09/seed0",
        "digits/layershuffle/grid/lr=1e-09/seed0",
    ]
    for run in trials:
        assert [task.output for task in run.tasks] == ["best.ckpt"]
    baseline, shuffled = runs[4:6]
    assert baseline.name == "digits/baseline/seed0"
    assert shuffled.name == "digits/layershuffle/seed0"
    assert shuffled.needs == (trials[1].name, trials[3].name)

    # Both trials of one method are performed, and then its training with another seed.
    experiment = Path("experiments/tiny")
    chosen = list_runs(read(path), seeds=[1], only=["layershuffle"])
    assert len(chosen) == 3
    for run in chosen:
        perform(run, experiment)
    folder = experiment / "digits/layershuffle"
    losses = {}
    for point in ("lr=0.001", "lr=1e-09"):
        losses[point] = min(loss for _, loss in logged_validation_losses(folder / "grid" / point / "seed0"))
    best = min(losses, key=losses.get)
    config = yaml.safe_load((folder / "seed1/training/config.yaml").read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == float(best.removeprefix("lr="))
    assert list(Path().rglob("results.json")) == [folder / "seed1/results.json"]

    capsys.readouterr()
    experiment_command([str(path), "--seeds=1", "--only=layershuffle"])
    assert "3 finished, 0 to run" in capsys.readouterr().err
    row = f"| layershuffle | {losses['lr=0.001']:.4f} | {losses['lr=1e-09']:.4f} | {best} |"
    assert row in (experiment / "digits/grid.md").read_text()

    # With the seed of the trials, the training is the best trial, but for its log.
    trial = folder / "grid" / best / "seed0"
    (trial / "log.txt").write_text("of the trial")
    *_, training = list_runs(read(path), seeds=[0], only=["layershuffle"])
    perform(training, experiment)
    assert not (folder / "seed0/log.txt").exists()
    assert (folder / "seed0/best.ckpt").read_bytes() == (trial / "best.ckpt").read_bytes()
    record = json.loads((folder / "seed0/run.json").read_text())
    record_of_trial = json.loads((trial / "run.json").read_text())
    assert record["best.ckpt"]["seconds"] == record_of_trial["best.ckpt"]["seconds"]
    assert (folder / "seed0/results.json").is_file()

    # With such a loss, the other point becomes the better one.
    (trial / "training/metrics.csv").write_text("step,epoch,val/loss\n1,0,1000\n")
    *_, training = chosen
    assert execution.best_trial(training.trials, experiment) != f"digits/layershuffle/grid/{best}/seed0"


def test_a_grid_without_validation_images_is_refused(tiny):
    train = {"configs": ["mini_digits", "digits", "cpu"], "options": TINY | {"data.val_fraction": 0}}
    path = tiny(base=None, grid={LR: [1e-3]}, train=train)
    first_trial, *_ = list_runs(read(path))
    with pytest.raises(UserError, match="test images"):
        perform(first_trial, Path("out"))
    assert not list(Path().rglob("*.ckpt"))


def test_configs_by_their_paths(tiny, tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/short.yml").write_text("trainer: {max_epochs: 1}\n")
    (tmp_path / "mine.yaml").write_text("data: {init_args: {batch_size: 32}}\n")
    (tmp_path / "absolute.yaml").write_text("trainer: {log_every_n_steps: 1}\n")
    train = {"configs": ["model/mini_digits", "data/digits", "trainer/cpu", "mine.yaml"], "options": TINY}
    methods = {"baseline": settings("method/baseline", "configs/short.yml", str(tmp_path / "absolute.yaml"))}
    path = tiny(base=None, train=train, methods=methods)
    first_run, *_ = list_runs(read(path))
    perform(first_run, Path("out"))
    config = yaml.safe_load(Path("out/digits/baseline/seed0/training/config.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 32
    assert config["trainer"]["max_epochs"] == 1
    assert config["trainer"]["log_every_n_steps"] == 1

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
    run, *_ = list_runs(read(tiny()), seeds=[0])
    folder = Path("out")
    (folder / run.name).mkdir(parents=True)
    (folder / run.name / "run.json").write_text("{")
    with pytest.raises(UserError, match=rf"{run.name}/run\.json"):
        execution.is_finished(run, folder)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Puts programs in place of SLURM's: sbatch keeps what it is given, and sacct says that all jobs are pending.

    Returns the folder with the scripts of the jobs, job0, job1 and so on; SLURM's numbers of them are 100, 101...
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "srun": "#!/bin/sh\n",
        "sbatch": f"""#!/bin/sh
n=$(ls {folder} | grep -c job)
cp "$1" {folder}/job$n
echo "Submitted batch job $((100 + n))"
""",
        "sacct": """#!/bin/sh
echo "JobID|State|NodeList"
for n in 0 1 2 3; do echo "$((100 + n))|PENDING|None"; done
""",
    }
    for name, script in programs.items():
        program = folder / name
        program.write_text(script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_slurm_gets_a_job_for_every_missing_run(tiny, slurm, capsys):
    pytest.importorskip("submitit")
    arguments = [str(tiny()), "--seeds=0", "--slurm={slurm_partition: gpu, gpus_per_node: 1, timeout_min: 90}"]
    experiment_command(arguments)
    assert "digits/base/seed0: job 100" in capsys.readouterr().err
    base = (slurm / "job0").read_text()
    baseline = (slurm / "job1").read_text()
    shuffled = (slurm / "job2").read_text()
    assert "#SBATCH --partition=gpu" in base
    assert "#SBATCH --time=90" in base
    assert "dependency" not in base
    assert "#SBATCH --dependency=afterok:100" in baseline
    assert "#SBATCH --dependency=afterok:100" in shuffled
    assert "#SBATCH --job-name=digits-layershuffle-seed0" in shuffled

    # Jobs that are pending aren't submitted again.
    experiment_command(arguments)
    assert "digits/layershuffle/seed0: job 102" in capsys.readouterr().err
    assert not (slurm / "job3").exists()


def test_slurm_where_there_is_none(tiny):
    pytest.importorskip("submitit")
    with pytest.raises(UserError, match="0 of 5 jobs"):
        experiment_command([str(tiny()), "--slurm={timeout_min: 90}"])
