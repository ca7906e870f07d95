"""The command lines as users type them: what works end to end, and how everything that can't work fails."""

import csv
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import preloaded
import pytest
import torch
import yaml
from helpers import DIGITS, QUIET, ROOT, batches, configs, fails, fake_cifar100, fake_imagenet, reference_folder, train
from safetensors.torch import load_file, save_file
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from layershuffle.checkpoints.loading import load
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.experiment import experiment_command
from layershuffle.data import ImageFolders, TorchvisionImages
from layershuffle.results import Results

SHALLOW_RUN = ["--data.train_images=128", "--model.timm_args.depth=2"]
"""Options of a run of which each epoch is one update of a model with two layers."""

A_DRAWING = 10_000
"""A PNG file with more bytes than this has something drawn in it."""


class Comparison(NamedTuple):
    """A small version of the quickstart's experiment: its folder, and its results by method."""

    folder: Path
    results: dict[str, Results]

    @property
    def checkpoint(self):
        """The path of the model that was refined with shuffled layers: a model of the digits with eight layers."""
        return str(self.folder / "layershuffle/seed0/best.ckpt")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Runs go to an empty working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """The quickstart's comparison on digits, with fewer epochs, orders and seeds. No test may change it."""
    folder = tmp_path_factory.mktemp("quickstart")
    methods = {}
    for name, epochs in {"baseline": 1, "layershuffle": 6, "layershuffle_predict": 1}.items():
        methods[name] = {"configs": [f"method/{name}"], "options": {"trainer.max_epochs": epochs}}
    setup = {
        "train": {
            "configs": ["model/mini_glyphs", "data/digits", "trainer/cpu", "optimizer/mini"],
            "options": {"model.timm_args.depth": 8},
        },
        "base": {"configs": ["method/baseline"], "options": {"trainer.max_epochs": 3}},
        "methods": methods,
        "evaluations": {"results": {"options": {"random_orders": 3, "depths": [6]}}},
    }
    (folder / "less.yaml").write_text(yaml.safe_dump({"seeds": [0], "setups": {"digits": setup}}))

    # Each run takes place in this process, because others take seconds to start. The whole experiment then finds them
    # finished, and writes its table and picture.
    command = [str(folder / "less.yaml"), f"--folder={folder}"]
    for kind in ("base", *methods):
        experiment_command([*command, f"--run=digits/{kind}/seed0"])
    experiment_command(command)

    several = [Results.load(path) for path in folder.glob("digits/*/seed0/results.json")]
    return Comparison(folder / "digits", {results.label: results for results in several})


def accuracy(results, protocol, **variant):
    """The mean accuracy of the scores of a protocol whose variants have these values."""
    accuracies = [score.top1 for score in results.of(protocol, **variant)]
    return sum(accuracies) / len(accuracies)


def test_refining_with_shuffled_layers_beats_the_baseline_in_arbitrary_order(compared):
    baseline = compared.results["baseline"]
    shuffled = compared.results["layershuffle"]
    assert accuracy(baseline, "sequential") > 0.8
    assert accuracy(shuffled, "sequential") > 0.8
    assert accuracy(baseline, "arbitrary") < 0.6
    assert accuracy(shuffled, "arbitrary") > accuracy(baseline, "arbitrary") + 0.25
    # Without two of the eight layers, and the others in random sequence.
    pruned = {"sequence": "random", "kept": 6}
    assert accuracy(shuffled, "pruned", **pruned) > accuracy(baseline, "pruned", **pruned) + 0.2


