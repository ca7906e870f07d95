"""Models as they are exported for timm and merged, against the models that they were made from."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import yaml
from helpers import train
from packaging.version import Version

import layershuffle
from layershuffle import Order
from layershuffle.checkpoints.export import export
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.commands.export import export_command
from layershuffle.commands.merge import merge_command
from layershuffle.data import DataConfig
from layershuffle.files import sha256
from layershuffle.models.fitting import cut
from layershuffle.results import DataInfo, Environment, EvaluationInfo, ModelInfo, Results, Score

pytestmark = pytest.mark.skipif(
    Version(timm.__version__) < Version("1.0.31"), reason="older ones read no safetensors from a local-dir"
)

ARGUMENTS = [
    "--model.name=vit_tiny_patch16_224",
    "--model.timm_args={img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 16, depth: 5, num_heads: 2}",
    "--data=layershuffle.data.Digits",
    "--data.train_images=200",
    "--data.test_images=60",
    "--model.sampler=Shuffle",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
]


def train_briefly(seed, *options):
    """Train a small model, with its checkpoints in the working folder."""
    train([*ARGUMENTS, f"--seed={seed}", "--checkpoint.dirpath=.", *options])


@pytest.fixture
def trained(trained_once, tmp_path, monkeypatch):
    """Copies the checkpoint of a small model, which is trained if it has to be; returns the path of the copy."""
    monkeypatch.chdir(tmp_path)

    def make(seed=0, *options):
        checkpoint = Path(f"run{seed}/best.ckpt")
        checkpoint.parent.mkdir(exist_ok=True)
        shutil.copy(trained_once(train_briefly, seed, *options) / "best.ckpt", checkpoint)
        return str(checkpoint)

    return make


def evaluated(checkpoint, output, **options):
    """The results of an evaluation, which are saved to ``output``; without the command's pictures, which take long."""
    results = layershuffle.evaluate(checkpoint, **options)
    results.save(output)
    return results


@pytest.mark.parametrize("position", ["none", "encode", "predict"])
def test_an_exported_model_is_the_same_here_and_in_timm(trained, tmp_path, images, position, capsys):
    checkpoint = trained(0, f"--model.position={position}")
    results = evaluated(checkpoint, "results.json", random_orders=2, depths=[2])
    timm_can_run_it = position != "encode"

    export_command([checkpoint, "out", "--results", "results.json", "--license=mit", "--command=layershuffle train x"])
    assert ("timm can't run it" in capsys.readouterr().out) == (not timm_can_run_it)

    before = load(checkpoint)
    after = load("out")
    assert after.info == before.info
    assert after.data == before.data
    order = Order("3 (1|2) 0")
    with torch.inference_mode():
        expected = before.model.eval()(images, order)
        found = after.model.eval()(images, order)
        assert torch.equal(found.logits, expected.logits)
        assert found.positions == expected.positions
        if position == "predict":
            assert torch.equal(found.position_logits, expected.position_logits)

    if not timm_can_run_it:
        with pytest.raises(RuntimeError, match="its layers are told the positions at which they run; use layershuffle"):
            timm.create_model("local-dir:out", pretrained=True)
    else:
        with torch.inference_mode():
            plain = timm.create_model("local-dir:out", pretrained=True).eval()(images)
            assert torch.equal(plain, before.model(images).logits)

    card = (tmp_path / "out/README.md").read_text()
    assert "\n    layershuffle train x\n" in card
    assert "\nData: Digits.\n" in card
    assert f"| {100 * results.scores[0].top1:.2f} |" in card
    assert "license: mit\n" in card
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(blocks) == (2 if timm_can_run_it else 1)  # with this package, and with timm
    for block in blocks:
        exec(block.replace("FOLDER", "out"), {"images": images})

    assert layershuffle.evaluate("out", protocols=["sequential"]).scores[0] == results.scores[0]


