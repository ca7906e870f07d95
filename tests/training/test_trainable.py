"""What is trained and how fast: parts of the backbone, LoRA, layer-wise rates, and every recipe."""

from contextlib import contextmanager

import pytest
import torch
from helpers import QUIET, ROOT, SMALL, configs, train
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
DEPTH = SMALL["depth"]
DECAYED = Trainable(layer_decay=0.5, decay_norms=False)


def tuner(**arguments):
    """An untrained module with a small model; ``arguments`` replace the default ones."""
    torch.manual_seed(0)
    defaults = {"name": "vit_tiny_patch16_224", "num_classes": 10, "timm_args": SMALL}
    return FineTuner(**(defaults | arguments))


def images(count=3):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def gradients(module, order=ORDER):
    """The gradients of the cross-entropy of three images, of those parameters that have one."""
    torch.manual_seed(2)  # for stochastic depth
    module.zero_grad()
    F.cross_entropy(module.model(images(), order).logits, torch.arange(3)).backward()
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def test_only_the_named_parts_of_the_backbone_and_new_modules_are_trained():
    module = tuner(trainable=Trainable(only=["norm", "head"]), position="encode")

    modules = ["vit.norm", "vit.head"]
    for layer in range(DEPTH):
        modules += [f"vit.blocks.{layer}.norm1", f"vit.blocks.{layer}.norm2"]
    expected = {f"{name}.weight" for name in modules} | {f"{name}.bias" for name in modules}
    # The position encoding is no part of the backbone.
    expected |= {f"encoding.{name}" for name, _ in module.model.encoding.named_parameters()}
    trained = {name for name, value in module.model.named_parameters() if value.requires_grad}
    assert trained == expected
    assert gradients(module).keys() == {f"model.{name}" for name in trained}

    with pytest.raises(UserError, match="with nrom in its name: they are attn, .*head, .*norm"):
        tuner(trainable=Trainable(only=["nrom"]))


def test_a_head_that_is_not_used_stays_frozen():
    # A distilled DeiT has a second head, for the distillation token.
    module = tuner(
        name="deit_tiny_distilled_patch16_224",
        timm_args={"depth": 1, "embed_dim": 8, "num_heads": 2},
        head="class",
        trainable=Trainable(only=["head"]),
    )
    trained = [name for name, value in module.model.named_parameters() if value.requires_grad]
    assert trained == ["vit.head.weight", "vit.head.bias"]


@torch.no_grad()
def test_lora_changes_what_peft_says_and_its_checkpoint_is_the_plain_model(tmp_path):
    pytest.importorskip("peft")
    module = tuner(trainable=Trainable(lora=2, only=["lora", "head"])).eval()
    plain = tuner().model.eval()
    plain_logits = plain(images(), ORDER).logits

    # At first LoRA changes nothing, because one of its two matrices is 0.
    assert torch.equal(module.model(images(), ORDER).logits, plain_logits)
    trained = [name for name, value in module.model.vit.named_parameters() if value.requires_grad]
    # Two matrices for each of four linear maps in each layer, and weight and bias of the head.
    assert len(trained) == DEPTH * 4 * 2 + 2

    # As if it had been trained.
    for name, value in module.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    expected = module.model(images(), ORDER).logits
    assert not torch.allclose(expected, plain_logits, atol=1e-3)

    # Loaded, LoRA is part of the plain model's weights.
    weights = module.model.state_dict()
    merged = create_fitting(weights, "a test", **module.model.config).eval()
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(merged(images(), ORDER).logits, expected, atol=1e-5)

    # A matrix so large that to multiply by it would fill the memory.
    damaged = weights | {"vit.blocks.0.mlp.fc1.lora_A.default.weight": torch.zeros(2, 10**12, device="meta")}
    with pytest.raises(UserError, match="a test is damaged"):
        create_fitting(damaged, "a test", **module.model.config)

    # A new model begins with the weights of such a file, too.
    path = tmp_path / "lora.pth"
    torch.save({f"model.{name}": value for name, value in weights.items()}, path)
    started = create_model("vit_tiny_patch16_224", 10, pretrained=str(path), **SMALL).eval()
    assert torch.allclose(started(images(), ORDER).logits, expected, atol=1e-5)


def rates(module):
    """The factor of the learning rate, and whether weight decay applies, of each parameter."""
    names = {id(value): name for name, value in module.model.named_parameters()}
    found = {}
    for group in module.trainable.parameter_groups(module.model, module.orders.examples):
        # A group without a weight decay of its own has the optimizer's.
        decays = group.get("weight_decay") is None
        for value in group["params"]:
            found[names[id(value)]] = (group["lr_scale"], decays)
    return found


