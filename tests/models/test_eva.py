"""The second family, timm's Eva (EVA-02, DINOv3 and others), does all that the first one does."""

import copy

import pytest
import safetensors.torch
import timm
import torch
from helpers import DIGITS, QUIET, SMALL, train
from packaging.version import Version
from test_compile import Graphs, several
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F

import layershuffle
from layershuffle import Order
from layershuffle.checkpoints.loading import load
from layershuffle.commands.export import export_command
from layershuffle.commands.merge import merge_command
from layershuffle.evaluation.scoring import run_orders
from layershuffle.models.fitting import create_fitting
from layershuffle.orders.named import permutation
from layershuffle.orders.order import seeded
from layershuffle.training.distributed import shard, unused_parameters
from layershuffle.training.trainable import add_lora

DINOV3 = "vit_small_patch16_dinov3"  # rotary embeddings for any image size, registers, layer scale
EVA02 = "eva02_tiny_patch14_224"  # learned and rotary embeddings, SwiGLU, average pooling with a norm of its own
MIXED = "vit_small_patch16_rope_mixed_224"  # rotary embeddings of each layer
POOLED = "vit_base_patch16_rope_reg1_gap_256"  # average pooling with a norm of its own, a register
FAMILY = {
    "dinov3": (DINOV3, {}),
    "eva02": (EVA02, {}),
    "mixed": (MIXED, {}),
    "pooled": (POOLED, {}),
    "no rope": ("eva_giant_patch14_224", {}),
    "attention pooling": ("vit_pe_core_base_patch16_224", {}),
    "post-norm": (EVA02, {"use_post_norm": True}),
}
every = pytest.mark.parametrize(("name", "arguments"), FAMILY.values(), ids=FAMILY)
main_ones = pytest.mark.parametrize("name", [DINOV3, EVA02, MIXED])


def permuted(vit, layers):
    """A plain timm model with the layers of ``vit`` in another sequence, each with the rotary embeddings it has."""
    vit = copy.deepcopy(vit)
    vit.blocks = nn.ModuleList(vit.blocks[layer] for layer in layers)
    if vit.rope_mixed:
        vit.rope.freqs = nn.Parameter(vit.rope.freqs[:, layers])
    return vit


