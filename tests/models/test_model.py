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


def tokens_after(model, step, tokens):
    """The tokens after the first step of a run, which is given as text such as ``1a`` or ``(0|2)``."""
    state, _ = model.run_step(State(tokens), Order(step)[0], position=0)
    return state.tokens


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
        expected = by_hand(model.vit, images, layers)
        torch.testing.assert_close(model(images, layers).logits, expected, rtol=0, atol=0)

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

    # The two halves of layer 1, written out from the parts of timm's block.
    block = model.vit.blocks[1]
    tokens = model.embed(images).tokens
    attention = tokens + block.ls1(block.attn(block.norm1(tokens)))
    feed_forward = tokens + block.ls2(block.mlp(block.norm2(tokens)))

    torch.testing.assert_close(tokens_after(model, "1a", tokens), attention)
    torch.testing.assert_close(tokens_after(model, "1f", tokens), feed_forward)


def test_a_parallel_step_averages_its_members(images, small):
    model = small()
    tokens = model.embed(images).tokens

    once = torch.stack([model.vit.blocks[layer](tokens) for layer in (0, 2, 3)]).mean(0)
    torch.testing.assert_close(tokens_after(model, "(0|2|3)", tokens), once)

    twice = torch.stack([model.vit.blocks[layer](once) for layer in (0, 2, 3)]).mean(0)
    expected = model.vit.forward_head(model.vit.norm(twice))
    torch.testing.assert_close(model(images, "(0|2|3)*2").logits, expected)


def test_a_summed_group_adds_what_each_member_changes(images, small):
    model = small()
    blocks = model.vit.blocks
    tokens = model.embed(images).tokens

    changes = [blocks[layer](tokens) - tokens for layer in (0, 2, 3)]
    torch.testing.assert_close(tokens_after(model, "(0+2+3)", tokens), tokens + sum(changes))

    rotary_embedding = None  # this family has none
    attention_change = model.halves["a"](blocks[1], tokens, rotary_embedding) - tokens
    feed_forward_change = model.halves["f"](blocks[2], tokens, rotary_embedding) - tokens
    expected = tokens + attention_change + feed_forward_change
    torch.testing.assert_close(tokens_after(model, "(1a+2f)", tokens), expected)


def test_a_step_with_a_lag_reads_an_older_state_and_changes_the_newest(images, small):
    model = small()
    blocks = model.vit.blocks
    start = model.embed(images).tokens
    first = blocks[0](start)
    second = first + blocks[1](start) - start

    third = second + blocks[3](first) - first
    expected = model.vit.forward_head(model.vit.norm(third))
    torch.testing.assert_close(model(images, "0 1<1 3<1").logits, expected)

    third_of_a_group = second + (blocks[2](first) + blocks[3](first)) / 2 - first
    expected = model.vit.forward_head(model.vit.norm(third_of_a_group))
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
    encoded = []
    if position == "encode":
        encode = model.encoding.forward

        def recording(tokens, layer, position):
            encoded.append(position)
            return encode(tokens, layer, position)

        model.encoding.forward = recording

    output = model(images, "3 (0+1) 2<1")

    if position == "encode":
        assert encoded == [0, 1, 1, 1]  # one position for each of the layers 3, 0, 1 and 2
    else:
        assert output.positions == [0, 1, 1]  # one for each of the three steps
        assert output.position_targets().tolist() == [0, 1, 1]
        assert len(output.position_logits) == 3


@pytest.mark.parametrize("options", [{}, {"position_table": "per_layer", "position_dim": 5}])
def test_position_encoding_is_the_papers_formula(images, small, options):
    model = small(position="encode", **options)
    weights = model.state_dict()
    order = [2, 0, 3]

    tokens = model.embed(images).tokens
    for position, layer in enumerate(order):
        table = f"encoding.tables.{layer}.weight" if options else "encoding.table.weight"
        vector = weights[table][position]
        hidden = torch.cat([tokens, vector.repeat(*tokens.shape[:2], 1)], dim=2)
        projection = f"encoding.projections.{layer}"
        norm_weight, norm_bias = weights[f"{projection}.0.weight"], weights[f"{projection}.0.bias"]
        linear_weight, linear_bias = weights[f"{projection}.1.weight"], weights[f"{projection}.1.bias"]
        hidden = F.layer_norm(hidden, hidden.shape[-1:], norm_weight, norm_bias)
        hidden = F.gelu(F.linear(hidden, linear_weight, linear_bias))
        tokens = model.vit.blocks[layer](hidden + tokens)
    expected = model.vit.forward_head(model.vit.norm(tokens))

    torch.testing.assert_close(model(images, order).logits, expected)