def test_the_quickstart_leaves_what_it_says(compared):
    files = {path.name for path in compared.folder.iterdir()}
    assert files >= {"overview.png", "table.md", "base", "baseline", "layershuffle"}
    for results in compared.results.values():
        assert results.environment.torch == torch.__version__
        assert len(results.model.sha256) == 64
        assert results.data.images == 359  # all test images of the digits

    table = (compared.folder / "table.md").read_text()
    assert table.startswith("| top-1 % | baseline | layershuffle | layershuffle-predict |")
    baseline = accuracy(compared.results["baseline"], "sequential")
    assert f"| sequential | {100 * baseline:.2f} ± " in table
    predicting = compared.results["layershuffle-predict"]
    assert all(score.position_accuracy is not None for score in predicting.scores)


def test_train_and_evaluate_as_typed(tmp_path):
    command = [preloaded.python(), str(ROOT / "train.py"), *DIGITS, *configs("method/layershuffle_position")]
    training = subprocess.run([*command, "--trainer.max_epochs=1"], capture_output=True, text=True)

    assert training.returncode == 0, training.stderr
    warnings = [line for line in training.stderr.splitlines() if "warning" in line.lower()]
    assert [line.partition(",")[0] for line in warnings] == ["warning: the run has only 20 updates"]
    assert "evaluate it with: layershuffle evaluate runs/version_0/checkpoints/best.ckpt\n" in training.stderr
    run = tmp_path / "runs" / "version_0"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["position"] == "encode"
    assert config["model"]["optimizer"]["init_args"]["lr"] == 2e-3
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/images_per_second", "lr-AdamW", "val/sequential", "val/arbitrary"} <= set(header)

    command = [preloaded.python(), str(ROOT / "evaluate.py"), "runs/version_0/checkpoints/best.ckpt"]
    options = ["--random_orders", "2", "--depths", "3", "12"]
    evaluation = subprocess.run([*command, *options], capture_output=True, text=True)

    # A slow machine adds lines of progress.
    said = [line for line in evaluation.stderr.splitlines() if not line.startswith("evaluating ")]
    assert said == ["input: 8 x 8 pixels, 1 channel, a grid of 4 x 4 patches"]
    assert evaluation.returncode == 0
    assert "layershuffle-position on 359 images (Digits, test)" in evaluation.stdout
    assert re.search(r"^first, shuffled +\d", evaluation.stdout, re.MULTILINE)
    results = Results.load(run / "checkpoints" / "best.evaluation.json")
    assert {score.variant["kept"] for score in results.of("pruned")} == {3, 12}
    assert (run / "checkpoints" / "best.evaluation.png").stat().st_size > A_DRAWING
    assert (run / "checkpoints" / "best.evaluation.confusion.png").stat().st_size > A_DRAWING

    # The first ten rows of the confusion matrix are those of sequential order. Their columns are the order, the class,
    # and then the ten classes that it can be taken for: those on the diagonal are right.
    _, *matrix = csv.reader((run / "checkpoints" / "best.evaluation.confusion.csv").open())
    in_sequence = matrix[:10]
    right = sum(int(row[2 + label]) for label, row in enumerate(in_sequence))
    (sequential,) = results.of("sequential")
    assert right == sequential.images * sequential.top1
    _, *classes = csv.reader((run / "checkpoints" / "best.evaluation.classes.csv").open())
    assert sorted(row[0] for row in classes) == [row[1] for row in in_sequence]


@pytest.mark.slow
def test_what_makes_it_faster_changes_no_result(monkeypatch):
    # This backend follows the same ways through torch.compile, but needs no C++ compiler and less time.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    three_updates = [
        *DIGITS,
        *QUIET,
        *configs("method/layershuffle_position"),
        "--model.depth=2",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=3",
        "--trainer.log_every_n_steps=1",
    ]

    def losses(version):
        """The training losses of a run, update by update."""
        with open(f"runs/version_{version}/metrics.csv") as file:
            return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]

    train(three_updates)
    train([*three_updates, "--model.compile=true", "--precision=auto"])
    resolved = yaml.safe_load(Path("runs/version_1/config.yaml").read_text())
    assert resolved["model"]["compile"] is True
    if resolved["trainer"]["precision"] == "32-true":  # else the processor is faster in bf16
        assert losses(1) == pytest.approx(losses(0), rel=1e-5)

    evaluate = ["runs/version_0/checkpoints/best.ckpt", "--random_orders=2", "--data.test_images=100"]
    plain = evaluate_command(evaluate)
    compiled = evaluate_command([*evaluate, "--compile", "--batch-size=auto"])
    assert compiled.environment.compiled
    assert [score.top1 for score in compiled.scores] == [score.top1 for score in plain.scores]
    small_batches = evaluate_command([*evaluate, "--precision=auto", "--batch-size=30"])
    assert small_batches.evaluation.batch_size == 30
    assert small_batches.scores[0].images == 100
    assert small_batches.environment.precision in ("32-true", "bf16-mixed")