@pytest.mark.parametrize("head", ["average", "class"])
def test_a_distilled_model_keeps_its_head(trained, images, head):
    checkpoint = trained(0, "--model.name=deit_tiny_distilled_patch16_224", f"--model.head={head}")
    export_command([checkpoint, "out"])
    export_command([checkpoint, "cut", "--order=4 0"])

    before = load(checkpoint).model.eval()
    with torch.inference_mode():
        for folder, order in (("out", before.order), ("cut", "4 0")):
            expected = before(images, order).logits
            in_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            assert torch.equal(in_timm(images), expected)
            assert torch.equal(load(folder).model.eval()(images).logits, expected)
    assert (before.vit.head_dist.weight != 0).any()


@pytest.mark.parametrize("position", ["none", "encode", "predict"])
def test_an_order_is_exported_with_its_score(trained, tmp_path, images, position, capsys):
    checkpoint = trained(0, f"--model.position={position}")
    (score,) = evaluated(checkpoint, "results.json", orders=["3 1 4"]).of("given")

    export_command([checkpoint, "out", "--order=3 1 4", "--results=results.json"])
    said = capsys.readouterr().out
    assert "checked: on 8 test images of Digits its logits differ from the original's by at most 0" in said

    before = load(checkpoint).model.eval()
    after = load("out").model.eval()
    with torch.inference_mode():
        expected = before(images, "3 1 4").logits
        assert torch.equal(after(images).logits, expected)
        if position != "encode":
            plain = timm.create_model("local-dir:out", pretrained=True).eval()
            assert len(plain.blocks) == 3
            assert torch.equal(plain(images), expected)

    card = (tmp_path / "out/README.md").read_text()
    assert f"| given, 3 1 4 | 1 | {100 * score.top1:.2f}" in card
    assert "sequential," not in card
    assert "license" not in card
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_mode & 0o777 == 0o644  # others may read them

    export_command([checkpoint, "first", "--order=first(2)", "--results=results.json"])
    assert "Not measured in the order 0 1." in (tmp_path / "first/README.md").read_text()

    # The layers of an exported model are counted anew, so its scores are not those of the checkpoint's layers.
    evaluated("out", "cut.json", protocols=["sequential"])
    export_command(["out", "again", "--order=2 0"])
    assert load("again").info.cut == "4 3"
    with pytest.raises(ValueError, match="are of another checkpoint"):
        export_command([checkpoint, "wrong", "--order=0 1 2", "--results=cut.json"])


def test_an_export_that_differs_is_not_kept(trained, tmp_path, monkeypatch, capsys):
    checkpoint = trained()
    with monkeypatch.context() as patch:
        patch.setattr("layershuffle.checkpoints.export.cut", lambda model, order: cut(model, "0 1 2"))
        with pytest.raises(ValueError, match=r"the export's logits differ from the original's by [0-9.]+, so it was"):
            export_command([checkpoint, "out", "--order=2 1 0"])
    assert not (tmp_path / "out").exists()

    # Without a data set to take images from, the check runs on random pixels.
    content = torch.load(checkpoint, weights_only=True)
    content["layershuffle"]["data"] = None
    torch.save(content, "nowhere.ckpt")
    export_command(["nowhere.ckpt", "out"])
    said = capsys.readouterr()
    assert "on random pixels, because there are no images (nowhere doesn't say" in said.err
    assert "checked: on 8 images of random pixels" in said.out


