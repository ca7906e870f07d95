"""What is trained and how fast: parts of the backbone, LoRA, layer-wise rates, and every recipe."""

import pytest
import torch
from helpers import DIGITS, QUIET, ROOT, SMALL, configs, train
from torch.nn import functional as F

from layershuffle.api.compose import compose
from layershuffle.api.show_data import show_data
from layershuffle.checkpoints.loading import load
from layershuffle.commands.show_data import show_data_command
from layershuffle.errors import UserError
from layershuffle.models.create import create_model
from layershuffle.models.fitting import create_fitting
from layershuffle.orders.samplers import LayerDrop, Sequential, Shuffle
from layershuffle.training.module import FineTuner
from layershuffle.training.trainable import Trainable

ORDER = [2, 0, 3, 1]
DECAYED = Trainable(layer_decay=0.5, decay_norms=False)


def tuner(**arguments):
    torch.manual_seed(0)
    return FineTuner(**{"name": "vit_tiny_patch16_224", "num_classes": 10, "timm_args": SMALL} | arguments)


def images(count=3):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def gradients(module, order=ORDER):
    torch.manual_seed(2)  # of stochastic depth
    module.zero_grad()
    F.cross_entropy(module.model(images(), order).logits, torch.arange(3)).backward()
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def test_only_the_named_parts_of_the_backbone_and_new_modules_are_trained():
    module = tuner(trainable=Trainable(only=["norm", "head"]), position="encode")
    trained = {name for name, value in module.model.named_parameters() if value.requires_grad}
    assert trained == {
        *(f"vit.blocks.{layer}.norm{n}.{part}" for layer in range(4) for n in (1, 2) for part in ("weight", "bias")),
        *(f"vit.{name}.{part}" for name in ("norm", "head") for part in ("weight", "bias")),
        *(f"encoding.{name}" for name, _ in module.model.encoding.named_parameters()),
    }
    assert gradients(module).keys() == {f"model.{name}" for name in trained}
    with pytest.raises(UserError, match="with nrom in its name: they are attn, .*head, .*norm"):
        tuner(trainable=Trainable(only=["nrom"]))


def test_a_head_that_is_not_used_stays_frozen():
    small = {"depth": 1, "embed_dim": 8, "num_heads": 2}
    module = tuner(
        name="deit_tiny_distilled_patch16_224", timm_args=small, head="class", trainable=Trainable(only=["head"])
    )
    trained = [name for name, value in module.model.named_parameters() if value.requires_grad]
    assert trained == ["vit.head.weight", "vit.head.bias"]


def test_lora_changes_what_peft_says_and_its_checkpoint_is_the_plain_model(tmp_path):
    pytest.importorskip("peft")
    module = tuner(trainable=Trainable(lora=2, only=["lora", "head"])).eval()
    plain = tuner().model.eval()
    assert torch.equal(module.model(images(), ORDER).logits, plain(images(), ORDER).logits)
    trained = [name for name, value in module.model.vit.named_parameters() if value.requires_grad]
    assert len(trained) == 4 * 4 * 2 + 2  # two matrices for each of four linear maps in four layers, and the head
    for name, value in module.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    with torch.no_grad():
        expected = module.model(images(), ORDER).logits
        assert not torch.allclose(expected, plain(images(), ORDER).logits, atol=1e-3)
        merged = create_fitting(module.model.state_dict(), "a test", **module.model.config).eval()
        assert merged.state_dict().keys() == plain.state_dict().keys()
        assert torch.allclose(merged(images(), ORDER).logits, expected, atol=1e-5)
        damaged = module.model.state_dict()
        damaged["vit.blocks.0.mlp.fc1.lora_A.default.weight"] = torch.zeros(2, 10**12, device="meta")
        with pytest.raises(UserError, match="a test is damaged"):
            create_fitting(damaged, "a test", **module.model.config)
        path = tmp_path / "lora.pth"
        torch.save({f"model.{name}": value for name, value in module.model.state_dict().items()}, path)
        started = create_model("vit_tiny_patch16_224", 10, pretrained=str(path), **SMALL).eval()
        assert torch.allclose(started(images(), ORDER).logits, expected, atol=1e-5)


def rates(module):
    """The factor of the learning rate, and whether weight decay applies, of each parameter."""
    names = {id(value): name for name, value in module.model.named_parameters()}
    return {
        names[id(value)]: (group["lr_scale"], group.get("weight_decay") is None)
        for group in module.trainable.parameter_groups(module.model, module.orders.examples)
        for value in group["params"]
    }


