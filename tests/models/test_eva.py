"""The second family, timm's Eva (EVA-02, DINOv3 and others), does all that the first one does."""

import copy
import json

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
    patch_size = timm.create_model(name, depth=1).patch_embed.patch_size[0]
    size = 4 * patch_size  # 4 x 4 patches

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
        expected = permuted(model.vit, layers)(images)
        torch.testing.assert_close(model(images, layers).logits, expected)

    assert not torch.allclose(model(images, [3, 1, 0, 2]).logits, model(images).logits)


WITH_SEPARATE_QKV = {**FAMILY, "separate q, k and v": ("eva02_base_patch14_224", {})}


@pytest.mark.parametrize(("name", "arguments"), WITH_SEPARATE_QKV.values(), ids=WITH_SEPARATE_QKV)
def test_lora_acts_on_every_linear_map_of_the_layers(name, arguments, images, small):
    pytest.importorskip("peft")
    order = [3, 1, 0, 2]
    model = small(name, **arguments)
    weights = model.state_dict()
    linear_maps = []
    for key, module in model.vit.named_modules():
        if key.startswith("blocks.") and isinstance(module, nn.Linear):
            linear_maps.append(f"vit.{key}")

    add_lora(model, rank=2)

    # LoRA starts from zero, so at first it changes nothing.
    logits = model(images, order).logits
    without_lora = create_fitting(weights, "a test", name=name, num_classes=5, **SMALL, **arguments).eval()
    torch.testing.assert_close(logits, without_lora(images, order).logits)

    logits.logsumexp(1).sum().backward()
    trained = {key for key, value in model.named_parameters() if "lora_B" in key and value.grad.any()}
    assert trained == {f"{key}.lora_B.default.weight" for key in linear_maps}


def test_a_layers_own_rope_goes_where_the_layer_goes(images, small):
    model = small(MIXED)
    before = model(images, "2 0").logits

    # Layer 0 runs second, but not with the embeddings of layer 1.
    with torch.no_grad():
        model.vit.rope.freqs[:, 1] += 1
    assert torch.equal(model(images, "2 0").logits, before)

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
        assert output.position_logits.shape == (4, 3, 4)  # steps, images, possible positions
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

    # The same seed drops the same patches.
    torch.manual_seed(3)
    expected = permuted(model.vit, [3, 1, 0])(images)
    torch.manual_seed(3)
    state = model.embed(images)

    order = model.check([3, 1, 0])
    torch.testing.assert_close(model.run(state, order).logits, expected)
    two_images = torch.tensor([3, 1])
    torch.testing.assert_close(model.run(state.of(two_images), order).logits, expected[two_images])


def test_images_choose_their_orders(small):
    model = small(MIXED, choices=["0 1 2 3", "3 2 1 0"])
    images = torch.randn(16, 1, 8, 8)

    chosen = model.choice(model.embed(images).tokens).argmax(dim=1)

    assert len(set(chosen.tolist())) == 2  # some images choose the first order and some the second
    for at, choice in enumerate(chosen):
        alone = slice(at, at + 1)
        expected = model(images[alone], model.choice.orders[choice]).logits
        torch.testing.assert_close(model(images).logits[alone], expected)


@main_ones
def test_evaluating_many_orders_shares_their_beginnings(name, images, small):
    model = small(name)
    orders = {permutation(4, seeded(index)) for index in range(8)}
    orders |= {Order("0a 3f (1|2)*2"), Order("0a")}

    with torch.inference_mode():
        outputs = dict(run_orders(model, images, orders))
        assert outputs.keys() == orders
        for order, output in outputs.items():
            torch.testing.assert_close(output.logits, model(images, order).logits)


@pytest.mark.heavy
@main_ones
def test_compiled_layers_share_their_graphs_and_give_the_same(name, images, small):
    torch._dynamo.reset()
    plain = small(name)
    model = copy.deepcopy(plain)
    graphs = Graphs()
    model.compile(backend=graphs)

    counts = []
    for order in several(16):
        model.train()(images, order).logits.sum().backward()
        with torch.inference_mode():
            torch.testing.assert_close(model.eval()(images, order).logits, plain(images, order).logits)
        counts.append(graphs.count)

    # After the fifth order, which runs halves of layers, there are six graphs: those of a layer and of its two halves,
    # each in training and in evaluation.
    assert counts[5:] == [6] * 11


