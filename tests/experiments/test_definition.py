"""What experiments' files say, the runs that they stand for, and mistakes that are found before anything runs."""

from pathlib import Path

import pytest
import yaml
from helpers import ROOT, fails
from small_experiments import settings

from layershuffle.commands.experiment import ACTIONS, experiment_command
from layershuffle.errors import UserError
from layershuffle.experiments.check import check
from layershuffle.experiments.definition import Evaluation, Settings, read
from layershuffle.experiments.matrix import expand
from layershuffle.experiments.runs import list_runs

EXPERIMENTS = []
for path in sorted((ROOT / "configs/experiment").glob("*.yaml")):
    # Searches for learning rates have the methods of the experiments that they are for, many times over.
    marks = [pytest.mark.slow] if path.stem.endswith("learning_rates") else []
    EXPERIMENTS.append(pytest.param(path, id=path.stem, marks=marks))


def names(runs):
    return [run.name for run in runs]


def test_runs_come_after_those_they_need(tiny):
    path = tiny(merge=["layershuffle"], analyse={"contributions": ["baseline", "layershuffle"]})
    runs = list_runs(read(path))
    assert names(runs) == [
        "digits/base/seed0",
        "digits/baseline/seed0",
        "digits/layershuffle/seed0",
        "digits/baseline/seed1",
        "digits/layershuffle/seed1",
        "digits/layershuffle_merged/seed0",
        "digits/layershuffle_merged/seed1",
        "digits/contributions/seed0",
    ]
    for index, run in enumerate(runs):
        assert set(run.needs) <= set(names(runs[:index]))
    merged = runs[5]
    assert merged.needs == ("digits/layershuffle/seed0", "digits/layershuffle/seed1")
    assert merged.tasks[0].models == merged.needs


def test_only_takes_what_the_chosen_need(tiny):
    experiment = read(tiny())
    assert names(list_runs(experiment, only=["layershuffle"], seeds=[7])) == [
        "digits/base/seed0",
        "digits/layershuffle/seed7",
    ]
    assert names(list_runs(experiment, only=["*/base/*"])) == ["digits/base/seed0"]
    with pytest.raises(UserError, match="nothing.*--dry_run"):
        list_runs(experiment, only=["nothing"])
    with pytest.raises(UserError, match="seeds"):
        list_runs(experiment, seeds=[1, 1])


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_every_experiment_passes_the_check(path):
    check(list_runs(read(path)), Path("experiments"), ACTIONS)


def test_the_papers_experiment_is_whole():
    paper = list_runs(read(ROOT / "configs/experiment/paper.yaml"))
    by_name = {run.name: run for run in paper}
    methods = ("baseline", "layershuffle", "layershuffle_position", "layershuffle_predict")
    # Two backbones, two data sets, four methods and five seeds.
    assert len([run for run in paper if run.kind in methods]) == 2 * 2 * 4 * 5

    one_on_cifar = by_name["deit_b_cifar100/layershuffle/seed4"]
    assert one_on_cifar.tasks[0].settings.options["trainer.max_epochs"] == 100
    assert not one_on_cifar.needs
    first_tasks = [run.tasks[0] for run in paper if "cifar100" in run.setup]
    trainings = [task for task in first_tasks if task.action == "train"]
    assert len(trainings) == 2 * 4 * 5
    assert all(task.settings.options["data.val_fraction"] == 0 for task in trainings)

    figure_4 = by_name["vit_b16_imagenet/contributions/seed0"]
    original, shuffled = figure_4.tasks
    with (ROOT / "configs/model/vit_b16.yaml").open() as file:
        assert original.models == (yaml.safe_load(file)["model"]["name"],)
    assert original.output == "original.json"
    assert figure_4.needs == ("vit_b16_imagenet/layershuffle/seed0",)
    assert shuffled.models == ("vit_b16_imagenet/layershuffle/seed0",)

    mini = list_runs(read(ROOT / "configs/experiment/mini.yaml"))
    assert {run.seed for run in mini} == {0, 1, 2}


def test_the_recipe_in_the_guide(tmp_path, monkeypatch, capsys):
    guide = (ROOT / "docs/guides/extend.md").read_text()
    # The block of code from the name of its file to its end.
    _, _, rest = guide.partition("# configs/experiment/dropping.yaml")
    content, _, _ = rest.partition("```")
    monkeypatch.chdir(tmp_path)
    path = Path("configs/experiment/dropping.yaml")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    experiment_command(["dropping", "--dry_run", "--seeds=0"])
    listed = capsys.readouterr().out
    assert "9 runs in experiments/dropping, 9 to run" in listed
    assert "digits/layerdrop_30/grid/lr=0.004/seed0" in listed


