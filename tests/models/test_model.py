"""The model that runs any order, against plain timm and against the paper's formulas written out."""

import pytest
import safetensors.torch
import timm
import torch
from helpers import SMALL
from torch.nn import functional as F

import layershuffle
from layershuffle import create_model
from layershuffle.errors import UserError
from layershuffle.models.backbones import State
from layershuffle.orders.named import permutation
from layershuffle.orders.order import Order, seeded

FAMILIES = [
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",  # layer scale, position embedding without class token
    "vit_base_patch14_reg4_dinov2",  # registers
    "vit_base_patch16_clip_224",  # norm before the layers
    "vit_medium_patch16_gap_240",  # average pooling, no class token
    "vit_base_patch16_siglip_224",  # attention pooling
    "vit_base_patch16_rpn_224",  # post-norm layers
]


def by_hand(vit, images, layers):
    """The forward pass of a timm model, its blocks called one after the other in the given sequence."""
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for layer in layers:
        tokens = vit.blocks[layer](tokens)
    return vit.forward_head(vit.norm(tokens))


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_interchange_with_timm(name, images, small):
    model = small(name)
    plain = timm.create_model(name, num_classes=5, **SMALL).eval()
    plain.load_state_dict(model.vit.state_dict())
    torch.testing.assert_close(model(images).logits, plain(images), rtol=0, atol=0)

    torch.manual_seed(5)
    other = timm.create_model(name, num_classes=5, **SMALL).eval()
    model.vit.load_state_dict(other.state_dict())
    torch.testing.assert_close(model(images).logits, other(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_permutation_runs_the_permuted_blocks(name, images, small):
    model = small(name)
    for layers in ([3, 1, 0, 2], [2], [1, 1, 3], []):
        torch.testing.assert_close(model(images, layers).logits, by_hand(model.vit, images, layers), rtol=0, atol=0)
    assert not torch.allclose(model(images, [3, 1, 0, 2]).logits, model(images).logits)


def test_the_order_is_no_hidden_state(images, small):
    model = small()
    before = model(images).logits
    model(images, "3 2")
    assert torch.equal(model(images).logits, before)
    assert torch.equal(model(images, Order("0 1 2 3")).logits, before)


def test_sublayers_are_the_halves_of_a_layer(images, small):
    model = small(drop_path_rate=0.0, init_values=0.5)
    torch.testing.assert_close(model(images, "2a 2f 0a 0f").logits, model(images, "2 0").logits)
    block = model.vit.blocks[1]
    tokens = model.embed(images).tokens
    attention = tokens + block.ls1(block.attn(block.norm1(tokens)))
    torch.testing.assert_close(model.run_step(State(tokens), Order("1a")[0], 0)[0].tokens, attention)
    feed_forward = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    torch.testing.assert_close(model.run_step(State(tokens), Order("1f")[0], 0)[0].tokens, feed_forward)


def test_a_parallel_step_averages_its_members(images, small):
    model = small()
    tokens = model.embed(images).tokens
    mean = torch.stack([model.vit.blocks[layer](tokens) for layer in (0, 2, 3)]).mean(0)
    torch.testing.assert_close(model.run_step(State(tokens), Order("(0|2|3)")[0], 0)[0].tokens, mean)
    again = torch.stack([model.vit.blocks[layer](mean) for layer in (0, 2, 3)]).mean(0)
    torch.testing.assert_close(model(images, "(0|2|3)*2").logits, model.vit.forward_head(model.vit.norm(again)))


def test_a_summed_group_adds_what_each_member_changes(images, small):
    model = small()
    tokens = model.embed(images).tokens
    changes = [model.vit.blocks[layer](tokens) - tokens for layer in (0, 2, 3)]
    result, _ = model.run_step(State(tokens), Order("(0+2+3)")[0], 0)
    torch.testing.assert_close(result.tokens, tokens + sum(changes))
    halves = [run(model.vit.blocks[layer], tokens, None) - tokens for layer, run in ((1, model.halves["a"]),)]
    halves.append(model.halves["f"](model.vit.blocks[2], tokens, None) - tokens)
    result, _ = model.run_step(State(tokens), Order("(1a+2f)")[0], 0)
    torch.testing.assert_close(result.tokens, tokens + sum(halves))


def test_a_step_with_a_lag_reads_an_older_state_and_changes_the_newest(images, small):
    model = small()
    blocks = model.vit.blocks
    start = model.embed(images).tokens
    first = blocks[0](start)
    second = first + blocks[1](start) - start
    third = second + blocks[3](first) - first
    expected = model.vit.forward_head(model.vit.norm(third))
    torch.testing.assert_close(model(images, "0 1<1 3<1").logits, expected)
    averaged = second + (blocks[2](first) + blocks[3](first)) / 2 - first
    expected = model.vit.forward_head(model.vit.norm(averaged))
    torch.testing.assert_close(model(images, "0 1<1 (2|3)<1").logits, expected)


@pytest.mark.parametrize(
    ("group", "one_by_one"),
    [
        ("(0+1+2)", "0 1<1 2<2"),
        ("3 (0+1)", "3 0 1<1"),
        ("(0a+1a) (0f+1f)", "0a 1a<1 0f 1f<1"),
        ("(2+3)*2", "2 3<1 2 3<1"),
    ],
)
def test_a_summed_group_has_the_bits_of_steps_that_dont_wait(images, small, group, one_by_one):
    model = small()
    assert torch.equal(model(images, group).logits, model(images, one_by_one).logits)


def test_an_older_state_from_before_the_first_step_is_refused(images, small):
    with pytest.raises(UserError, match="1<2"):
        small()(images, "0 1<2")


@pytest.mark.parametrize("position", ["encode", "predict"])
def test_positions_of_groups_and_of_steps_that_dont_wait(images, small, position):
    """A group holds one position, and a step that reads an older state the one at which it starts."""
    model = small(position=position)
    seen = []
    if position == "encode":
        encode = model.encoding.forward
        model.encoding.forward = lambda tokens, layer, position: (
            seen.append(position) or encode(tokens, layer, position)
        )
    output = model(images, "3 (0+1) 2<1")
    if position == "encode":
        assert seen == [0, 1, 1, 1]
    else:
        assert output.positions == [0, 1, 1]
        assert output.position_targets().tolist() == [0, 1, 1]
        assert len(output.position_logits) == 3


@pytest.mark.parametrize("options", [{}, {"position_table": "per_layer", "position_dim": 5}])
def test_position_encoding_is_the_papers_formula(images, small, options):
    model = small(position="encode", **options)
    weights = model.state_dict()
    order = [2, 0, 3]
    tokens = model.embed(images).tokens
    for position, layer in enumerate(order):
        vector = weights[f"encoding.tables.{layer}.weight" if options else "encoding.table.weight"][position]
        h = torch.cat([tokens, vector.repeat(*tokens.shape[:2], 1)], dim=2)
        p = f"encoding.projections.{layer}"
        h = F.layer_norm(h, h.shape[-1:], weights[f"{p}.0.weight"], weights[f"{p}.0.bias"])
        h = F.gelu(F.linear(h, weights[f"{p}.1.weight"], weights[f"{p}.1.bias"]))
        tokens = model.vit.blocks[layer](h + tokens)
    expected = model.vit.forward_head(model.vit.norm(tokens))
    torch.testing.assert_close(model(images, order).logits, expected)


def test_a_new_position_table_is_zero_and_has_a_row_a_position():
    model = layershuffle.create_model("vit_tiny_patch16_224", 5, position="encode", positions=9, **SMALL)
    assert model.encoding.table.weight.shape == (9, 32)
    assert not model.encoding.table.weight.any()
    each = layershuffle.create_model("vit_tiny_patch16_224", 5, "encode", position_table="per_layer", **SMALL)
    assert [table.weight.shape for table in each.encoding.tables] == [(4, 32)] * 4
    assert not any(table.weight.any() for table in each.encoding.tables)


def test_dropout_acts_on_what_the_position_adds(images, small):
    model = small(position="encode", position_dropout=0.5)
    tokens = model.embed(images).tokens
    added = model.eval().encoding(tokens, 1, 2) - tokens
    dropped = model.train().encoding(tokens, 1, 2) - tokens
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * added[kept])


def test_old_checkpoints_know_nothing_of_these_options(small):
    options = {"position_dim": 5, "position_dropout": 0.1, "position_table": "per_layer"}
    assert not options.keys() & small(position="encode").config.keys()
    assert options.items() <= small(position="encode", **options).config.items()


@pytest.mark.parametrize("option", [{"position_dim": 0}, {"position_dropout": 1.0}, {"position_table": "each"}])
def test_position_options_out_of_range(small, option):
    with pytest.raises(ValueError, match="position encoding takes a position_dim of 1 or more, a position_dropout"):
        small(position="encode", **option)


def test_position_prediction_is_the_papers_formula(images, small):
    model = small(position="predict")
    weights = model.state_dict()
    order = [2, 0, 3]
    output = model(images, order)
    assert output.position_logits.shape == (3, 3, 4)
    tokens = model.embed(images).tokens
    for position, layer in enumerate(order):
        tokens = model.vit.blocks[layer](tokens)
        p = f"prediction.heads.{layer}"
        mean = tokens.sum(dim=1) / tokens.shape[1]
        mean = F.layer_norm(mean, mean.shape[-1:], weights[f"{p}.0.weight"], weights[f"{p}.0.bias"])
        expected = mean @ weights[f"{p}.1.weight"].T + weights[f"{p}.1.bias"]
        torch.testing.assert_close(output.position_logits[position], expected)
    torch.testing.assert_close(output.logits, by_hand(model.vit, images, order))
    assert model(images, "(0|1) 2").position_logits.shape == (2, 3, 4)
    assert small()(images).position_logits is None


def test_both_readings_of_the_distilled_heads(images, small):
    average, alone = small("deit_tiny_distilled_patch16_224"), small("deit_tiny_distilled_patch16_224", head="class")
    alone.load_state_dict(average.state_dict())
    tokens = average.vit.norm(by_hand_tokens(average, images))
    head, other = average.vit.head(tokens[:, 0]), average.vit.head_dist(tokens[:, 1])
    torch.testing.assert_close(average(images).logits, (head + other) / 2)
    torch.testing.assert_close(alone(images).logits, head)
    alone(images).logits.sum().backward()
    assert alone.vit.head_dist.weight.grad is None
    assert not alone.vit.head_dist.weight.requires_grad


def by_hand_tokens(model, images):
    tokens = model.embed(images).tokens
    for block in model.vit.blocks:
        tokens = block(tokens)
    return tokens


def test_only_the_layers_that_ran_get_a_gradient(images, small):
    model = small()
    model(images, "2 0").logits.sum().backward()
    trained = [any(p.grad is not None for p in block.parameters()) for block in model.vit.blocks]
    assert trained == [True, False, True, False]


@pytest.mark.parametrize(
    ("position", "order", "complaint"),
    [
        ("none", "0 4", "names layer 4, .* layers 0 to 3"),
        ("none", "0 x", "'x' is not a step"),
        ("encode", "0 1 2 3 0", "5 steps, .* only 4 positions"),
        ("predict", "0*5", "5 steps, .* only 4 positions"),
    ],
)
def test_orders_that_cannot_run_say_why(small, images, position, order, complaint):
    with pytest.raises(ValueError, match=complaint):
        small(position=position)(images, order)


def test_layers_that_do_not_split_say_so(small, images):
    with pytest.raises(ValueError, match="ResPostBlock.* don't split into sublayers"):
        small("vit_base_patch16_rpn_224")(images, "0a 0f")


def test_repeats_run_with_as_many_positions(images, small):
    assert small(position="predict", positions=6)(images, "0 1 2 3 1 2").position_logits.shape == (6, 3, 6)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "run.ckpt"])