def test_print_config_resolves_everything(capsys):
    with pytest.raises(SystemExit) as stop:
        train([*configs("model/vit_b16", "data/cifar100", "method/layershuffle", "trainer/gpu"), "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["name"] == "vit_base_patch16_224.orig_in21k_ft_in1k"
    assert config["model"]["sampler"]["class_path"] == "layershuffle.orders.Shuffle"
    assert config["model"]["optimizer"]["init_args"]["eps"] == 1e-6
    assert config["data"]["init_args"]["dataset"] == "CIFAR100"
    assert config["trainer"]["precision"] == "bf16-mixed"


def test_later_configs_and_flags_win(capsys):
    methods = configs("method/layershuffle", "method/layerdrop")
    flags = ["--model.sampler.p=0.4", "--model.position=predict"]
    with pytest.raises(SystemExit):
        train([*DIGITS, *methods, *flags, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    assert model["sampler"] == {"class_path": "layershuffle.orders.LayerDrop", "init_args": {"p": 0.4}}
    assert model["position"] == "predict"


@pytest.mark.parametrize(
    "path",
    sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name != "experiment"),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_config_composes(path, capsys):
    """Each piece is accepted on top of the small model and data, and none repeats another."""
    with pytest.raises(SystemExit) as stop:
        train([*DIGITS, f"--config={path}", "--print_config"])
    assert stop.value.code == 0
    others = [other for other in (ROOT / "configs").rglob("*.yaml") if other != path]
    assert yaml.safe_load(path.read_text()) not in [yaml.safe_load(other.read_text()) for other in others]


def test_help_explains_every_key(capsys):
    with pytest.raises(SystemExit):
        train(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option in ("--model.sampler", "--ckpt_path", "--resume"):
        assert option in text
    assert "Checkpoint of the same model to continue from." in text


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_imports_nothing_heavy_that_it_can_do_without(script):
    heavy = {"wandb", "timm", "umap", "sklearn", "submitit", "powerlaw", "litdata", "pandas"}
    code = f"""if True:
        import os, runpy, sys
        sys.path.insert(0, {str(ROOT)!r})
        sys.argv = [{script!r}, "--help"]
        try:
            runpy.run_path({str(ROOT / script)!r}, run_name="__main__")
        except SystemExit as stop:
            print(stop.code, sorted({heavy} & sys.modules.keys()))
        """
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "0 []", process.stderr


def test_the_authors_recipe_on_a_distilled_deit(tmp_path):
    recipe = configs(
        "model/deit_b16_distilled", "data/digits", "method/layershuffle_predict", "optimizer/authors", "trainer/cpu"
    )
    small = '{"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 3, "num_heads": 2}'
    changes = [
        f"--model.timm_args={small}",
        "--model.pretrained=false",
        "--trainer.max_steps=3",
        "--trainer.precision=32-true",
    ]
    trainer = train([*recipe, *changes, *QUIET])

    (optimizer,) = trainer.optimizers
    assert type(optimizer) is torch.optim.AdamW
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0
    assert group["lr"] == pytest.approx(0)  # at the end of its schedule
    assert trainer.gradient_clip_val == 1.0
    # The authors classify from the class token alone.
    assert trainer.model.model.vit.head_dist.weight.grad is None


def test_bf16_mixed_precision_trains():
    one_update = ["--trainer.max_steps=1", "--model.timm_args.depth=2"]
    trainer = train([*DIGITS, *QUIET, *one_update, "--trainer.precision=bf16-mixed"])
    assert trainer.global_step == 1
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path):
    args = [*DIGITS, *QUIET, *SHALLOW_RUN, "--checkpoint.dirpath=kept"]
    assert train([*args, "--trainer.max_epochs=1"]).global_step == 1
    assert train([*args, "--trainer.max_epochs=3", "--ckpt_path=kept/last.ckpt"]).global_step == 3


def test_the_best_checkpoint_has_the_lowest_validation_loss(tmp_path):
    options = [
        "--data.train_images=300",
        "--model.timm_args.depth=2",
        "--model.optimizer.lr=0.05",  # so high that the loss doesn't fall steadily
        "--model.schedule.warmup_steps=60",
        "--trainer.max_epochs=6",
        "--trainer.logger.version=run",
    ]
    train([*DIGITS, *QUIET, *options, *configs("method/layershuffle")])

    run = tmp_path / "runs" / "run"
    with (run / "metrics.csv").open() as file:
        losses = {int(row["epoch"]): float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]}
    best = min(losses, key=lambda epoch: losses[epoch])
    assert len(losses) == 6
    assert best != 5  # else the last checkpoint would be as right
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["epoch"] == best
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 5


def test_cifar100_is_trained_on_at_another_size(tmp_path, monkeypatch):
    fake_cifar100(tmp_path / "data", monkeypatch)
    recipe = configs("model/vit_b16", "data/cifar100", "method/layershuffle_position", "trainer/cpu")
    small = '{"img_size": 48, "patch_size": 16, "embed_dim": 32, "depth": 3, "num_heads": 2}'
    changes = [
        f"--model.timm_args={small}",
        "--model.pretrained=false",
        "--trainer.max_epochs=1",
        "--data.batch_size=64",
    ]
    trainer = train([*recipe, *changes, *QUIET])
    assert trainer.model.model.vit.head.out_features == 100
    assert trainer.global_step == 2  # 180 training images, beside 20 for validation, make two whole batches of 64
    assert set(trainer.callback_metrics) >= {"val/sequential", "val/arbitrary", "val/loss"}


# --- Evaluating what there is -------------------------------------------------------------------------------


def test_orders_of_ones_own(compared):
    results = evaluate_command([compared.checkpoint, "--order", "3 1 2", "(0|1)*2 5a 5f"])
    assert [(score.protocol, score.order) for score in results.scores] == [
        ("sequential", "0 1 2 3 4 5 6 7"),
        ("given", "3 1 2"),
        ("given", "(0|1)*2 5a 5f"),
    ]
    again = evaluate_command([compared.checkpoint, "--protocols", "sequential", "--output=again.json"])
    assert again.scores[0] == results.scores[0]


def test_results_are_never_written_over_unasked(compared):
    shutil.copy(compared.checkpoint, "best.ckpt")
    for _ in range(2):
        evaluate_command(["best.ckpt", "--protocols", "sequential", "--data.test_images=20"])
    assert {path.name for path in Path().glob("*.json")} == {"best.evaluation.json", "best.evaluation-2.json"}


def test_the_checkpoints_data_can_be_overridden(compared):
    evaluate = [compared.checkpoint, "--protocols", "sequential"]
    on_test_images = evaluate_command([*evaluate, "--data.test_images=50", "--split=test"])
    assert on_test_images.data.images == 50
    assert on_test_images.data.args["split_seed"] == 0
    on_validation_images = evaluate_command([*evaluate, "--split=val"])
    assert on_validation_images.data.images == 144  # a tenth of those that aren't test images


def test_the_authors_checkpoints_are_evaluated(tmp_path, monkeypatch):
    fake_cifar100(tmp_path / "data", monkeypatch, classes=7)
    folder = reference_folder(tmp_path)
    data = [*configs("data/cifar100"), "--data.num_classes=7"]
    results = evaluate_command([str(folder), *data, "--random_orders", "2", "--depths", "3"])
    assert results.data.images == 100
    assert results.model.config["norm_eps"] == 1e-12  # as in transformers; timm's is 1e-6
    assert {score.protocol for score in results.scores} == {"sequential", "arbitrary", "pruned"}


def test_of_the_authors_classes_those_of_the_data_are_evaluated(tmp_path, monkeypatch, capsys):
    fake_cifar100(tmp_path / "data", monkeypatch, classes=4)
    folder = reference_folder(tmp_path)
    data = [*configs("data/cifar100"), "--data.num_classes=4"]
    results = evaluate_command([str(folder), *data, "--protocols=sequential", "--output=r.json"])
    assert "of the 7 classes of the authors' checkpoint, the first 4 are used" in capsys.readouterr().err
    assert Results.load("r.json").model.classes == "the first 4 of 7"

    # The same by hand: the logits of all classes, of which the first four are taken.
    whole = load(str(folder)).model
    cifar = TorchvisionImages("CIFAR100", num_classes=4)
    preprocess = cifar.prepare_for(*whole.image_format)
    cifar.setup("test")
    images, labels = batches(cifar.loader("test"))
    with torch.inference_mode():
        logits = whole(preprocess(images)).logits[:, :4]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert results.scores[0].top1 == (logits.argmax(dim=1) == labels).double().mean()
    assert results.scores[0].loss == pytest.approx(float(loss), rel=1e-5)

    more = [*configs("data/cifar100"), "--data.num_classes=9"]
    assert "the model has 7 classes, but the data has 9" in fails(capsys, evaluate_command, str(folder), *more)


def test_logits_that_are_not_numbers_are_reported(tmp_path, monkeypatch, capsys):
    fake_cifar100(tmp_path / "data", monkeypatch, classes=7)
    folder = reference_folder(tmp_path)
    # Every order with the last of the six layers has no numbers any more.
    weights = load_file(folder / "model.safetensors")
    weights["vit.encoder.layer.5.output.dense.bias"][0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    args = [str(folder), *configs("data/cifar100"), "--data.num_classes=7", "--output=r.json"]

    evaluate_command([*args, "--order", "0 1 2"])
    assert [score.nan for score in Results.load("r.json").scores] == [100, 0]
    assert "numbers (NaN): 100 in order 0 1 2 3 4 5\n" in capsys.readouterr().err

    # All five orders and those of the batches have that layer. The warning names three of the six.
    evaluate_command([*args, "--random_orders=5", "--protocols=arbitrary"])
    warning = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))
    assert "100 in order arbitrary, per batch, 100 in order " in warning
    assert warning.endswith(", and some in 3 more, which the results name")


def test_a_frozen_timm_model_is_evaluated(tmp_path):
    import timm

    name = "test_vit"
    torch.save(timm.create_model(name, num_classes=1000).state_dict(), "weights.pth")
    # Its classifier has 1,000 classes, and fake_imagenet makes two of them.
    root = fake_imagenet(tmp_path / "imagenet")
    for label in range(2, 1000):
        for split in ("train", "val"):
            (root / split / f"n{label}").mkdir()
            shutil.copy(root / "val" / "n01440764" / "RGB.JPEG", root / split / f"n{label}" / "a.JPEG")
    data = [*configs("data/imagenet"), f"--data.root={root}", "--data.test_images=30", "--data.workers=0"]
    evaluate = [name, "--pretrained=weights.pth", *data]
    results = evaluate_command([*evaluate, "--protocols", "sequential", "pruned", "--random_orders=1"])
    assert results.data.images == 30
    assert results.data.args["image_size"] == 160  # timm's size of images for this model
    assert Path("test_vit.evaluation.json").exists()

    # The losses are those of timm's own preprocessing and model, and those of the paper's preprocessing if that is
    # asked for.
    vit = timm.create_model(name, num_classes=1000).eval()
    vit.load_state_dict(torch.load("weights.pth"))
    chosen = ImageFolders(str(root), test_images=30)
    chosen.setup("test")
    pictures = Subset(ImageFolder(root / "val"), chosen.sets["test"].indices)
    timms = timm.data.resolve_data_config(model=vit)
    papers = timms | {"crop_pct": 1.0, "interpolation": "bilinear"}
    assert timms != papers
    asking_for_papers = ["--data.crop_pct=1.0", "--data.interpolation=bilinear"]
    for config, options in ((timms, []), (papers, asking_for_papers)):
        transform = timm.data.create_transform(**config)
        images = torch.stack([transform(image) for image, _ in pictures])
        labels = torch.tensor([label for _, label in pictures])
        with torch.inference_mode():
            expected = torch.nn.functional.cross_entropy(vit(images), labels)
        results = evaluate_command([*evaluate, *options, "--protocols=sequential"])
        assert results.scores[0].loss == pytest.approx(expected.item(), rel=1e-6)
        for key in ("crop_pct", "interpolation", "crop_mode"):
            assert results.data.args[key] == config[key]


def test_a_checkpoint_is_evaluated_as_it_was_trained_whatever_its_version():
    # The digits are resized to 16 x 16 pixels, so that it matters how.
    options = ["--trainer.max_epochs=1", "--data.train_images=64", "--model.timm_args={img_size: 16, depth: 2}"]
    train([*DIGITS, *QUIET, *options, "--data.crop_pct=0.5"])
    path = "runs/version_0/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    args = content["layershuffle"]["data"]["args"]
    names = ("crop_pct", "interpolation", "crop_mode")
    assert [args[name] for name in names] == [0.5, "bilinear", "center"]

    def loss(checkpoint, *options):
        (sequential,) = evaluate_command([checkpoint, "--protocols=sequential", *options]).scores
        return sequential.loss

    cropped = loss(path)
    uncropped = loss(path, "--data.crop_pct=1")
    assert cropped != uncropped

    # Earlier versions recorded none of these, and knew the paper's preprocessing only, which doesn't crop.
    for name in names:
        del args[name]
    torch.save(content, "old.ckpt")
    assert loss("old.ckpt") == uncropped
    assert loss("old.ckpt", "--data.crop_pct=0.5") == cropped


# --- Failing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--model.nonsense=1"], "nonsense"),
        (["--nonsense=1"], "nonsense"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--model.position=sideways"], "sideways"),
        (["--model.sampler=Nope"], "Nope"),
        (["--model.sampler=FirstLayers", "--model.sampler.k=13"], "13 layers"),
        (["--model.sampler=LayerDrop", "--model.sampler.p=1.5"], "p is a probability"),
        (["--model.name=vit_nope"], "vit_nope"),
        (["--model.pretrained=nowhere.pth"], "nowhere.pth"),
        (["--data=ImageFolders", "--data.root=nowhere"], "nowhere"),
        (["--data=TorchvisionImages", "--data.dataset=CIFAR10", "--data.num_classes=10"], "CIFAR10"),
        (["--data.train_images=9999"], "train_images is 9999"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
        (["--trainer.max_epochs=many"], "--trainer.max_epochs"),
        (["--data.on_device=x"], "--data.on_device"),
        (["--trainer.limit_val_batches=x"], "--trainer.limit_val_batches"),
        (["--data.batch_size=0"], "a batch has at least one image, not 0: give another --data.batch_size"),
        (["--model.optimizer.lr=-1"], "learning rate: -1.0; see --model.optimizer"),
        (["--model.schedule.warmup_steps=-5"], "warmup_steps"),
        (["--trainer.precision=17"], "17"),
    ],
)
def test_train_says_what_is_wrong(capsys, args, complaint):
    assert complaint in fails(capsys, train, *DIGITS, *QUIET, *args)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("model: [", "broken.yaml"),
        ("- a", "broken.yaml holds no options"),
        ("# cut", "broken.yaml holds no options"),
    ],
)
def test_a_config_that_is_none(capsys, content, complaint):
    Path("broken.yaml").write_text(content)
    assert complaint in fails(capsys, train, *DIGITS, "--config=broken.yaml")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--order", "0 12"], "layer 12"),
        (["--order", "1,2"], "'1,2'"),
        (["--order", "3", "1", "2"], "--order 3"),
        (["--order", ""], "at least one layer"),
        (["--random_orders", "0"], "--random_orders"),
        (["--depths", "9"], "9 layers"),
        (["--depths", "0"], "--depths"),
        (["--protocols", "sideways"], "sideways"),
        (["--protocols", "./sideways.py"], "./sideways.py"),
        (["--nonsense", "1"], "nonsense"),
        (["--data=TorchvisionImages", "--data.dataset=CIFAR100", "--data.num_classes=100"], "CIFAR100"),
        (["--precision=17"], "17"),
        (["--accelerator=abacus"], "abacus"),
    ],
)
def test_evaluate_says_what_is_wrong(capsys, compared, args, complaint):
    assert complaint in fails(capsys, evaluate_command, compared.checkpoint, *args)
    assert not list(Path().glob("*.json"))


