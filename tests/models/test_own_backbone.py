"""The code that docs/guides/extend.md shows for another family of backbones is all that it takes."""

import copy
import json
import re

import pytest
import timm
import torch
from helpers import ROOT, SMALL
from torch import nn

import layershuffle
from layershuffle.commands import main
from layershuffle.models import backbones
from layershuffle.models.fitting import create_fitting


@pytest.fixture
def documented(monkeypatch):
    """Runs the first block of code under the heading "Add a backbone family"; returns its text."""
    monkeypatch.setattr(backbones, "FAMILIES", dict(backbones.FAMILIES))
    page = (ROOT / "docs/guides/extend.md").read_text()
    first_block = r"^## Add a backbone family$.*?^```python\n(.*?)^```$"
    code = re.search(first_block, page, re.DOTALL | re.MULTILINE)[1]
    exec(code, {"__name__": "documented"})
    return code


@pytest.mark.heavy
def test_another_family_takes_one_class(documented, small, images):
    assert len(documented.splitlines()) <= 40
    model = small("beit_base_patch16_224", init_values=0.1)
    assert type(model.vit) is timm.models.Beit
    torch.testing.assert_close(model(images).logits, model.vit(images), rtol=1e-5, atol=1e-5)

    shuffled = copy.deepcopy(model.vit)
    shuffled.blocks = nn.ModuleList(shuffled.blocks[layer] for layer in (3, 1, 0, 2))
    torch.testing.assert_close(model(images, "3 1 0 2").logits, shuffled(images))
    torch.testing.assert_close(model(images, "2a 2f 0a 0f").logits, model(images, "2 0").logits)

    again = create_fitting(model.state_dict(), "file", **model.config).eval()
    assert torch.equal(again(images, "1 3").logits, model(images, "1 3").logits)


def test_without_it_the_family_is_not_supported():
    with pytest.raises(ValueError, match="Beit .* supported families are VisionTransformer and Eva"):
        layershuffle.create_model("beit_base_patch16_224", 5, depth=1)


@pytest.mark.heavy
def test_a_command_takes_the_module_of_a_stranger(documented, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_backbones.py").write_text(documented)
    backbones.FAMILIES.pop("timm.models.beit.Beit")
    sizes = json.dumps(SMALL | {"depth": 2})

    training = ["train", "digits", "layershuffle", "cpu", "--trainer.max_steps=1", "--data.train_images=80"]
    training += ["--model.name=beit_base_patch16_224", f"--model.timm_args={sizes}"]
    main(["--import", "my_backbones", *training])

    checkpoint = "runs/version_0/checkpoints/last.ckpt"
    evaluation = ["evaluate", checkpoint, "--protocols", "sequential", "--data.test_images=20"]
    main(["--import", "my_backbones", *evaluation])

    assert "sequential" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--import"], ["--import", "my_backbones"], ["--import", "no_such_module", "list"]])
def test_an_import_that_cannot_be(words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code.startswith("error: --import")


def test_a_registered_model_needs_no_configuration_of_timm(tmp_path):
    def bare_vit(pretrained=False, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **arguments):
        sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return timm.models.VisionTransformer(**{**sizes, **arguments})

    bare_vit.__module__ = __name__  # timm looks up where a model is defined
    timm.models.register_model(bare_vit)

    model = layershuffle.create_model("bare_vit", 3)
    assert model.image_format.size == 8
    assert model.image_format.mean == timm.data.IMAGENET_DEFAULT_MEAN

    torch.save(model.vit.state_dict(), tmp_path / "weights.pth")
    again = layershuffle.create_model("bare_vit", 3, pretrained=str(tmp_path / "weights.pth"))
    assert torch.equal(again.vit.head.weight, model.vit.head.weight)
