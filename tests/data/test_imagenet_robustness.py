"""ImageNet's robustness sets, in folders laid out as their archives are."""

import io
import logging
import os
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from helpers import batches, fails
from PIL import Image

import layershuffle
from layershuffle.api.classifier import with_classifier_for
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.data import DataConfig, ImageNetRobustness, from_config
from layershuffle.data.conditions import ConditionBatches
from layershuffle.data.imagenet_robustness import CORRUPTIONS, classes_of, imagenet_classes
from layershuffle.errors import UserError
from layershuffle.models import create_model
from layershuffle.models.fitting import with_classes

WNIDS = list(imagenet_classes())
SUBSET = classes_of("A")
MODEL = "vit_tiny_patch16_224"
rng = np.random.default_rng(0)


def save_classes(folder, names):
    """Make a folder for each class, with one of seven pictures."""
    pictures = []
    for _ in range(7):
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        (folder / name / "0.JPEG").write_bytes(pictures[index % len(pictures)])


def set_up(root, variant, **arguments):
    """The data module of a variant, set up for testing. The images have 16 pixels."""
    data = ImageNetRobustness(str(root), variant, image_size=16, workers=0, **arguments)
    data.setup("test")
    return data


def random_model(classes=1000):
    """What timm's model is loaded as, but with two narrow layers."""
    loaded = layershuffle.load(MODEL, pretrained="random", num_classes=classes, img_size=32)
    model = create_model(MODEL, classes, img_size=32, embed_dim=32, num_heads=2, depth=2).eval()
    return replace(loaded, model=model, info=replace(loaded.info, config=model.config))


def test_the_list_of_classes_is_imagenets():
    assert len(WNIDS) == 1000
    assert sorted(WNIDS) == WNIDS
    assert imagenet_classes()["n01440764"].startswith("tench")


def test_a_model_picks_among_the_classes_of_a_subset(tmp_path):
    """Accuracy, top-5 and loss are those of the 200 logits, as in the authors' eval.py."""
    (tmp_path / "README.txt").write_text("as in the archive")
    save_classes(tmp_path, SUBSET)
    data = set_up(tmp_path, "A")
    assert data.label == "ImageNet-A"
    assert data.class_names == SUBSET

    torch.manual_seed(0)
    loaded = random_model()
    protocols = ["sequential", "arbitrary", "pruned"]
    results = layershuffle.evaluate(loaded, data, protocols=protocols, random_orders=1, accelerator="cpu", depths=[1])
    assert results.model.num_classes == 200
    assert results.model.classes == "the 200 of ImageNet-A among 1000"
    assert results.data.images == 200

    # The same by hand. The images are read again, in the size that the model takes.
    preprocess = data.prepare_for(*loaded.image_format)
    data.sets.clear()
    data.setup("test")
    images, labels = batches(data.test_dataloader())
    kept = [WNIDS.index(wnid) for wnid in SUBSET]
    scores_of_one_order = [score for score in results.scores if score.order is not None]
    for score in scores_of_one_order:
        with torch.inference_mode():
            logits = loaded.model(preprocess(images), score.order).logits[:, kept]
        ranked = logits.argsort(dim=1, descending=True)
        is_first = ranked[:, 0] == labels
        is_among_five = (ranked[:, :5] == labels[:, None]).any(dim=1)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        assert score.top1 == pytest.approx(is_first.float().mean().item())
        assert score.top5 == pytest.approx(is_among_five.float().mean().item())
        assert score.loss == pytest.approx(loss.item(), rel=1e-5)
    assert {score.protocol for score in scores_of_one_order} == set(protocols)

    # The caller's model keeps its classes.
    assert loaded.model.vit.head.out_features == loaded.info.num_classes == 1000


def test_leaving_logits_out_matters(tmp_path):
    """A model that is sure of a class outside of the subset is still right within it."""
    save_classes(tmp_path, SUBSET)
    data = set_up(tmp_path, "A")
    loaded = random_model()
    head = loaded.model.vit.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        # The tench, which the subset lacks.
        head.bias[0] = 10
        # Of the classes of the subset, the model always names this one, which a single image shows.
        head.bias[WNIDS.index(SUBSET[17])] = 5
    (score,) = layershuffle.evaluate(loaded, data, protocols="sequential", accelerator="cpu").scores
    assert score.top1 == 1 / 200


def test_a_distilled_model_has_two_heads():
    torch.manual_seed(0)
    model = create_model("deit_tiny_distilled_patch16_224", 10, img_size=32, depth=2).eval()
    images = torch.randn(2, 3, 32, 32)
    of_two_classes = with_classes(model, [7, 2])
    torch.testing.assert_close(of_two_classes(images).logits, model(images).logits[:, [7, 2]])