@pytest.mark.parametrize("position", ["encode", "predict"])
def test_layers_in_an_order_of_their_own_become_a_plain_model(trained, tmp_path, images, position):
    checkpoint = trained(0, "--model.order=3 1 1 0 4 3", f"--model.position={position}")
    export_command([checkpoint, "out"])

    before = load(checkpoint).model.eval()
    after = load("out").model.eval()
    assert before.depth == 5
    assert after.depth == 6  # one layer for each step
    assert after.order == Order(range(6))
    with torch.inference_mode():
        expected = before(images)
        found = after(images)
        assert torch.equal(found.logits, expected.logits)
        if position == "predict":
            assert torch.equal(found.position_logits, expected.position_logits)
            in_timm = timm.create_model("local-dir:out", pretrained=True).eval()
            assert torch.equal(in_timm(images), expected.logits)

    card = (tmp_path / "out/README.md").read_text()
    assert "runs the layers of the trained model in the order 3 1 1 0 4 3" in card
    original_score = layershuffle.evaluate(checkpoint, protocols=["sequential"]).scores[0]
    score = layershuffle.evaluate("out", protocols=["sequential"]).scores[0]
    assert score == replace(original_score, order="0 1 2 3 4 5")


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("order=sandwich(2)", "its order, 0a 1a 2a 0f 3a 1f 4a 2f 3f 4f, is no sequence of whole layers"),
        ("order=0 (1|2)*2 4", r"its order, 0 (1|2)*2 4, is no sequence of whole layers"),
        ("choices=[sequential, 4 3 2 1 0]", "each image chooses its order"),
    ],
)
def test_what_timm_cannot_run_it_refuses(trained, tmp_path, images, capsys, option, why):
    options = [f"--model.{option}"]
    if option.startswith("choices"):
        options.append("--model.objective=InstanceWise")
    checkpoint = trained(0, *options)

    export_command([checkpoint, "out"])

    assert f"timm can't run it, because {why}" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match=re.escape(f"timm can't run it, because {why}; use layershuffle.")):
        timm.create_model("local-dir:out", pretrained=True)
    with torch.inference_mode():
        expected = load(checkpoint).model.eval()(images).logits
        assert torch.equal(load("out").model.eval()(images).logits, expected)

    card = (tmp_path / "out/README.md").read_text()
    assert f"timm can't run this model, because {why}." in card
    assert "timm.create_model" not in card


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_mixed_224"])
@pytest.mark.parametrize("order", ["2 0", "backwards", "1 1 3 0 2 1"])
def test_a_model_is_cut_to_any_order_of_whole_layers(small, images, name, order):
    model = small(name, order="cycle(8)", position="predict")
    chooser = small(name, choices=["sequential", "2 1"])
    order = model.check(order)  # "backwards" are the eight steps of the model's own order, from the last to the first

    plain = cut(model, order)

    with torch.inference_mode():
        expected = model(images, order)
        assert torch.equal(plain.vit(images), expected.logits)
        assert torch.equal(plain(images).position_logits, expected.position_logits)
        assert torch.equal(cut(model).vit(images), model(images).logits)
        assert torch.equal(cut(chooser, order)(images).logits, chooser(images, order).logits)

    for wrong, complaint in (
        ("0a 1", "'0a 1' runs others"),
        ("(0|1)", "runs others"),
        ("9", "names layer 9"),
    ):
        with pytest.raises(ValueError, match=complaint):
            cut(model, wrong)


def test_orders_that_are_no_text_are_recorded_as_text(small, images, tmp_path):
    model = small(choices=[Order("0 1"), [3, 2]], order=Order("0 1 2 3 0"))
    loaded = LoadedModel(model, ModelInfo(name="small", config=model.config))

    export(loaded, tmp_path / "out")

    with torch.inference_mode():
        assert torch.equal(load(tmp_path / "out").model.eval()(images).logits, model(images).logits)


def test_exports_that_would_mislead(trained, tmp_path):
    first = trained(0)
    second = trained(1)

    evaluated(second, "results.json", protocols=["sequential"])
    with pytest.raises(ValueError, match="are of another checkpoint than run0/best.ckpt"):
        export_command([first, "out", "--results", "results.json"])

    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(ValueError, match="out is there already: export to a new or empty folder"):
        export_command([first, "out"])

    export_command([first, "new"])
    (tmp_path / "new/layershuffle.json").write_text("{")
    with pytest.raises(ValueError, match=r"new/layershuffle\.json is not"):
        load("new")


def test_merged_layers_bring_their_own_position_tables(trained):
    options = ["--model.position=encode", "--model.position_table=per_layer", "--model.position_dim=3"]
    paths = [trained(seed, *options) for seed in (0, 1, 2)]
    tables_of_sources = [load(path).model.encoding.tables for path in paths]
    assert len({tables[0].weight.sum().item() for tables in tables_of_sources}) == 3  # no two are alike

    merge_command([*paths, "--seed=3", "--output=merged.ckpt"])
    merged = load("merged.ckpt")
    tables = merged.model.encoding.tables
    for layer, source in enumerate(merged.info.merged["layers"]):
        assert torch.equal(tables[layer].weight, tables_of_sources[source][layer].weight)

    export_command(["merged.ckpt", "out"])
    assert torch.equal(load("out").model.encoding.tables[1].weight, tables[1].weight)