def test_a_class_count_that_disagrees(capsys, compared):
    glyphs = ["--data=Glyphs", "--data.test_images=10"]
    complaint = fails(capsys, evaluate_command, compared.checkpoint, *glyphs)
    assert "10 classes" in complaint
    assert "500" in complaint


@pytest.mark.parametrize(("script", "seconds"), [("train.py", 1), ("evaluate.py", 1), ("evaluate.py", 2)])
def test_interrupted_while_it_imports(script, seconds):
    """With Python's own handler some of these are lost in modules that catch all exceptions."""
    process = subprocess.Popen([sys.executable, str(ROOT / script), "mini_glyphs"], stderr=subprocess.PIPE)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == b"interrupted: nothing was written\n"
    assert process.returncode == 130


def test_checkpoints_that_are_none(capsys, compared, tmp_path):
    whole = Path(compared.checkpoint).read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("text.ckpt").write_text("hello")
    Path("empty.ckpt").write_bytes(b"")
    torch.save({"head.weight": torch.zeros(2)}, "weights.pth")
    torch.save({"code": Path}, "code.ckpt")
    torch.save([1, 2], "list.ckpt")
    Path("folder").mkdir()
    for name, complaint in {
        "cut.ckpt": "is not a checkpoint or is damaged",
        "text.ckpt": "is not a checkpoint",
        "empty.ckpt": "is not a checkpoint",
        "weights.pth": "--pretrained weights.pth",
        "code.ckpt": "holds code",
        "list.ckpt": "holds a list",
        "folder": "config.json",
        "nowhere.ckpt": "no file or folder nowhere.ckpt: give the path of a checkpoint, such as code.ckpt",
        "vit_nope": "vit_nope",
    }.items():
        assert complaint in fails(capsys, evaluate_command, name), name
    for name in ("cut.ckpt", "text.ckpt", "code.ckpt"):
        assert "is not a checkpoint" in fails(capsys, train, *DIGITS, f"--model.pretrained={name}")
        assert "is not a checkpoint" in fails(capsys, train, *DIGITS, f"--ckpt_path={name}")
    assert not Path("runs").exists()