@pytest.mark.heavy
@pytest.mark.parametrize("name", [DINOV3, EVA02, MIXED, POOLED])
def test_logits_in_sequence_are_timms(name):
    size = 4 * timm.create_model(name, depth=1).patch_embed.patch_size[0]
    torch.manual_seed(0)
    model = layershuffle.create_model(name, 10, img_size=size, depth=3).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    plain = timm.create_model(name, num_classes=10, img_size=size, depth=3).eval()
    plain.load_state_dict(model.vit.state_dict())
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        logits = model(images).logits
        torch.testing.assert_close(logits, plain(images), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(logits, model(images, "1 0 2").logits, rtol=1e-3)


@every
def test_any_order_is_timms_with_the_layers_and_their_ropes_permuted(name, arguments, images, small):
    model = small(name, **arguments)
    for layers in ([0, 1, 2, 3], [3, 1, 0, 2], [2], [1, 1, 3]):
        torch.testing.assert_close(model(images, layers).logits, permuted(model.vit, layers)(images))
    assert not torch.allclose(model(images, [3, 1, 0, 2]).logits, model(images).logits)


@pytest.mark.parametrize(
    ("name", "arguments"), [*FAMILY.values(), ("eva02_base_patch14_224", {})], ids=[*FAMILY, "separate q, k and v"]
)
def test_lora_acts_on_every_linear_map_of_the_layers(name, arguments, images, small):
    pytest.importorskip("peft")
    model = small(name, **arguments)
    plain = model.state_dict()
    maps = {
        f"vit.{key}" for key, module in model.vit.blocks.named_modules(prefix="blocks") if isinstance(module, nn.Linear)
    }
    add_lora(model, 2)
    logits = model(images, [3, 1, 0, 2]).logits
    unchanged = create_fitting(plain, "a test", name=name, num_classes=5, **SMALL, **arguments).eval()
    torch.testing.assert_close(logits, unchanged(images, [3, 1, 0, 2]).logits)
    logits.logsumexp(1).sum().backward()
    trained = {key for key, value in model.named_parameters() if "lora_B" in key and value.grad.any()}
    assert trained == {f"{key}.lora_B.default.weight" for key in maps}


def test_a_layers_own_rope_goes_where_the_layer_goes(images, small):
    model = small(MIXED)
    before = model(images, "2 0").logits
    with torch.no_grad():
        model.vit.rope.freqs[:, 1] += 1
    assert torch.equal(model(images, "2 0").logits, before)  # layer 0 runs second, but not with the rope of layer 1
    with torch.no_grad():
        model.vit.rope.freqs[:, 2] += 1
    assert not torch.allclose(model(images, "2 0").logits, before)
    assert not torch.allclose(model(images, "2a").logits, model(images, "2f").logits)


@every
def test_the_halves_of_a_layer_make_the_layer(name, arguments, images, small):
    model = small(name, **arguments)
    torch.testing.assert_close(model(images, "2a 2f 0a 0f").logits, model(images, "2 0").logits)
    assert not torch.allclose(model(images, "2a 0a 2f 0f").logits, model(images, "2 0").logits)


@main_ones
@pytest.mark.parametrize("position", ["encode", "predict"])
def test_positions_are_encoded_and_predicted_and_learned(name, position, images, small):
    model = small(name, position=position).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = copy.deepcopy(model.state_dict())
    output = model(images, permutation(4, seeded(1)))
    loss = F.cross_entropy(output.logits, torch.arange(3))
    if position == "predict":
        assert output.position_logits.shape == (4, 3, 4)
        loss = loss + output.position_logits.logsumexp(-1).sum()
    loss.backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert "encoding.table.weight" in changed or "prediction.heads.3.1.weight" in changed
    assert ("vit.rope.freqs" in changed) == model.vit.rope_mixed


@pytest.mark.parametrize("name", [DINOV3, MIXED])
def test_dropped_patches_drop_their_rotary_embeddings(name, small):
    model = small(name, patch_drop_rate=0.5, img_size=16).train()
    images = torch.randn(4, 1, 16, 16)
    torch.manual_seed(3)
    expected = permuted(model.vit, [3, 1, 0])(images)
    torch.manual_seed(3)
    state = model.embed(images)
    order = model.check([3, 1, 0])
    torch.testing.assert_close(model.run(state, order).logits, expected)
    some = torch.tensor([3, 1])
    torch.testing.assert_close(model.run(state.of(some), order).logits, expected[some])


def test_images_choose_their_orders(small):
    model, images = small(MIXED, choices=["0 1 2 3", "3 2 1 0"]), torch.randn(16, 1, 8, 8)
    chosen = model.choice(model.embed(images).tokens).argmax(dim=1)
    assert len(set(chosen.tolist())) == 2
    for row, order in enumerate(chosen):
        expected = model(images[row : row + 1], model.choice.orders[order]).logits
        torch.testing.assert_close(model(images).logits[row : row + 1], expected)


@main_ones
def test_evaluating_many_orders_shares_their_beginnings(name, images, small):
    model = small(name)
    orders = {permutation(4, seeded(index)) for index in range(8)} | {Order("0a 3f (1|2)*2"), Order("0a")}
    with torch.inference_mode():
        found = dict(run_orders(model, images, orders))
        assert found.keys() == orders
        for order, output in found.items():
            torch.testing.assert_close(output.logits, model(images, order).logits)


@pytest.mark.heavy
@main_ones
def test_compiled_layers_share_their_graphs_and_give_the_same(name, images, small):
    torch._dynamo.reset()
    plain, graphs = small(name), Graphs()
    model = copy.deepcopy(plain)
    model.compile(backend=graphs)
    counts = []
    for order in several(16):
        model.train()(images, order).logits.sum().backward()
        with torch.inference_mode():
            torch.testing.assert_close(model.eval()(images, order).logits, plain(images, order).logits)
        counts.append(graphs.count)
    assert counts[5:] == [6] * 11  # a layer and its two halves, each in training and in evaluation


@main_ones
def test_pretrained_from_a_file(name, tmp_path, images, small):
    model, path = small(name), str(tmp_path / "weights.safetensors")
    safetensors.torch.save_file(model.vit.state_dict(), path)
    small_ones = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "num_heads": 2}
    again = layershuffle.create_model(name, 5, pretrained=path, depth=4, **small_ones).eval()
    order = permutation(4, seeded(0))
    assert torch.equal(again(images, order).logits, model(images, order).logits)
    first = layershuffle.create_model(name, 5, pretrained=path, depth=2, **small_ones).eval()
    assert torch.equal(first(images, "1 0").logits, model(images, "1 0").logits)
    new = layershuffle.create_model(name, 3, pretrained=path, depth=4, **small_ones)
    fresh = timm.create_model(name, num_classes=3, depth=4, **small_ones)
    new_std, fresh_std = (float(each.head.weight.detach().std()) for each in (new.vit, fresh))
    assert new_std == pytest.approx(fresh_std, rel=0.3)
    with pytest.raises(ValueError, match="holds weights of another backbone"):
        layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=path, depth=4, **small_ones)
    larger = layershuffle.create_model(name, 5, pretrained=path, depth=4, **small_ones | {"img_size": 16}).eval()
    assert larger(torch.randn(1, 1, 16, 16)).logits.shape == (1, 5)