def test_pretrained_paths(tmp_path, images, small, name):
    model, path = small(), tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(model.vit.state_dict(), path)
    elif path.suffix == ".ckpt":
        torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, path)
    else:
        torch.save(model.vit.state_dict(), path)
    order = permutation(4, seeded(0))
    again = layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=str(path), **SMALL).eval()
    assert torch.equal(again(images, order).logits, model(images, order).logits)
    assert "state_dict" not in again.vit.pretrained_cfg

    fewer = layershuffle.create_model("vit_tiny_patch16_224", 3, "encode", str(path), **SMALL)
    assert fewer.vit.head.weight.shape == (3, 32)
    assert torch.equal(fewer.vit.blocks[3].mlp.fc1.weight, model.vit.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize("suffix", ["pth", "ckpt"])
@pytest.mark.parametrize("name", FAMILIES[:3])  # with a class token, with two tokens, without a token's embedding
def test_position_embeddings_for_larger_images_are_resampled_as_timm_does(tmp_path, small, name, suffix):
    model, path, larger = small(name), tmp_path / f"weights.{suffix}", SMALL | {"img_size": 20}
    torch.save(model.vit.state_dict(), tmp_path / "weights.pth")
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "weights.ckpt")
    file = {"file": str(tmp_path / "weights.pth"), "num_classes": 5, "input_size": (1, 8, 8)}
    plain = timm.create_model(name, pretrained=True, num_classes=5, pretrained_cfg_overlay=file, **larger)
    assert plain.pos_embed.shape[1] == model.vit.pos_embed.shape[1] - 2**2 + 5**2
    ours = layershuffle.create_model(name, 5, pretrained=str(path), **larger)
    torch.testing.assert_close(ours.vit.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_pretrained_colour_weights_on_grey_images(tmp_path, small):
    colour = small(in_chans=3).vit
    torch.save(colour.state_dict(), tmp_path / "colour.pth")
    grey = layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=str(tmp_path / "colour.pth"), **SMALL)
    torch.testing.assert_close(
        grey.vit.patch_embed.proj.weight, colour.patch_embed.proj.weight.sum(1, keepdim=True), rtol=1e-5, atol=1e-6
    )