def test_a_checkpoint_of_another_backbone(capsys, compared):
    backbone = [*configs("model/mini_glyphs"), "--model.pretrained=false", "--model.timm_args.embed_dim=24"]
    args = [*DIGITS, *backbone, *QUIET]
    line = fails(capsys, train, *args, f"--model.pretrained={compared.checkpoint}")
    assert "holds weights of another backbone" in line
    line = fails(capsys, train, *args, f"--ckpt_path={compared.checkpoint}")
    assert "embed_dim" in line


def test_a_tampered_checkpoint_runs_nothing(capsys, compared):
    content = torch.load(compared.checkpoint, weights_only=True)
    metadata = content["layershuffle"]
    model = metadata["model"]
    for change, complaint in (
        ({"data": {"class": "subprocess.Popen", "args": {"args": ["true"]}}}, "is not known here"),
        ({"model": model | {"depth": 9}}, "weights don't fit"),
        ({"model": model | {"nonsense": 1}}, "nonsense"),
        ({"model": {"name": "vit_tiny_patch16_224"}}, "is damaged"),
    ):
        torch.save(content | {"layershuffle": metadata | change}, "tampered.ckpt")
        assert complaint in fails(capsys, evaluate_command, "tampered.ckpt")


def test_a_broken_image_is_named(capsys, tmp_path):
    broken = fake_imagenet(tmp_path) / "train" / "n01443537" / "L.JPEG"
    broken.write_bytes(b"no image")
    options = [
        "--data=ImageFolders",
        f"--data.root={tmp_path}",
        "--data.workers=1",
        "--data.val_fraction=0",
        "--data.batch_size=5",
        "--model.timm_args.in_chans=3",
        "--trainer.max_epochs=1",
    ]
    line = fails(capsys, train, *DIGITS, *QUIET, *options)
    assert f"{broken} can't be read as an image" in line
    assert "Traceback" not in line