def assert_equal_weights(module, other):
    weights = module.state_dict()
    for name, expected in other.state_dict().items():
        assert torch.equal(weights[name], expected)


def test_merged_layers_come_from_the_models_that_the_record_names(trained):
    paths = [trained(seed, "--model.position=predict") for seed in (0, 1, 2)]
    sources = [load(path) for path in paths]

    merge_command([*paths, "--seed=3", "--output=merged.ckpt"])

    merged = load("merged.ckpt")
    sources_of_layers = merged.info.merged["layers"]
    assert len(set(sources_of_layers)) > 1
    for layer, source in enumerate(sources_of_layers):
        ours = merged.model
        theirs = sources[source].model
        assert_equal_weights(ours.vit.blocks[layer], theirs.vit.blocks[layer])
        assert_equal_weights(ours.prediction.heads[layer], theirs.prediction.heads[layer])
    # What is outside the layers comes from the first model.
    assert torch.equal(merged.model.vit.patch_embed.proj.weight, sources[0].model.vit.patch_embed.proj.weight)

    assert [source["sha256"] for source in merged.info.merged["sources"]] == [sha256(path) for path in paths]
    results = layershuffle.evaluate("merged.ckpt", protocols=["arbitrary"], random_orders=2)
    assert results.label == "layershuffle-predict-merged"

    merge_command([*paths, "--seed=3", "--output=again.ckpt"])
    assert load("again.ckpt").info.merged["layers"] == sources_of_layers

    before = Path("again.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"again\.ckpt is there already"):
        merge_command([*paths, "--seed=4", "--output=again.ckpt"])
    assert Path("again.ckpt").read_bytes() == before


def test_models_that_cannot_be_merged(trained):
    first = trained(0)
    with pytest.raises(ValueError, match="two or more"):
        merge_command([first])
    with pytest.raises(ValueError, match="is of another model"):
        merge_command([first, trained(1, "--model.position=encode")])
    with pytest.raises(ValueError, match="is of another method"):
        merge_command([first, trained(2, "--model.sampler=Sequential")])


def test_a_full_disk_is_one_sentence(trained, monkeypatch):
    def full(*arguments, **options):
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    checkpoint = trained()
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(ValueError, match=r"exported could not be written: I/O error: No space left on device"):
        export_command([checkpoint, "exported"])


def test_an_exported_model_tells_timm_its_resizing_and_classes_and_no_licence(trained, tmp_path):
    export_command([trained(0, "--data.crop_pct=0.9", "--data.interpolation=bicubic"), "out"])

    config = timm.create_model("local-dir:out", pretrained=True).pretrained_cfg
    assert config["crop_pct"] == 0.9
    assert config["interpolation"] == "bicubic"
    assert config["crop_mode"] == "center"
    assert config["label_names"] == list("0123456789")
    assert "license" not in config  # timm would name the licence of its own weights


def test_no_name_becomes_a_part_of_the_card(small, tmp_path):
    # It would end code, begin a heading, end the YAML, add an entry to it, link, show a picture and end a table's cell.
    evil = "a`\n# b\n---\nlicense: c\n[d](http://e) ![f](g) <img src=h>|i"
    model = small()
    info = ModelInfo(name="small", config=model.config, method=evil, sampler=evil, sha256="0")
    score = Score("sequential", {}, order="0 1 2 3", images=10, top1=0.5, top5=0.9, loss=1.5, position_accuracy=None)
    data = DataInfo(name=evil, images=10, split="test")
    results = Results(info, data, EvaluationInfo(random_orders=1), Environment(torch="2"), [score])
    loaded = LoadedModel(model, info, DataConfig(evil, {}, [evil] * info.num_classes))

    export(loaded, tmp_path / "out", license=f"mit\nmore: {evil}", results=[results])

    card = (tmp_path / "out" / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head).keys() == {"library_name", "license", "pipeline_tag", "tags"}
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# out", "## Use", "## Accuracy"]
    # Within code, links and pictures are only text.
    without_code = re.sub(r"(`+) .* \1", "", text)
    shown = without_code.replace("[LayerShuffle](https://arxiv.org/abs/2407.04513)", "")
    assert not re.search(r"(?<!\\)\]\(|://|<img", shown)