def test_a_new_position_table_is_zero_and_has_a_row_a_position():
    shared = layershuffle.create_model("vit_tiny_patch16_224", 5, position="encode", positions=9, **SMALL)
    table = shared.encoding.table.weight
    assert table.shape == (9, 32)  # 9 positions, 32 features
    assert not table.any()

    per_layer = layershuffle.create_model(
        "vit_tiny_patch16_224", 5, position="encode", position_table="per_layer", **SMALL
    )
    assert len(per_layer.encoding.tables) == 4
    for table in per_layer.encoding.tables:
        assert table.weight.shape == (4, 32)  # as many positions as the model has layers
        assert not table.weight.any()


def test_dropout_acts_on_what_the_position_adds(images, small):
    model = small(position="encode", position_dropout=0.5)
    tokens = model.embed(images).tokens

    added = model.eval().encoding(tokens, layer=1, position=2) - tokens
    added_in_training = model.train().encoding(tokens, layer=1, position=2) - tokens

    kept = added_in_training != 0
    assert 0.4 < kept.float().mean() < 0.6
    # Dropout divides what it keeps by the share that it keeps, which is a half.
    torch.testing.assert_close(added_in_training[kept], 2 * added[kept])


def test_old_checkpoints_know_nothing_of_these_options(small):
    """A configuration lists them only where they differ from their defaults, so old and new checkpoints are alike."""
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

    assert output.position_logits.shape == (3, 3, 4)  # steps, images, possible positions
    tokens = model.embed(images).tokens
    for position, layer in enumerate(order):
        tokens = model.vit.blocks[layer](tokens)
        mean = tokens.sum(dim=1) / tokens.shape[1]
        head = f"prediction.heads.{layer}"
        norm_weight, norm_bias = weights[f"{head}.0.weight"], weights[f"{head}.0.bias"]
        linear_weight, linear_bias = weights[f"{head}.1.weight"], weights[f"{head}.1.bias"]
        normed = F.layer_norm(mean, mean.shape[-1:], norm_weight, norm_bias)
        expected = normed @ linear_weight.T + linear_bias
        torch.testing.assert_close(output.position_logits[position], expected)
    torch.testing.assert_close(output.logits, by_hand(model.vit, images, order))

    assert model(images, "(0|1) 2").position_logits.shape == (2, 3, 4)
    assert small()(images).position_logits is None


def test_both_readings_of_the_distilled_heads(images, small):
    average = small("deit_tiny_distilled_patch16_224")
    alone = small("deit_tiny_distilled_patch16_224", head="class")
    alone.load_state_dict(average.state_dict())

    tokens = average.vit.norm(by_hand_tokens(average, images))
    class_logits = average.vit.head(tokens[:, 0])
    distillation_logits = average.vit.head_dist(tokens[:, 1])
    torch.testing.assert_close(average(images).logits, (class_logits + distillation_logits) / 2)
    torch.testing.assert_close(alone(images).logits, class_logits)

    alone(images).logits.sum().backward()
    assert alone.vit.head_dist.weight.grad is None
    assert not alone.vit.head_dist.weight.requires_grad


def by_hand_tokens(model, images):
    """The tokens after all layers in sequence, before the last norm."""
    tokens = model.embed(images).tokens
    for block in model.vit.blocks:
        tokens = block(tokens)
    return tokens


def test_only_the_layers_that_ran_get_a_gradient(images, small):
    model = small()
    model(images, "2 0").logits.sum().backward()
    for layer, block in enumerate(model.vit.blocks):
        has_gradient = any(parameter.grad is not None for parameter in block.parameters())
        assert has_gradient == (layer in (0, 2))


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
    model = small(position="predict", positions=6)
    output = model(images, "0 1 2 3 1 2")
    assert output.position_logits.shape == (6, 3, 6)  # steps, images, possible positions


def save_as_lightning_does(model, path):
    """Save a checkpoint in which the model is a part of the trained module, named ``model``."""
    state_dict = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state_dict}, path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "run.ckpt"])