def test_weights_that_do_not_fit_say_so(tmp_path, small):
    path = tmp_path / "weights.pth"
    torch.save(small().vit.state_dict(), path)
    with pytest.raises(ValueError, match="weights of another backbone than vit_tiny_patch16_224"):
        layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=str(path), **SMALL | {"embed_dim": 48})
    for classes in (5, 7):
        with pytest.raises(ValueError, match="has only 4 layers: a model of depth 6 can't start from it"):
            layershuffle.create_model("vit_tiny_patch16_224", classes, pretrained=str(path), **SMALL | {"depth": 6})


@pytest.mark.parametrize("has_classifier", [True, False])
def test_weights_of_another_width_are_told_by_it(tmp_path, small, has_classifier):
    path = tmp_path / "weights.pth"
    weights = small().vit.state_dict()
    if not has_classifier:
        del weights["head.weight"], weights["head.bias"]
    torch.save(weights, path)
    with pytest.raises(ValueError, match="32 features, and those of the model 48"):
        layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=str(path), **SMALL | {"embed_dim": 48})


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("vit_nope", {}, "timm has no model named vit_nope"),
        ("vit_tiny_patch16_224.nope", {}, "timm has no model named"),
        ("resnet18", {}, "timm's ResNet can't run .* supported families are VisionTransformer and Eva"),
        ("vit_tiny_patch16_224", {"colour": "red"}, "can't be created with these arguments.*colour"),
        ("vit_tiny_patch16_224", {"pretrained": "nowhere.pth"}, "there is no file nowhere.pth"),
    ],
)
def test_models_that_cannot_be_made_say_why(name, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        layershuffle.create_model(name, 5, **arguments)


def test_pretrained_without_a_network_says_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(ValueError, match="could not be fetched .*give their path"):
        layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=True)


@pytest.mark.parametrize("name", ["vit_tiny_r_s16_p8_224", "vit_base_mci_224"])
def test_a_hybrid_lends_its_weights_to_a_model_with_other_classes(tmp_path, name):
    model = create_model(name, 7, depth=1)
    path = str(tmp_path / "hybrid.pth")
    torch.save(model.vit.state_dict(), path)
    other = create_model(name, 5, pretrained=path, depth=1)
    assert len(other.vit.head.weight) == 5
    assert torch.equal(other.vit.blocks[0].norm1.weight, model.vit.blocks[0].norm1.weight)


@pytest.mark.parametrize("name", ["samvit_base_patch16", "naflexvit_base_patch16_gap", "fastvit_mci0"])
def test_families_that_are_not_supported_are_named(name):
    with torch.device("meta"), pytest.raises(UserError, match=r"the supported families are"):
        create_model(name, 5)
