import csv
import fcntl
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from helpers import ROOT, fails, fake_cifar100, fake_imagenet

from layershuffle.commands.experiment import experiment_command, perform
from layershuffle.commands.report import report_command
from layershuffle.experiments import cells
from layershuffle.experiments.definition import list_cells, read
from layershuffle.results import Results
from layershuffle.results.measures import Contributions

TINY = (
    "--model.timm_args='{img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 16, depth: 3, num_heads: 2}' "
    "--data.train_images=128 --data.test_images=50"
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Writes an experiment of small cells with these changes to its setup; returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        setup = {
            "train": ["model/mini_digits", "data/digits", "trainer/cpu", TINY],
            "base": ["method/baseline", "--trainer.max_epochs=1"],
            "methods": {
                "baseline": ["method/baseline", "--trainer.max_epochs=1"],
                "layershuffle": ["method/layershuffle", "--trainer.max_epochs=2"],
            },
            "evaluations": {"results": {"arguments": ["--orders 2 --keep 1"]}},
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({"seeds": [0, 1], "setups": {"digits": setup | changes}}))
        return path

    return write


def names(found):
    return [at.name for at in found]


def test_cells_come_after_those_they_need(tiny):
    found = list_cells(read(tiny(merge=["layershuffle"], analyse={"contributions": ["baseline", "layershuffle"]})))
    assert names(found) == [
        "digits/base/seed0",
        "digits/baseline/seed0",
        "digits/layershuffle/seed0",
        "digits/baseline/seed1",
        "digits/layershuffle/seed1",
        "digits/layershuffle_merged/seed0",
        "digits/layershuffle_merged/seed1",
        "digits/contributions/seed0",
    ]
    for at, before in zip(found, range(len(found))):
        assert set(at.needs) <= set(names(found[:before]))
    merged = found[5]
    assert merged.needs == ("digits/layershuffle/seed0", "digits/layershuffle/seed1")
    assert merged.tasks[0].arguments[:2] == (
        "{digits/layershuffle/seed0}/best.ckpt",
        "{digits/layershuffle/seed1}/best.ckpt",
    )


def test_only_takes_what_the_chosen_need(tiny):
    found = read(tiny())
    assert names(list_cells(found, only=["layershuffle"], seeds=[7])) == [
        "digits/base/seed0",
        "digits/layershuffle/seed7",
    ]
    assert names(list_cells(found, only=["*/base/*"])) == ["digits/base/seed0"]
    with pytest.raises(ValueError, match="no cell is named nothing"):
        list_cells(found, only=["nothing"])
    with pytest.raises(ValueError, match="seeds are different numbers"):
        list_cells(found, seeds=[1, 1])


def test_a_frozen_model_is_studied_beside_the_methods(tiny):
    torch.save(timm.create_model("test_vit").state_dict(), "weights.pth")
    root = fake_imagenet(Path("imagenet"))
    for split in ("train", "val"):
        for at in range(998):
            (root / split / f"m{at}").mkdir()
            shutil.copy(root / "val/n01440764/RGB.JPEG", root / split / f"m{at}/a.JPEG")
    more = "--pretrained=weights.pth --data.root=imagenet --data.test_images=4 --data.workers=0 --images=3"
    path = tiny(frozen={"original": ["test_vit", "data/imagenet", more]}, analyse={"contributions": ["original"]})
    (cell,) = list_cells(read(path), [0], ["contributions"])
    perform(cell, Path("out"))
    found = Results.load(Path("out") / cell.name / "original.json")
    assert found.label == "test_vit"
    assert found.evaluation.options["images"] == len(found.measure(Contributions).orders) == 3


def test_the_scales_are_whole():
    paper = list_cells(read(ROOT / "configs/experiment/paper.yaml"))
    table_1 = [
        at
        for at in paper
        if at.name.split("/")[1] in ("baseline", "layershuffle", "layershuffle_position", "layershuffle_predict")
    ]
    assert len(table_1) == 2 * 2 * 4 * 5
    cifar = next(at for at in paper if at.name == "deit_b_cifar100/layershuffle/seed4")
    assert "--trainer.max_epochs=100" in cifar.tasks[0].arguments
    assert not cifar.needs
    on_cifar = [at.tasks[0] for at in paper if "cifar100" in at.name and at.tasks[0].command == "train"]
    assert len(on_cifar) == 2 * 4 * 5
    assert all("--data.val_fraction=0" in task.arguments for task in on_cifar)
    figure_4 = next(at for at in paper if at.name == "vit_b16_imagenet/contributions/seed0")
    original, shuffled = figure_4.tasks
    with (ROOT / "configs/model/vit_b16.yaml").open() as file:
        assert original.arguments[0] == yaml.safe_load(file)["model"]["name"]
    assert original.output == "original.json"
    assert figure_4.needs == ("vit_b16_imagenet/layershuffle/seed0",)
    assert shuffled.arguments[0] == "{vit_b16_imagenet/layershuffle/seed0}/best.ckpt"
    mini = list_cells(read(ROOT / "configs/experiment/mini.yaml"))
    assert {at.name.split("/")[-1] for at in mini} == {"seed0", "seed1", "seed2"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"train": ["model/nothing"]}, "there is no config named model/nothing"),
        ({"merge": ["nothing"]}, "merges, analyses or evaluates nothing, which is not one of its methods"),
        ({"frozen": {"original": []}}, "has a frozen model without arguments: the first names the model"),
        ({"evaluations": 3}, "is not an experiment"),
        ({"nothing": 1}, "is not an experiment"),
        ({"grid": {"lr": [1e-3]}}, "has lr: .* in a grid, which takes an option and a list of its values"),
        ({"grid": {"--lr": []}}, "has --lr: .* in a grid"),
    ],
)
def test_an_experiment_that_is_none(tiny, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        list_cells(read(tiny(**changes)))


def test_files_that_are_no_experiment(tmp_path):
    with pytest.raises(
        ValueError, match="there is no experiment .*: give a YAML file, or one of .*mini, .*paper, quickstart"
    ):
        read(tmp_path / "nowhere.yaml")
    for text in ("[1", "3", "setups: {}\nseeds: x", "\udc00"):
        (tmp_path / "bad.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match="is not an experiment"):
            read(tmp_path / "bad.yaml")


def test_a_broken_cell_is_reported_and_the_others_go_on(tiny, capsys):
    methods = {
        "broken": ["method/reduced_depth", "--model.sampler.init_args.k=9"],
        "layershuffle": ["method/layershuffle", "--trainer.max_epochs=1"],
    }
    arguments = [f"--scale={tiny(methods=methods)}", "--seeds=0"]
    experiment_command([*arguments, "--dry-run"])
    assert "3 to run" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1 of 3 cells are missing; the same command tries them again"):
        experiment_command(arguments)
    said = capsys.readouterr().out
    assert "digits/broken/seed0: failed, 9 layers can't be kept of 3: choose from 1 to 3" in said
    assert "digits/layershuffle/seed0: finished" in said
    folder = Path("experiments/tiny/digits")
    assert "| arbitrary, fixed |" in (folder / "table.md").read_text()
    written = (folder / "layershuffle/seed0/results.json").stat().st_mtime_ns
    experiment_command([*arguments, "--only", "layershuffle"])
    assert "2 finished, 0 to run" in capsys.readouterr().out
    assert (folder / "layershuffle/seed0/results.json").stat().st_mtime_ns == written

    with pytest.raises(ValueError, match="was made with other options, or from another model, than it has now"):
        experiment_command([f"--scale={tiny()}", "--seeds=0"])


def test_a_killed_cell_goes_on_from_its_last_checkpoint(tiny):
    base, killed = list_cells(read(tiny(methods={"baseline": ["method/baseline", "--trainer.max_epochs=40"]})), [0])
    folder = Path("out")
    perform(base, folder)
    process = multiprocessing.get_context("spawn").Process(target=perform, args=(killed, folder), daemon=True)
    process.start()
    last = folder / killed.name / "last.ckpt"
    while not last.is_file() or torch.load(last, weights_only=True)["epoch"] < 1:
        assert process.is_alive()
        time.sleep(0.05)
    with pytest.raises(ValueError, match="is being run by another process"):
        perform(killed, folder)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not cells.finished(killed, folder)
    stopped = torch.load(last, weights_only=True)["epoch"]
    assert stopped < 39
    perform(killed, folder)
    assert cells.finished(killed, folder)
    assert torch.load(last, weights_only=True)["epoch"] == 39
    with (folder / killed.name / "training/metrics.csv").open() as file:
        epochs = [int(row["epoch"]) for row in csv.DictReader(file) if row["val/loss"]]
    assert epochs == list(range(40))


@pytest.mark.slow
def test_the_papers_cifar100_cells_run(tmp_path, monkeypatch):
    """As configs/experiment/paper.yaml has them, but for a smaller model, no GPU, one epoch and fewer orders."""
    fake_cifar100(tmp_path / "data", monkeypatch)
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load((ROOT / "configs/experiment/paper.yaml").read_text())
    small = "--model.timm_args='{img_size: 32, patch_size: 16, embed_dim: 16, depth: 12, num_heads: 2}'"
    setup = content["setups"]["vit_b16_cifar100"]
    setup["train"] += [small, "--model.pretrained=false", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    for arguments in setup["methods"].values():
        arguments += ["--trainer.max_epochs=1"]
    setup["evaluations"]["results"]["arguments"] += ["--orders 2 --keep 6 --precision 32-true"]
    content["setups"] = {"vit_b16_cifar100": setup}
    path = tmp_path / "paper.yaml"
    path.write_text(yaml.safe_dump(content))
    found = list_cells(read(path), [0, 1], ["layershuffle_predict", "layershuffle_merged/seed0"])
    for at in found:
        perform(at, tmp_path / "out")
    assert [at.name.removeprefix("vit_b16_cifar100/") for at in found] == [
        "layershuffle/seed0",
        "layershuffle_predict/seed0",
        "layershuffle/seed1",
        "layershuffle_predict/seed1",
        "layershuffle_merged/seed0",
    ]
    record = torch.load(tmp_path / "out" / found[0].name / "best.ckpt", weights_only=True)["layershuffle"]
    assert record["data"]["args"]["val_fraction"] == 0
    report_command([str(tmp_path / "out")])
    said = (tmp_path / "out/report/report.md").read_text()
    assert "| layershuffle-merged, sequential |" in said
    assert "CIFAR-100" in said


def test_images_in_class_folders_are_read_by_processes_of_the_cell(tiny, tmp_path):
    fake_imagenet(tmp_path / "pets")
    data = "--data=ImageFolders --data.root=pets --data.workers=2 --data.batch_size=4"
    colours = TINY.replace("in_chans: 1", "in_chans: 3").partition(" --data")[0]
    path = tiny(
        train=["model/mini_digits", "trainer/cpu", data, colours, "--trainer.max_epochs=1"],
        base=None,
        methods={"layershuffle": ["method/layershuffle"]},
        evaluations={"results": {"arguments": ["--data.workers=2 --orders 1 --protocols sequential"]}},
    )
    experiment_command([f"--scale={path}", "--seeds=0"])
    assert Path("experiments/tiny/digits/layershuffle/seed0/results.json").is_file()


def test_sigterm_stops_the_cells_too(tiny):
    path = tiny(base=None, methods={"baseline": ["method/baseline", "--trainer.max_epochs=1000"]})
    command = [sys.executable, "-m", "layershuffle", "experiment", f"--scale={path}", "--seeds=0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    last = Path("experiments/tiny/digits/baseline/seed0/last.ckpt")
    while not last.is_file():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.terminate()
    assert parent.communicate()[1].splitlines()[-1] == "interrupted"
    log = (last.parent / "log.txt").read_text()
    assert "SIGTERM: stopped after step" in log
    with (last.parent / ".lock").open("w") as file:  # which a process that still runs the cell would hold
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


LR = "--model.optimizer.init_args.lr"


def test_a_grid_is_decided_by_validation_images(tiny, capsys):
    path = tiny(base=None, grid={LR: ["1e-3", 1e-9]}, merge=["layershuffle"])
    found = list_cells(read(path))
    assert names(found)[:6] == [
        "digits/baseline/grid/lr=0.001/seed0",
        "digits/layershuffle/grid/lr=0.001/seed0",
        "digits/baseline/grid/lr=1e-09/seed0",
        "digits/layershuffle/grid/lr=1e-09/seed0",
        "digits/baseline/seed0",
        "digits/layershuffle/seed0",
    ]
    assert found[5].needs == (names(found)[1], names(found)[3])
    assert [at.tasks[0].output for at in found[:4] if len(at.tasks) == 1] == 4 * ["best.ckpt"]
    arguments = [f"--scale={path}", "--seeds=1", "--only=layershuffle"]
    wanted = list_cells(read(path), [1], ["layershuffle"])
    assert len(wanted) == 3
    for at in wanted:
        perform(at, Path("experiments/tiny"))
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
    assert "3 finished, 0 to run" in capsys.readouterr().out
    row = f"| layershuffle | {losses['lr=0.001']:.4f} | {losses['lr=1e-09']:.4f} | {best} |"
    assert row in (folder.parent / "grid.md").read_text()

    # The other point becomes the better one.
    metrics = folder / "grid" / best / "seed0/training/metrics.csv"
    metrics.write_text("step,epoch,val/loss\n1,0,1000\n")
    assert cells.best(wanted[2].grid, Path("experiments/tiny")) != f"digits/layershuffle/grid/{best}/seed0"


def test_a_grid_without_validation_images_is_refused(tiny):
    path = tiny(base=None, grid={LR: [1e-3]}, train=["mini_digits", "digits", "cpu", TINY, "--data.val_fraction=0"])
    with pytest.raises(ValueError, match="a choice of hyper-parameters must not see the test images"):
        perform(list_cells(read(path))[0], Path("out"))
    assert not list(Path().rglob("*.ckpt"))


def test_configs_by_their_paths(tiny, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/short.yml").write_text("trainer: {max_epochs: 1}\n")
    (tmp_path / "mine.yaml").write_text("data: {init_args: {batch_size: 32}}\n")
    train = ["model/mini_digits", "data/digits", "trainer/cpu", TINY, "mine.yaml"]
    methods = {"baseline": ["method/baseline", "configs/short.yml", str(tmp_path / "absolute.yaml")]}
    (tmp_path / "absolute.yaml").write_text("trainer: {log_every_n_steps: 1}\n")
    path = tiny(base=None, train=train, methods=methods)
    perform(list_cells(read(path))[0], Path("out"))
    config = yaml.safe_load(Path("out/digits/baseline/seed0/training/config.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 32
    assert (config["trainer"]["max_epochs"], config["trainer"]["log_every_n_steps"]) == (1, 1)
    (tmp_path / "mine.yaml").unlink()
    with pytest.raises(ValueError, match=r"there is no file mine\.yaml; the paths in an experiment start from"):
        list_cells(read(path))


def test_one_cell_alone(tiny, capsys):
    arguments = [f"--scale={tiny(base=None)}", "--seeds=0", "--cell"]
    experiment_command([*arguments, "digits/baseline/seed0"])
    folder = Path("experiments/tiny/digits")
    assert (folder / "baseline/seed0/results.json").is_file()
    assert not (folder / "layershuffle").exists()
    said = fails(capsys, experiment_command, *arguments, "layershuffle")
    assert said == "error: no cell is named layershuffle: --dry_run lists them all"


def test_a_folder_that_cant_be_written_is_one_sentence(tiny, tmp_path, capfd):
    (tmp_path / "file").touch()
    said = fails(capfd, experiment_command, f"--scale={tiny()}", "--output=file/out")
    assert said == "error: file/out/experiment.json could not be written: Not a directory"


def test_a_damaged_record_is_named(tiny):
    (at, *_) = list_cells(read(tiny()), [0])
    folder = Path("out")
    (folder / at.name).mkdir(parents=True)
    (folder / at.name / "cell.json").write_text("{")
    with pytest.raises(ValueError, match=r"cell\.json is damaged: remove"):
        cells.finished(at, folder)


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


def test_slurm_gets_a_job_for_every_missing_cell(tiny, slurm, capsys):
    pytest.importorskip("submitit")
    arguments = [f"--scale={tiny()}", "--seeds=0", "--slurm={slurm_partition: gpu, gpus_per_node: 1, timeout_min: 90}"]
    experiment_command(arguments)
    said = capsys.readouterr().out
    assert "digits/base/seed0: job 100" in said
    base, baseline, shuffled = ((slurm / f"job{n}").read_text() for n in range(3))
    assert "#SBATCH --partition=gpu" in base
    assert "#SBATCH --time=90" in base
    assert "dependency" not in base
    assert "#SBATCH --dependency=afterok:100" in baseline
    assert "#SBATCH --dependency=afterok:100" in shuffled
    assert "#SBATCH --job-name=digits-layershuffle-seed0" in shuffled

    experiment_command(arguments)
    assert "digits/layershuffle/seed0: job 102 is at it" in capsys.readouterr().out
    assert not (slurm / "job3").exists()


def test_slurm_where_there_is_none(tiny):
    pytest.importorskip("submitit")
    with pytest.raises(ValueError, match="SLURM took 0 of 5 jobs, then: "):
        experiment_command([f"--scale={tiny()}", "--slurm={timeout_min: 90}"])