# --- A matrix -----------------------------------------------------------------------------------------------


def test_a_matrix_stands_for_an_entry_per_row(tiny):
    shallow = settings("method/reduced_depth", model__sampler__k="{k}", model__label="first-{k}")
    shallow["matrix"] = [{"k": 1}, {"k": 2}]
    recorded = settings(protocols=["recorded"], recorded_orders="logs/{routing}.jsonl")
    recorded["matrix"] = [{"routing": "any"}, {"routing": "sequential"}]
    methods = {"layershuffle": settings("method/layershuffle"), "reduced_depth_{k}": shallow}
    path = tiny(methods=methods, evaluations={"{routing}_nodes": recorded})

    setup = read(path).setups["digits"]
    assert list(setup.methods) == ["layershuffle", "reduced_depth_1", "reduced_depth_2"]
    assert setup.methods["reduced_depth_2"] == Settings(
        ["method/reduced_depth"], {"model.sampler.k": 2, "model.label": "first-2"}
    )
    assert setup.evaluations["any_nodes"] == Evaluation(
        [], {"protocols": ["recorded"], "recorded_orders": "logs/any.jsonl"}
    )


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        ({"a": {"matrix": [{"k": 1}, {"k": 2}]}}, "^a "),
        ({"a_{k}": {"matrix": {"k": [1, 2]}}}, "is a list of rows"),
        ({"a_{k}": {"matrix": [1]}}, "is a list of rows"),
        ({"a_{k}": {"matrix": [{"k": 1}, {"n": 2}]}}, "without k"),
    ],
)
def test_a_matrix_that_is_none(entries, complaint):
    with pytest.raises(UserError, match=complaint):
        expand(entries)


# --- Mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"merge": ["nothing"]}, "nothing"),
        ({"frozen": {"original": {"configs": []}}}, "(?s)is not an experiment: .*model"),
        ({"evaluations": 3}, "is not an experiment"),
        ({"nothing": 1}, "is not an experiment"),
        ({"methods": {"a": {"arguments": []}}}, "(?s)is not an experiment: .*arguments"),
        ({"grid": {"model.optimizer.lr": []}}, r"model\.optimizer\.lr"),
    ],
)
def test_an_experiment_that_is_none(tiny, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        read(tiny(**changes))


def test_two_points_of_a_grid_in_one_folder_are_refused(tiny):
    experiment = read(tiny(grid={"model.pretrained": ["models/a.pth", "models_a.pth"]}))
    with pytest.raises(UserError, match=r"setup digits: .* the same folder, pretrained=models_a\.pth"):
        list_runs(experiment)


def test_files_that_are_no_experiment(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml.*mini, .*paper, quickstart"):
        read(tmp_path / "nowhere.yaml")
    for text in ("[1", "3", "setups: {}\nseeds: x", "\udc00"):
        (tmp_path / "bad.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(UserError, match="bad.yaml"):
            read(tmp_path / "bad.yaml")


@pytest.mark.parametrize(
    ("changes", "run", "complaint"),
    [
        ({"train": settings("model/nothing")}, "base/seed0 can't train", "there is no config named model/nothing"),
        ({"base": settings("method/baseline", trainer__max_epoch=1)}, "base/seed0 can't train", "max_epoch"),
        ({"grid": {"lr": [1e-3]}}, "baseline/grid/lr=0.001/seed0 can't train", "--lr"),
        ({"evaluations": {"results": settings(oders=3)}}, "baseline/seed0 can't evaluate", "--oders"),
        (
            {"evaluations": {"results": settings(random_orders=3, depths=["x"])}},
            "baseline/seed0 can't evaluate",
            "depths",
        ),
        ({"evaluations": {"results": settings(data__nothing=3)}}, "baseline/seed0 can't evaluate", "nothing"),
        ({"analyse": {"colours": ["baseline"]}}, "colours/seed0 can't analyse", "study"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(tiny, capsys, changes, run, complaint):
    path = tiny(**changes)
    for arguments in (["--dry_run"], []):
        said = fails(capsys, experiment_command, str(path), *arguments)
        assert f"digits/{run}: " in said
        assert complaint in said.partition(" can't ")[2]
    assert not Path("experiments").exists()


def test_an_experiment_that_is_not_yaml_is_named_once(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("setups: [a\n  b: {")
    with pytest.raises(UserError) as raised:
        read(path)
    assert str(raised.value).count(str(path)) == 1