def test_imagenet_v2_names_its_folders_by_label(tmp_path):
    save_classes(tmp_path, [str(label) for label in range(1000)])
    data = set_up(tmp_path, "V2")
    assert data.class_names == WNIDS
    # The folder 10 comes after 9, and not after 1.
    for label in (0, 10, 999):
        path, _ = data.sets["test"].images.samples[label]
        assert Path(path).parent.name == str(label)
    loaded = random_model()
    assert with_classifier_for(data, loaded).model is loaded.model


def test_imagenet_sketch_has_all_classes(tmp_path):
    save_classes(tmp_path, WNIDS)
    data = set_up(tmp_path, "Sketch")
    assert data.num_classes == 1000
    assert data.class_names == WNIDS


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    """Two corruptions in all severities, one of them in the folder of its archive; their classes are links to one."""
    root = tmp_path_factory.mktemp("imagenet_c")
    for corruption, group in (("fog", "."), ("shot_noise", "noise")):
        for severity in range(1, 6):
            folder = root / group / corruption / str(severity)
            folder.mkdir(parents=True)
            save_classes(folder, WNIDS[:1])
            first = folder / WNIDS[0] / "0.JPEG"
            for wnid in WNIDS[1:]:
                (folder / wnid).mkdir()
                os.link(first, folder / wnid / "0.JPEG")
    return root


def test_imagenet_c_has_corruptions_and_severities(corrupted):
    data = set_up(corrupted, "C")
    assert len(data.sets["test"]) == 2 * 5 * 1000
    assert data.crop_pct == 1

    one = set_up(corrupted, "C", corruptions=["shot_noise"], severities=[2, 5])
    assert one.label == "ImageNet-C shot_noise 2 5"
    severities = set()
    for path, _ in one.sets["test"].images.samples:
        corruption, severity, _wnid, _name = path.split("/")[-4:]
        assert corruption == "shot_noise"
        severities.add(severity)
    assert severities == {"2", "5"}

    again = from_config(DataConfig.from_dict(one.config().to_dict()))
    assert again.corruptions == ["shot_noise"]
    assert again.severities == [2, 5]

    with pytest.raises(UserError, match="has no folder snow: name the folder into which ImageNet-C was extracted"):
        set_up(corrupted, "C", corruptions=["snow"])
    (corrupted / "frost").mkdir()
    with pytest.raises(UserError, match="frost/1 has no class folders"):
        set_up(corrupted, "C", corruptions=["frost"])
    (corrupted / "frost").rmdir()


def evaluated(root, model, protocols=("sequential", "arbitrary"), **arguments):
    """The results of a model on ImageNet-C, and their measure by corruption."""
    data = ImageNetRobustness(str(root), "C", workers=0, **arguments)
    results = layershuffle.evaluate(model, data, protocols=protocols, random_orders=2, accelerator="cpu")
    (by_corruption,) = [measure for measure in results.measures if measure.name == "by_corruption"]
    return results, by_corruption


def test_errors_on_each_corruption(corrupted, caplog):
    """A part of the images, of which some can't be read, in batches that fit neither."""
    torch.manual_seed(0)
    model = random_model()
    # All classes link to one file, so that no image of this corruption and severity can be read.
    broken = corrupted / "fog" / "3" / WNIDS[0] / "0.JPEG"
    content = broken.read_bytes()
    broken.write_bytes(b"no picture")
    with caplog.at_level(logging.INFO):
        results, measure = evaluated(corrupted, model, test_images=150, unreadable=100, eval_batch_size=32)
    broken.write_bytes(content)

    assert "of the 19 corruptions of ImageNet-C" in caplog.text
    assert [counts.name for counts in measure.orders] == ["sequential", "arbitrary, fixed"]
    images = {(corruption.name, corruption.severity): corruption.images for corruption in measure.corruptions}
    # In the sequence of the paper, in which noise comes before fog.
    assert list(images)[:2] == [("shot_noise", 1), ("shot_noise", 2)]
    assert images["fog", 3] == 0
    assert sum(images.values()) == results.data.images < 150

    # All corruptions together are what the scores say.
    for counts, name in zip(measure.orders, ("sequential", "arbitrary")):
        accuracies = [score.top1 for score in results.of(name) if score.order is not None]
        right = sum(counts.right) / counts.samples / results.data.images
        assert right == pytest.approx(fmean(accuracies))


def test_processes_that_share_the_images_know_their_corruptions(corrupted):
    data = set_up(corrupted, "C", test_images=101, eval_batch_size=16)
    data.ranks = 2
    told = []
    for rank in range(2):
        data.rank = rank
        tracked = ConditionBatches(data.loader("test"), data.conditions)
        for _, labels in tracked:
            conditions = [data.conditions.names[index] for index in tracked.current]
            told += zip(conditions, labels.tolist(), strict=True)

    expected = []
    images = data.sets["test"]
    for index in images.indices:
        path, label = images.dataset.images.samples[index]
        *_, corruption, severity, _wnid, _name = path.split("/")
        expected.append(((corruption, int(severity)), label))
    assert sorted(told) == sorted(expected)
    assert len(told) == 101


