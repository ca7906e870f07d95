"""ImageNet's robustness sets, in folders laid out as their archives are."""

import io
import logging
import os
from dataclasses import replace

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


def save_classes(folder, names, images=1):
    """A folder for each class, with a few pictures that many classes share."""
    pictures = []
    for _ in range(7):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(images):
            (folder / name / f"{number}.JPEG").write_bytes(pictures[(index + number) % 7])
    return folder


def set_up(root, variant, **arguments):
    data = ImageNetRobustness(str(root), variant, **{"image_size": 16, "workers": 0, **arguments})
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
    data = set_up(save_classes(tmp_path, SUBSET), "A")
    assert (data.label, data.class_names) == ("ImageNet-A", SUBSET)
    torch.manual_seed(0)
    loaded = random_model()
    protocols = ["sequential", "arbitrary", "pruned"]
    results = layershuffle.evaluate(loaded, data, protocols=protocols, random_orders=1, accelerator="cpu", depths=[1])
    assert {score.protocol for score in results.scores} == set(protocols)
    assert results.model.num_classes == results.data.images == 200
    assert results.model.classes == "the 200 of ImageNet-A among 1000"

    kept = [WNIDS.index(wnid) for wnid in SUBSET]
    preprocess = data.prepare_for(*loaded.image_format)
    data.sets.clear()
    data.setup("test")
    images, labels = batches(data.test_dataloader())
    fixed = [score for score in results.scores if score.order is not None]
    for score in fixed:
        with torch.inference_mode():
            logits = loaded.model(preprocess(images), score.order).logits[:, kept]
        ranked = logits.argsort(dim=1, descending=True)
        assert score.top1 == pytest.approx((ranked[:, 0] == labels).float().mean().item())
        assert score.top5 == pytest.approx((ranked[:, :5] == labels[:, None]).any(dim=1).float().mean().item())
        assert score.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert {score.protocol for score in fixed} == set(protocols)
    # The caller's model keeps its classes.
    assert loaded.model.vit.head.out_features == loaded.info.num_classes == 1000


def test_leaving_logits_out_matters(tmp_path):
    """A model that is sure of a class outside of the subset is still right within it."""
    data = set_up(save_classes(tmp_path, SUBSET), "A")
    loaded = random_model()
    with torch.no_grad():
        loaded.model.vit.head.weight.zero_()
        loaded.model.vit.head.bias.zero_()
        loaded.model.vit.head.bias[0] = 10  # the tench, which the subset lacks
        loaded.model.vit.head.bias[WNIDS.index(SUBSET[17])] = 5
    score = layershuffle.evaluate(loaded, data, protocols="sequential", accelerator="cpu").scores[0]
    assert score.top1 == 1 / 200


def test_a_distilled_model_has_two_heads():
    torch.manual_seed(0)
    model = create_model("deit_tiny_distilled_patch16_224", 10, img_size=32, depth=2).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(with_classes(model, [7, 2])(images).logits, model(images).logits[:, [7, 2]])


def test_imagenet_v2_names_its_folders_by_label(tmp_path):
    data = set_up(save_classes(tmp_path, [str(label) for label in range(1000)]), "V2")
    assert data.class_names == WNIDS
    samples = data.sets["test"].images.samples
    assert [os.path.basename(os.path.dirname(samples[label][0])) for label in (0, 10, 999)] == ["0", "10", "999"]
    loaded = random_model()
    assert with_classifier_for(data, loaded).model is loaded.model


def test_imagenet_sketch_has_all_classes(tmp_path):
    data = set_up(save_classes(tmp_path, WNIDS), "Sketch")
    assert (data.num_classes, data.class_names) == (1000, WNIDS)


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    """Two corruptions in all severities, one of them in the folder of its archive; their classes are links to one."""
    root = tmp_path_factory.mktemp("imagenet_c")
    for corruption, group in (("fog", "."), ("shot_noise", "noise")):
        for severity in range(1, 6):
            folder = root / group / corruption / str(severity)
            folder.mkdir(parents=True)
            first = save_classes(folder, WNIDS[:1]) / WNIDS[0] / "0.JPEG"
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
    assert {path.split("/shot_noise/")[1][0] for path, _ in one.sets["test"].images.samples} == {"2", "5"}
    again = from_config(DataConfig.from_dict(one.config().to_dict()))
    assert (again.corruptions, again.severities) == (["shot_noise"], [2, 5])
    with pytest.raises(UserError, match="has no folder snow: name the folder into which ImageNet-C was extracted"):
        set_up(corrupted, "C", corruptions=["snow"])
    (corrupted / "frost").mkdir()
    with pytest.raises(UserError, match="frost/1 has no class folders"):
        set_up(corrupted, "C", corruptions=["frost"])
    (corrupted / "frost").rmdir()


def evaluated(root, model, protocols=("sequential", "arbitrary"), **arguments):
    data = ImageNetRobustness(str(root), "C", workers=0, **arguments)
    results = layershuffle.evaluate(model, data, protocols=protocols, random_orders=2, accelerator="cpu")
    measures = {measure.name: measure for measure in results.measures}
    return results, measures["by_corruption"]