def test_layer_wise_rates_fall_towards_the_images_or_are_shared_where_layers_have_no_depth():
    # In the sequential order, each layer has half of the rate of the next. Norms and embeddings have no weight decay.
    sequential = rates(tuner(sampler=Sequential(), trainable=DECAYED, position="encode"))
    all_names = {name for name, _ in tuner(position="encode").model.named_parameters()}
    assert sequential.keys() == all_names
    for layer in range(DEPTH):
        assert sequential[f"vit.blocks.{layer}.attn.qkv.weight"] == (0.5 ** (4 - layer), True)
        assert sequential[f"vit.blocks.{layer}.norm1.weight"] == (0.5 ** (4 - layer), False)
    assert sequential["vit.pos_embed"] == (0.5**5, False)
    assert sequential["vit.patch_embed.proj.weight"] == (0.5**5, True)
    assert sequential["vit.head.weight"] == (1, True)
    assert sequential["encoding.projections.0.1.weight"] == (1, True)

    # Dropped layers leave the others in their sequence.
    assert rates(tuner(sampler=LayerDrop(0.5), trainable=DECAYED, position="encode")) == sequential

    # Shuffled layers share a rate: that of the mean exponent, which is between 1 and 4.
    shuffled = rates(tuner(sampler=Shuffle(), trainable=DECAYED, position="encode"))
    assert shuffled.keys() == all_names
    for layer in range(DEPTH):
        assert shuffled[f"vit.blocks.{layer}.attn.qkv.weight"] == (0.5**2.5, True)
    for name in ("vit.pos_embed", "vit.patch_embed.proj.weight", "vit.head.weight", "encoding.table.weight"):
        assert shuffled[name] == sequential[name]

    # By default weight decay applies to all parameters.
    by_default = rates(tuner(trainable=Trainable(layer_decay=0.5)))
    assert all(decays for _, decays in by_default.values())


@contextmanager
def saved_for_backward():
    """Collects the tensors that forward passes keep for the backward pass; yields the list of them."""
    saved = []

    def pack(value):
        saved.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        yield saved


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("timms_own", [False, True], ids=["option", "timm's method"])
def test_checkpointed_layers_have_the_same_gradients(compiled, timms_own):
    options = {"position": "encode", "drop_path": 0.5}
    with saved_for_backward() as all_saved:
        expected = gradients(tuner(**options))

    module = tuner(**options, checkpoint_layers=not timms_own)
    module.model.vit.set_grad_checkpointing(timms_own)
    if compiled:
        module.model.compile(backend="aot_eager")
    with saved_for_backward() as saved:
        found = gradients(module)

    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)
    assert len(saved) < len(all_saved) / 2


RECIPES = sorted(path.stem for path in (ROOT / "configs/recipe").glob("*.yaml"))


TELLING_RECIPES = {"linear-probe", "lora"}
"""The recipe that freezes the most, and the one that replaces modules."""


def recipes_and_methods():
    """All pairs. Those in which images choose are slow, but for the recipes that tell the most."""
    pairs = [pytest.param(recipe, "layershuffle_predict") for recipe in RECIPES]
    for recipe in RECIPES:
        marks = [] if recipe in TELLING_RECIPES else [pytest.mark.slow]
        pairs.append(pytest.param(recipe, "instancewise", marks=marks))
    return pairs


@pytest.mark.parametrize(("recipe", "method"), recipes_and_methods())
def test_every_recipe_trains_with_every_kind_of_method(tmp_path, monkeypatch, recipe, method):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    command = [*configs("model/mini_digits", "data/digits", "trainer/cpu", f"method/{method}", f"recipe/{recipe}")]
    command += [
        *QUIET,
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=1",
        "--data.train_images=80",
        "--data.batch_size=16",
        "--data.workers=0",
        "--model.timm_args.depth=3",
    ]
    if method == "instancewise":
        command.append("--model.choices=[sequential,backwards]")

    trainer = train(command)
    assert trainer.global_step == 2
    model = load("runs/version_0/checkpoints/last.ckpt").model
    assert not any("lora" in name for name in model.state_dict())


def test_the_recipe_paper_is_what_runs_without_one():
    command = configs("model/mini_digits", "data/digits", "trainer/cpu")
    without_recipe = compose(command).config.as_dict()
    with_recipe = compose([*command, *configs("recipe/paper")]).config.as_dict()

    # The list of config files is all that differs.
    del without_recipe["config"]
    del with_recipe["config"]
    assert without_recipe == with_recipe


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