@main_ones
def test_pretrained_from_a_file(name, tmp_path, images, small):
    path = str(tmp_path / "weights.safetensors")
    model = small(name)
    safetensors.torch.save_file(model.vit.state_dict(), path)

    same = layershuffle.create_model(name, 5, pretrained=path, **SMALL).eval()
    order = permutation(4, seeded(0))
    assert torch.equal(same(images, order).logits, model(images, order).logits)

    shallower = layershuffle.create_model(name, 5, pretrained=path, **SMALL | {"depth": 2}).eval()
    assert torch.equal(shallower(images, "1 0").logits, model(images, "1 0").logits)

    # A new classifier starts from random weights that are as large as timm's.
    with_new_classifier = layershuffle.create_model(name, 3, pretrained=path, **SMALL)
    untrained = timm.create_model(name, num_classes=3, **SMALL)
    new_std = float(with_new_classifier.vit.head.weight.detach().std())
    untrained_std = float(untrained.head.weight.detach().std())
    assert new_std == pytest.approx(untrained_std, rel=0.3)

    with pytest.raises(ValueError, match="holds weights of another backbone"):
        layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=path, **SMALL)

    larger = layershuffle.create_model(name, 5, pretrained=path, **SMALL | {"img_size": 16}).eval()
    assert larger(torch.randn(1, 1, 16, 16)).logits.shape == (1, 5)


@pytest.mark.heavy
def test_trained_merged_exported_and_read_again(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    options = [
        *DIGITS,
        *QUIET,
        f"--model.name={MIXED}",
        f"--model.timm_args={json.dumps(SMALL)}",
        "--model.sampler=Shuffle",
        "--model.position=predict",
        "--trainer.max_epochs=1",
        "--data.train_images=200",
    ]
    for seed in (0, 1):
        train([*options, f"--seed={seed}", f"--checkpoint.dirpath=run{seed}"])
    sources = [load("run0/best.ckpt"), load("run1/best.ckpt")]

    merge_command(["run0/best.ckpt", "run1/best.ckpt", "--seed=3", "--output=merged.ckpt"])
    merged = load("merged.ckpt")
    sources_of_layers = merged.info.merged["layers"]
    assert set(sources_of_layers) == {0, 1}
    for layer, source in enumerate(sources_of_layers):
        ours = merged.model
        theirs = sources[source].model
        assert torch.equal(ours.vit.rope.freqs[:, layer], theirs.vit.rope.freqs[:, layer])
        assert torch.equal(ours.layers[layer].mlp.fc1.weight, theirs.layers[layer].mlp.fc1.weight)

    results = layershuffle.evaluate("run0/best.ckpt", random_orders=3)
    assert all(score.loss > 0 for score in results.scores)
    results.save("results.json")

    export_command(["run0/best.ckpt", "out", "--results", "results.json"])
    before = sources[0].model.eval()
    after = load("out").model.eval()
    with torch.inference_mode():
        assert torch.equal(after(images, "3 (1|2) 0").logits, before(images, "3 (1|2) 0").logits)
        if Version(timm.__version__) >= Version("1.0.31"):  # older ones read no safetensors from a local-dir
            plain = timm.create_model("local-dir:out", pretrained=True).eval()
            assert torch.equal(plain(images), before(images).logits)


@pytest.mark.parametrize("name", [DINOV3, MIXED])
@pytest.mark.parametrize("orders", [["0 2"], ["0a 2f", "1 2a"], [""], ["1f 2f"]])
def test_unused_parameters_are_those_without_gradients(name, orders, images, small):
    model = small(name).train()
    for order in orders:
        model(images, order).logits.sum().backward()
    without_gradients = {id(parameter) for parameter in model.parameters() if parameter.grad is None}

    unused = {id(parameter) for parameter in unused_parameters(model, map(Order, orders))}
    assert unused == without_gradients


@main_ones
def test_sharded_layers_learn_the_same(name, images, small):
    plain = small(name)
    sharded = small(name)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        shard(sharded, init_device_mesh("cpu", (1,)))
        for model in (plain, sharded):
            model.train()(images, "3 1 1 0").logits.square().sum().backward()
        for (key, expected), parameter in zip(plain.named_parameters(), sharded.parameters()):
            if expected.grad is not None and expected.grad.any():
                torch.testing.assert_close(parameter.grad.full_tensor(), expected.grad, msg=key)
    finally:
        distributed.destroy_process_group()


def test_a_model_without_a_classifier_returns_features():
    model = layershuffle.create_model(EVA02, 0, img_size=28, embed_dim=32, num_heads=2, depth=2).eval()
    assert model(torch.rand(1, 3, 28, 28)).logits.shape == (1, 32)


def test_an_unsupported_family_is_one_sentence():
    with pytest.raises(ValueError, match="SwinTransformer .* supported families are VisionTransformer and Eva"):
        layershuffle.create_model("swin_tiny_patch4_window7_224", 5, depths=(1, 1, 1, 1))


def test_a_file_that_names_a_huge_image_takes_no_memory(small):
    # Without learned position embeddings, no weight's shape tells the size of the images.
    config = SMALL | {"name": EVA02, "num_classes": 5, "use_abs_pos_emb": False}
    weights = layershuffle.create_model(**config).state_dict()
    create_fitting(weights, "file", **config | {"img_size": 16})

    with pytest.raises(ValueError, match="tables of positions are too large"):
        create_fitting(weights, "file", **config | {"img_size": 10**5})