def test_the_error_of_a_model_that_names_one_class(corrupted):
    """Of the 1,000 images of each corruption and severity, it classifies one rightly."""
    loaded = random_model()
    head = loaded.model.vit.head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[7] = 1
    results, measure = evaluated(corrupted, loaded, ["sequential"], corruptions=["fog"], severities=[1, 4])
    (in_sequence,) = measure.orders
    assert measure.errors(in_sequence) == {"fog": {1: pytest.approx(0.999), 4: pytest.approx(0.999)}}
    assert "fog" in str(results)
    assert "99.90" in str(results)
    # The mean corruption error needs all corruptions.
    assert "mCE" not in str(results)


def test_folders_that_are_no_such_set(tmp_path):
    root = tmp_path / "imagenet-a"
    with pytest.raises(UserError, match="there is no folder"):
        set_up(root, "A")
    root.mkdir()
    with pytest.raises(UserError, match="has no class folders: name the folder into which ImageNet-A"):
        set_up(root, "A")
    with pytest.raises(UserError, match=r"has no folder gaussian_noise, shot_noise.* and 9 more"):
        set_up(root, "C")

    # A complete ImageNet-A, taken for another set.
    save_classes(root, SUBSET)
    with pytest.raises(UserError, match=r"lacks n01440764, .* more of ImageNet-Sketch: .* completely"):
        set_up(root, "Sketch")
    # R has 200 classes too, but others.
    with pytest.raises(UserError, match=r"has n01558993, .* which ImageNet-R lacks: is it another set\?"):
        set_up(root, "R")
    with pytest.raises(UserError, match=r"the folders of ImageNet-V2 are labels from 0 to 999"):
        set_up(root, "V2")

    # An ImageNet-A that lacks a class, an image, or has one class more.
    os.rename(root / SUBSET[0], tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"lacks {SUBSET[0]} of ImageNet-A: .* completely"):
        set_up(root, "A")
    os.rename(tmp_path / "elsewhere", root / SUBSET[0])
    (root / SUBSET[0] / "0.JPEG").unlink()
    with pytest.raises(UserError, match=f"{SUBSET[0]} has no images"):
        set_up(root, "A")
    (root / "n99999999").mkdir()
    with pytest.raises(UserError, match="has n99999999, but the folders of ImageNet-A are WordNet ids"):
        set_up(root, "A")
    # A folder too high: that of the archive lies in it.
    with pytest.raises(UserError, match="has imagenet-a, but"):
        set_up(tmp_path, "A")


def test_arguments_that_cannot_be(tmp_path):
    for arguments in (
        {"variant": "B"},
        {"variant": "A", "severities": [1]},
        {"variant": "C", "severities": [6]},
        {"variant": "C", "severities": []},
        {"variant": "C", "corruptions": ["rain"]},
    ):
        with pytest.raises(UserError):
            ImageNetRobustness(str(tmp_path), **arguments)
    assert CORRUPTIONS[-4:] == ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def test_models_of_other_classes(tmp_path):
    save_classes(tmp_path, SUBSET)
    data = set_up(tmp_path, "A")
    with pytest.raises(UserError, match="the model has 10 classes, but ImageNet-A is for models of ImageNet's 1,000"):
        with_classifier_for(data, random_model(10))
    names = [f"class {label}" for label in range(1000)]
    with pytest.raises(UserError, match="other classes than ImageNet's: it has no n01498041"):
        data.labels_in_model(1000, names)

    # A model of the same classes has them in another sequence, or calls them by the descriptions of torchvision.
    kept = [WNIDS.index(wnid) for wnid in SUBSET]
    assert data.labels_in_model(1000, WNIDS[::-1]) == [999 - label for label in kept]
    assert data.labels_in_model(1000, list(imagenet_classes().values())) == kept


def test_there_is_nothing_to_train_on(tmp_path, capsys):
    save_classes(tmp_path, classes_of("R"))
    with pytest.raises(UserError, match="has test images alone"):
        ImageNetRobustness(str(tmp_path), "R").setup("fit")
    arguments = [MODEL, "imagenet_robustness", "--pretrained=random", "--img_size=32"]
    arguments += [f"--data.root={tmp_path}", "--data.variant=R"]
    assert "test images alone" in fails(capsys, evaluate_command, *arguments, "--split=val")
    output = [f"--output={tmp_path / 'results.json'}", "--protocols=sequential", "--accelerator=cpu"]
    evaluate_command([*arguments, *output])
    assert "ImageNet-R" in capsys.readouterr().out