def test_layer_wise_rates_fall_towards_the_images_or_are_shared_where_layers_have_no_depth():
    sequential = rates(tuner(sampler=Sequential(), trainable=DECAYED, position="encode"))
    for layer in range(4):
        assert sequential[f"vit.blocks.{layer}.attn.qkv.weight"] == (0.5 ** (4 - layer), True)
        assert sequential[f"vit.blocks.{layer}.norm1.weight"] == (0.5 ** (4 - layer), False)
    assert sequential["vit.pos_embed"] == (0.5**5, False)
    assert sequential["vit.patch_embed.proj.weight"] == (0.5**5, True)
    assert sequential["vit.head.weight"] == (1, True)
    assert sequential["encoding.projections.0.1.weight"] == (1, True)
    assert rates(tuner(sampler=LayerDrop(0.5), trainable=DECAYED, position="encode")) == sequential
    shuffled = rates(tuner(sampler=Shuffle(), trainable=DECAYED, position="encode"))
    assert (
        shuffled.keys() == sequential.keys() == {name for name, _ in tuner(position="encode").model.named_parameters()}
    )
    for layer in range(4):
        assert shuffled[f"vit.blocks.{layer}.attn.qkv.weight"] == (0.5**2.5, True)
    for name in ("vit.pos_embed", "vit.patch_embed.proj.weight", "vit.head.weight", "encoding.table.weight"):
        assert shuffled[name] == sequential[name]
    assert {decays for _, decays in rates(tuner(trainable=Trainable(layer_decay=0.5))).values()} == {True}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("timms_own", [False, True], ids=["option", "timm's method"])
def test_checkpointed_layers_have_the_same_gradients(compiled, timms_own):
    options = {"position": "encode", "drop_path": 0.5}
    expected = gradients(tuner(**options))
    module = tuner(**options, checkpoint_layers=not timms_own)
    module.model.vit.set_grad_checkpointing(timms_own)
    if compiled:
        module.model.compile(backend="aot_eager")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: saved.append(value) or value, lambda value: value):
        found = gradients(module)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)
    everything = []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: everything.append(value) or value, lambda value: value):
        gradients(tuner(**options))
    assert len(saved) < len(everything) / 2


RECIPES = sorted(path.stem for path in (ROOT / "configs/recipe").glob("*.yaml"))


@pytest.mark.parametrize(
    ("recipe", "method"),
    [
        *((recipe, "layershuffle_predict") for recipe in RECIPES),
        # Of the trainings in which images choose, those that freeze the most and that replace modules tell the most.
        *(
            pytest.param(recipe, "instancewise", marks=[] if recipe in {"linear-probe", "lora"} else pytest.mark.slow)
            for recipe in RECIPES
        ),
    ],
)
def test_every_recipe_trains_with_every_kind_of_method(tmp_path, monkeypatch, recipe, method):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    tiny = ["--trainer.max_steps=2", "--data.train_images=80", "--data.batch_size=16", "--data.workers=0"]
    choices = ["--model.choices=[sequential,backwards]"] if method == "instancewise" else []
    trainer = train(
        [*DIGITS[:3], *configs(f"method/{method}", f"recipe/{recipe}"), *QUIET, *tiny, *choices]
        + ["--model.timm_args.depth=3", "--trainer.limit_val_batches=1"]
    )
    assert trainer.global_step == 2
    model = load("runs/version_0/checkpoints/last.ckpt").model
    assert not any("lora" in name for name in model.state_dict())


def test_the_recipe_paper_is_what_runs_without_one():
    plain, paper = (compose([*DIGITS[:3], *recipe]) for recipe in ([], configs("recipe/paper")))
    assert {**plain.config.as_dict(), "config": None} == {**paper.config.as_dict(), "config": None}


@pytest.mark.usefixtures("with_rendering")
def test_show_data_draws_a_column_for_each_epoch(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    show_data_command(["mini_digits", "digits", "finetune", "cpu", "--images=2", "--epochs=3", "--output=seen.png"])
    assert capsys.readouterr().out == "drawn: seen.png\n"
    with Image.open("seen.png") as picture:
        assert picture.width > picture.height  # 2 rows of "evaluated", 3 epochs and "mixed"
    (axis,) = show_data("mini_digits", "digits", "finetune", images=1, epochs=2).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["evaluated", "epoch 1", "epoch 2", "mixed"]
    # Without a recipe every epoch shows the same.
    (axis,) = show_data("mini_digits", "digits", images=1).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["evaluated", "every epoch"]