@pytest.mark.heavy
def test_trained_merged_exported_and_read_again(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    sizes = "{img_size: 8, patch_size: 4, in_chans: 1, embed_dim: 32, depth: 4, num_heads: 2}"
    options = [*DIGITS, *QUIET, f"--model.name={MIXED}", f"--model.timm_args={sizes}", "--model.sampler=Shuffle"]
    options += ["--model.position=predict", "--trainer.max_epochs=1", "--data.train_images=200"]
    for seed in (0, 1):
        train([*options, f"--seed={seed}", f"--checkpoint.dirpath=run{seed}"])
    merge_command(["run0/best.ckpt", "run1/best.ckpt", "--seed=3", "--output=merged.ckpt"])
    merged, sources = load("merged.ckpt"), [load("run0/best.ckpt"), load("run1/best.ckpt")]
    layers = merged.info.merged["layers"]
    assert set(layers) == {0, 1}
    for layer, source in enumerate(layers):
        mine, its = merged.model, sources[source].model
        assert torch.equal(mine.vit.rope.freqs[:, layer], its.vit.rope.freqs[:, layer])
        assert torch.equal(mine.layers[layer].mlp.fc1.weight, its.layers[layer].mlp.fc1.weight)
    results = layershuffle.evaluate("run0/best.ckpt", random_orders=3)
    assert all(score.loss > 0 for score in results.scores)
    results.save("results.json")
    export_command(["run0/best.ckpt", "out", "--results", "results.json"])
    before, after = sources[0].model.eval(), load("out").model.eval()
    with torch.inference_mode():
        assert torch.equal(after(images, "3 (1|2) 0").logits, before(images, "3 (1|2) 0").logits)
        if Version(timm.__version__) >= Version("1.0.31"):  # older ones read no safetensors from a local-dir
            plain = timm.create_model("local-dir:out", pretrained=True).eval()
            assert torch.equal(plain(images), before(images).logits)


@pytest.mark.parametrize("name", [DINOV3, MIXED])
@pytest.mark.parametrize("orders", [["0 2"], ["0a 2f", "1 2a"], [""], ["1f 2f"]])
def test_unused_parameters_are_those_without_gradients(name, orders, images, small):
    model = small(name).train()
    sum(model(images, order).logits.sum() for order in orders).backward()
    idle = {id(parameter) for parameter in unused_parameters(model, map(Order, orders))}
    assert idle == {id(parameter) for parameter in model.parameters() if parameter.grad is None}


@main_ones
def test_sharded_layers_learn_the_same(name, images, small):
    plain, model = small(name), small(name)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        shard(model, init_device_mesh("cpu", (1,)))
        for each in (plain, model):
            each.train()(images, "3 1 1 0").logits.square().sum().backward()
        for (key, value), other in zip(plain.named_parameters(), model.parameters()):
            if value.grad is not None and value.grad.any():
                torch.testing.assert_close(other.grad.full_tensor(), value.grad, msg=key)
    finally:
        distributed.destroy_process_group()


def test_a_model_without_a_classifier_returns_features():
    model = layershuffle.create_model(EVA02, 0, img_size=28, embed_dim=32, num_heads=2, depth=2).eval()
    assert model(torch.rand(1, 3, 28, 28)).logits.shape == (1, 32)


def test_an_unsupported_family_is_one_sentence():
    with pytest.raises(ValueError, match="SwinTransformer .* supported families are VisionTransformer and Eva"):
        layershuffle.create_model("swin_tiny_patch4_window7_224", 5, depths=(1, 1, 1, 1))


def test_a_file_that_names_a_huge_image_takes_no_memory(small):
    config = {"name": EVA02, "num_classes": 5, "depth": 4, "in_chans": 1, "embed_dim": 32, "num_heads": 2}
    config |= {"use_abs_pos_emb": False, "patch_size": 4}
    weights = layershuffle.create_model(**config, img_size=8).state_dict()
    create_fitting(weights, "file", **config, img_size=16)  # no weight's shape depends on it
    with pytest.raises(ValueError, match="tables of positions are too large"):
        create_fitting(weights, "file", **config, img_size=10**5)