def test_pretrained_paths(tmp_path, images, small, name):
    model = small()
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(model.vit.state_dict(), path)
    elif path.suffix == ".ckpt":
        save_as_lightning_does(model, path)
    else:
        torch.save(model.vit.state_dict(), path)

    again = layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=str(path), **SMALL).eval()
    order = permutation(4, seeded(0))
    assert torch.equal(again(images, order).logits, model(images, order).logits)
    assert "state_dict" not in again.vit.pretrained_cfg

    fewer = layershuffle.create_model(
        "vit_tiny_patch16_224", num_classes=3, position="encode", pretrained=str(path), **SMALL
    )
    assert fewer.vit.head.weight.shape == (3, 32)  # 3 classes, 32 features
    assert torch.equal(fewer.vit.blocks[3].mlp.fc1.weight, model.vit.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize("suffix", ["pth", "ckpt"])
@pytest.mark.parametrize("name", FAMILIES[:3])  # with a class token, with two tokens, without a token's embedding
def test_position_embeddings_for_larger_images_are_resampled_as_timm_does(tmp_path, small, name, suffix):
    model = small(name)
    torch.save(model.vit.state_dict(), tmp_path / "weights.pth")
    save_as_lightning_does(model, tmp_path / "weights.ckpt")
    larger = SMALL | {"img_size": 20}

    overlay = {"file": str(tmp_path / "weights.pth"), "num_classes": 5, "input_size": (1, 8, 8)}
    plain = timm.create_model(name, pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay, **larger)
    # With patches of 4 pixels, images of 8 have 2 x 2 of them and those of 20 have 5 x 5.
    assert plain.pos_embed.shape[1] == model.vit.pos_embed.shape[1] - 2**2 + 5**2

    ours = layershuffle.create_model(name, 5, pretrained=str(tmp_path / f"weights.{suffix}"), **larger)
    torch.testing.assert_close(ours.vit.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_pretrained_colour_weights_on_grey_images(tmp_path, small):
    path = tmp_path / "colour.pth"
    colour = small(in_chans=3).vit
    torch.save(colour.state_dict(), path)

    grey = layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=str(path), **SMALL).vit

    # A grey image has the same value in all three channels, so their weights add up.
    expected = colour.patch_embed.proj.weight.sum(1, keepdim=True)
    torch.testing.assert_close(grey.patch_embed.proj.weight, expected, rtol=1e-5, atol=1e-6)


def test_weights_that_do_not_fit_say_so(tmp_path, small):
    path = tmp_path / "weights.pth"
    torch.save(small().vit.state_dict(), path)

    wider = SMALL | {"embed_dim": 48}
    with pytest.raises(ValueError, match="weights of another backbone than vit_tiny_patch16_224"):
        layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=str(path), **wider)

    deeper = SMALL | {"depth": 6}
    for classes in (5, 7):  # the file's classifier has 5
        with pytest.raises(ValueError, match="has only 4 layers: a model of depth 6 can't start from it"):
            layershuffle.create_model("vit_tiny_patch16_224", classes, pretrained=str(path), **deeper)


@pytest.mark.parametrize("has_classifier", [True, False])
def test_weights_of_another_width_are_told_by_it(tmp_path, small, has_classifier):
    path = tmp_path / "weights.pth"
    weights = small().vit.state_dict()
    if not has_classifier:
        del weights["head.weight"], weights["head.bias"]
    torch.save(weights, path)

    wider = SMALL | {"embed_dim": 48}
    with pytest.raises(ValueError, match="32 features, and those of the model 48"):
        layershuffle.create_model("vit_tiny_patch16_224", 5, pretrained=str(path), **wider)


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
    path = str(tmp_path / "hybrid.pth")
    model = create_model(name, num_classes=7, depth=1)
    torch.save(model.vit.state_dict(), path)

    other = create_model(name, num_classes=5, pretrained=path, depth=1)

    assert len(other.vit.head.weight) == 5
    assert torch.equal(other.vit.blocks[0].norm1.weight, model.vit.blocks[0].norm1.weight)


@pytest.mark.parametrize("name", ["samvit_base_patch16", "naflexvit_base_patch16_gap", "fastvit_mci0"])
def test_families_that_are_not_supported_are_named(name):
    with torch.device("meta"), pytest.raises(UserError, match=r"the supported families are"):
        create_model(name, 5)