def test_results_that_cannot_be_written_say_so_before_the_work(capsys, compared):
    Path("file").write_text("")
    line = fails(capsys, evaluate_command, compared.checkpoint, "--output=file/results.json")
    assert "file/results.json can't be written" in line


def no_space_for_checkpoints(descriptor):
    """Stands in for ``os.fsync`` on a disk that has space for small files alone."""
    if ".ckpt" in os.readlink(f"/proc/self/fd/{descriptor}"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_one_sentence_and_leaves_the_last_checkpoint_whole(capsys, monkeypatch):
    args = [*DIGITS, *QUIET, *SHALLOW_RUN, "--checkpoint.dirpath=kept"]
    train([*args, "--trainer.max_epochs=1"])

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space_for_checkpoints)
        line = fails(capsys, train, *args, "--trainer.max_epochs=2", "--ckpt_path=kept/last.ckpt")
    assert re.search(r"kept/(best|last)\.ckpt could not be written: No space left on device", line)
    assert {path.name for path in Path("kept").iterdir()} == {"best.ckpt", "last.ckpt"}

    # With space again, the run goes on from there.
    assert train([*args, "--trainer.max_epochs=2", "--ckpt_path=kept/last.ckpt"]).global_step == 2


def test_a_full_disk_leaves_nothing_of_a_run_without_a_checkpoint(capsys, monkeypatch):
    monkeypatch.setattr("os.fsync", no_space_for_checkpoints)
    line = fails(capsys, train, *DIGITS, *QUIET, *SHALLOW_RUN, "--trainer.max_epochs=1")
    assert re.search(r"(best|last)\.ckpt could not be written: No space left on device; free some space", line)
    assert not list(Path().iterdir())


def test_a_run_folder_that_cannot_be_made(capsys):
    Path("file").write_text("")
    line = fails(capsys, train, *DIGITS, *QUIET, "--trainer.logger.save_dir=file")
    assert "file/version_0" in line
    assert "File exists" in line


def test_results_are_json_without_surprises(compared):
    text = (compared.folder / "layershuffle/seed0/results.json").read_text()
    content = json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are Python's, and no JSON
    assert content["layershuffle_results"] == 2
    assert content["evaluation"]["draws"] == 3