def test_errors_on_each_corruption(corrupted, caplog):
    """A part of the images, of which some can't be read, in batches that fit neither."""
    torch.manual_seed(0)
    model = random_model()
    broken = corrupted / "fog" / "3" / WNIDS[0] / "0.JPEG"  # one file with a link for each class
    content = broken.read_bytes()
    broken.write_bytes(b"no picture")
    with caplog.at_level(logging.INFO):
        results, measure = evaluated(corrupted, model, test_images=150, unreadable=100, eval_batch_size=32)
    broken.write_bytes(content)
    assert "of the 19 corruptions of ImageNet-C" in caplog.text
    assert [counts.name for counts in measure.orders] == ["sequential", "arbitrary, fixed"]
    images = {(corruption.name, corruption.severity): corruption.images for corruption in measure.corruptions}
    assert list(images)[:2] == [("shot_noise", 1), ("shot_noise", 2)]
    assert images["fog", 3] == 0
    assert sum(images.values()) == results.data.images < 150
    # All corruptions together are what the scores say.
    for counts, name in zip(measure.orders, ("sequential", "arbitrary")):
        scores = [score for score in results.of(name) if score.order is not None]
        right = sum(counts.right) / counts.samples / results.data.images
        assert right == pytest.approx(sum(score.top1 for score in scores) / len(scores))


def test_processes_that_share_the_images_know_their_corruptions(corrupted):
    data = set_up(corrupted, "C", test_images=101, eval_batch_size=16)
    data.ranks = 2
    found = []
    for rank in range(2):
        data.rank = rank
        tracked = ConditionBatches(data.loader("test"), data.conditions)
        for _, labels in tracked:
            found += [(data.conditions.names[index], label) for index, label in zip(tracked.current, labels.tolist())]
    expected = []
    part = data.sets["test"]
    for index in part.indices:
        path, label = part.dataset.images.samples[index]
        *_, corruption, severity, _wnid, _name = path.split("/")
        expected.append(((corruption, int(severity)), label))
    assert sorted(found) == sorted(expected)
    assert len(found) == 101


def test_the_error_of_a_model_that_names_one_class(corrupted):
    """Of the 1,000 images of each corruption and severity, it classifies one rightly."""
    model = random_model()
    with torch.no_grad():
        model.model.vit.head.weight.zero_()
        model.model.vit.head.bias.zero_()
        model.model.vit.head.bias[7] = 1
    results, measure = evaluated(corrupted, model, ["sequential"], corruptions=["fog"], severities=[1, 4])
    assert measure.errors(measure.orders[0]) == {"fog": {1: pytest.approx(0.999), 4: pytest.approx(0.999)}}
    assert "fog" in str(results)
    assert "99.90" in str(results)
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
    save_classes(root, SUBSET)
    with pytest.raises(UserError, match=r"lacks n01440764, .* more of ImageNet-Sketch: .* completely"):
        set_up(root, "Sketch")
    # R has 200 classes too, but others.
    with pytest.raises(UserError, match=r"has n01558993, .* which ImageNet-R lacks: is it another set\?"):
        set_up(root, "R")
    os.rename(root / SUBSET[0], tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"lacks {SUBSET[0]} of ImageNet-A: .* completely"):
        set_up(root, "A")
    os.rename(tmp_path / "elsewhere", root / SUBSET[0])
    with pytest.raises(UserError, match=r"the folders of ImageNet-V2 are labels from 0 to 999"):
        set_up(root, "V2")
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
    data = set_up(save_classes(tmp_path, SUBSET), "A")
    with pytest.raises(UserError, match="the model has 10 classes, but ImageNet-A is for models of ImageNet's 1,000"):
        with_classifier_for(data, random_model(10))
    names = [f"class {label}" for label in range(1000)]
    with pytest.raises(UserError, match="other classes than ImageNet's: it has no n01498041"):
        data.labels_in_model(1000, names)
    # In another sequence, by the ids or by the descriptions of torchvision.
    kept = [WNIDS.index(wnid) for wnid in SUBSET]
    assert data.labels_in_model(1000, WNIDS[::-1]) == [999 - label for label in kept]
    assert data.labels_in_model(1000, list(imagenet_classes().values())) == kept


def test_there_is_nothing_to_train_on(tmp_path, capsys):
    save_classes(tmp_path, classes_of("R"))
    with pytest.raises(UserError, match="has test images alone"):
        ImageNetRobustness(str(tmp_path), "R").setup("fit")
    arguments = [
        MODEL,
        "imagenet_robustness",
        "--pretrained",
        "random",
        "--img_size",
        "32",
        "--data.root",
        str(tmp_path),
        "--data.variant",
        "R",
    ]
    assert "test images alone" in fails(capsys, evaluate_command, *arguments, "--split", "val")
    output = ["--output", str(tmp_path / "results.json"), "--protocols", "sequential", "--accelerator", "cpu"]
    evaluate_command([*arguments, *output])
    assert "ImageNet-R" in capsys.readouterr().out
