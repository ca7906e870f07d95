"""The systems around LayerShuffle against their definitions written out by hand for few layers."""

import lightning.pytorch as pl
import pytest
import timm
import torch
from helpers import by_variant
from lightning.pytorch.callbacks import ModelCheckpoint

import layershuffle
from layershuffle.data import Digits
from layershuffle.orders.named import NAMED, middle, parse_order, random_middle, sequential
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import trials
from layershuffle.orders.sampler import OrderSampler
from layershuffle.orders.samplers import LayerDrop, Shuffle
from layershuffle.training.module import FineTuner

SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "num_heads": 2}


# --- Named orders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "name", "expected"),
    [
        # Painters: with six layers and n = 1 the first two and the last one stay, the middle is 2 3 4.
        (6, "skip(1)", "0 1 5"),
        (6, "middle-repeat(1)", "0 1 3 3 3 5"),
        (6, "reverse(1)", "0 1 4 3 2 5"),
        (6, "parallel(1)", "0 1 (2|3|4) 5"),
        (6, "looped-parallel(1,3)", "0 1 (2|3|4) (2|3|4) (2|3|4) 5"),
        (6, "skip(0)", "0"),
        (6, "reverse(0)", "0 5 4 3 2 1"),
        (6, "reverse(2)", "0 1 2 3 4 5"),
        (5, "reverse(1)", "0 1 3 2 4"),
        (5, "middle-repeat(0)", "0 2 2 2 2"),
        (4, "swap(0,2)", "2 1 0 3"),
        (4, "ablate(2)", "0 1 3"),
        # Parameter sharing: the three patterns of arXiv 2104.06022, figure 1, for M = 3 and N = 6.
        (3, "sequence(6)", "0 0 1 1 2 2"),
        (3, "cycle(6)", "0 1 2 0 1 2"),
        (3, "cycle-rev(6)", "0 1 2 2 1 0"),
        (3, "cycle-rev(9)", "0 1 2 0 1 2 2 1 0"),
        (3, "cycle-rev(7)", "0 1 2 0 2 1 0"),
        (3, "cycle(4)", "0 1 2 0"),
        (3, "cycle-rev(3)", "0 1 2"),
        (3, "cycle-rev(4)", "0 1 2 2"),
        (3, "cycle-rev(5)", "0 1 2 2 1"),
        # Sandwiches: attention, the two in turn, feed-forward.
        (3, "sublayers", "0a 0f 1a 1f 2a 2f"),
        (3, "sandwich(0)", "0a 0f 1a 1f 2a 2f"),
        (3, "sandwich(1)", "0a 1a 0f 2a 1f 2f"),
        (3, "sandwich(2)", "0a 1a 2a 0f 1f 2f"),
        (3, "sandwich(3)", "0a 1a 2a 0f 1f 2f"),
        (4, "sequential", "0 1 2 3"),
        (4, "backwards", "3 2 1 0"),
        (4, "first(2)", "0 1"),
        (4, "evenly-spaced( 2 )", "0 2"),
        (4, "3 1 (0|2)", "3 1 (0|2)"),
    ],
)  # fmt: skip
def test_orders_by_name(depth, name, expected):
    assert parse_order(name, sequential(depth)) == Order(expected)


@pytest.mark.parametrize("depth", range(1, 6))
@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_cycle_rev_is_what_its_authors_code_builds(depth, times):
    # Transcribed from github.com/takase/share_layer_params; its number of layers follows from that of the visits.
    for visits in range(depth * (times - 1) + 1, depth * times + 1):
        if visits < depth:
            continue
        layers = list(range(depth))
        # Visits are in sequence, again and again, but the last ones, as many as there are layers, are backwards.
        expected = layers + [layers[i % depth] for i in range(visits - depth * 2)]
        remaining = visits - len(expected)
        expected += [layers[-((i % depth) + 1)] for i in range(remaining)]
        assert parse_order(f"cycle-rev({visits})", sequential(depth)) == Order(expected)


@pytest.mark.parametrize("depth", range(2, 14))
def test_the_middle_is_what_the_ends_leave(depth):
    too_large = depth // 2
    for n in range(too_large):
        first_layers = set(range(n + 1))
        last_layers = set(range(depth - n, depth))
        middle_layers = set(range(depth)) - first_layers - last_layers
        assert set(middle(n, depth)) == middle_layers
        assert depth // 2 in middle_layers

    with pytest.raises(ValueError, match=f"n from 0 to {too_large - 1}"):
        middle(too_large, depth)


def test_a_random_middle_keeps_the_ends():
    orders = [random_middle(2, 9, seeded(number)) for number in range(30)]
    for order in orders:
        assert order[:3] == Order("0 1 2")
        assert order[7:] == Order("7 8")
        assert sorted(order[3:7]) == list(Order("3 4 5 6"))
    assert len(set(orders)) > 10


@pytest.mark.parametrize(
    ("depth", "name", "complaint"),
    [
        (12, "skip(6)", "0 to 5"),
        (12, "first(0)", r"^first\(0\): 0 layers can't be kept of 12"),
        (1, "skip(0)", "n = 0"),
        (12, "looped-parallel(2,0)", "0 times"),
        (3, "sequence(7)", "7 .* 3 layers"),
        (3, "cycle(2)", "2 visits .* 3 layers"),
        (3, "cycle(0)", "3 or more"),
        (3, "sandwich(4)", "0 to 3"),
        (3, "swap(1,3)", "layer 3: .* 0 to 2"),
        (3, "ablate(3)", "layer 3"),
        (3, "shuffled", "shuffled: .* sequential, backwards"),
        (3, "cycle", r"cycle\(visits\)"),
        (3, "swap(1)", r"swap\(one,other\)"),
        (3, "cycle(99999999)", "at most 100000 steps"),
        (3, "cycle(x)", "not a step"),
    ],
)
def test_orders_that_cannot_be_say_why(depth, name, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_order(name, sequential(depth))


def test_orders_over_the_steps_of_another():
    base_order = Order("0 1 2 2 1 0")
    assert Order("5 0 3").over(base_order) == Order("0 0 2")
    assert Order("(0|1) 2f").over(base_order) == Order("(0|1) 2f")
    assert parse_order("reverse(1)", base_order) == Order("0 1 1 2 2 0")
    assert Order("2 0").over(Order("(0|1) 1 2a")) == Order("2a (0|1)")
    assert Order("0a").over(Order("(0|1)")) == Order("(0a|1a)")

    # A mean of two means over two layers each is the mean over the four, but that of unequal groups is not.
    assert Order("(0|1)").over(Order("(0|1) (2|3)")) == Order("(0|1|2|3)")
    with pytest.raises(ValueError, match=r"\(0\|1\) .* \(\(0\|1\) and 2\)"):
        Order("(0|1)").over(Order("(0|1) 2"))

    for order, complaint in (("6", "layer 6"), ("(0|5)", "0 twice")):
        with pytest.raises(ValueError, match=complaint):
            Order(order).over(base_order)
    with pytest.raises(ValueError, match="0a"):
        Order("0f").over(parse_order("sublayers", sequential(2)))


def test_every_named_order_is_one_of_the_model(small, images):
    model = small(depth=4)
    # A value for each argument that a named order can have, by the argument's name.
    values = {"n": 1, "k": 2, "groups": 2, "visits": 8, "times": 2, "one": 0, "other": 3, "layer": 2}
    for name, named_order in NAMED.items():
        assert named_order.summary
        arguments = ",".join(str(values[argument]) for argument in named_order.numbers)
        order = parse_order(f"{name}({arguments})", model.order)
        assert torch.isfinite(model(images, order).logits).all()


# --- Protocols ----------------------------------------------------------------------------------------------


def test_painters_sweep_every_n():
    orders = by_variant("painters", 6, random_orders=4, loops=(2, 3))
    strategies = {"skip", "middle-repeat", "reverse", "parallel", "looped-parallel 2x", "looped-parallel 3x", "random"}
    # Of six layers, the first and n at each end stay: n is 0, 1 or 2, and so the middle has 5, 3 or 1.
    assert orders.keys() == {(affected, strategy) for affected in (1, 3, 5) for strategy in strategies}
    assert orders[3, "skip"] == [Order("0 1 5")]
    assert orders[5, "reverse"] == [Order("0 5 4 3 2 1")]
    assert orders[3, "looped-parallel 2x"] == [Order("0 1 (2|3|4)*2 5")]
    assert all(len(orders[affected, "random"]) == 4 for affected in (1, 3, 5))
    assert by_variant("painters", 6, ends=(1,)).keys() == by_variant("painters", 6, ends=(1, 1)).keys()
    with pytest.raises(ValueError, match="n = 3, 6 layers"):
        trials(["painters"], 6, ends=(1, 3))


def test_swaps_and_ablations_count_up():
    assert by_variant("ablations", 3) == {(0,): [Order("1 2")], (1,): [Order("0 2")], (2,): [Order("0 1")]}
    assert by_variant("swaps", 3) == {(0,): [Order("1 0 2")], (1,): [Order("0 2 1")]}

    matrix = by_variant("swap-matrix", 4)
    assert len(matrix) == 4 * 5 / 2  # the pairs of layers, with those of a layer and itself
    assert matrix[1, 3] == [Order("0 3 2 1")]
    assert matrix[2, 2] == [sequential(4)]


def test_sublayer_protocol():
    orders = by_variant("sublayers", 3, random_orders=5)
    assert len(orders) == 5  # four sandwiches, and random ones
    assert orders["sandwich", 1] == [Order("0a 1a 0f 2a 1f 2f")]
    random_orders = orders["random",]
    assert len(set(random_orders)) == 5
    for order in random_orders:
        assert sorted(order) == list(Order("0a 0f 1a 1f 2a 2f"))


def test_failing_protocol():
    depth = 40
    draws = 50
    alive = {}  # how many layers are left in each draw, by the share of layers that fail
    for trial in trials(["failing"], depth, random_orders=draws, seed=3, dead=(0, 20, 50)):
        layers = [step.units[0].layer for step in trial.order]
        assert len(set(layers)) == len(layers)
        assert layers != sorted(layers)
        alive.setdefault(trial.variant["dead"], []).append(len(layers))

    assert [len(counts) for counts in alive.values()] == [draws] * 3
    assert set(alive["0%"]) == {depth}
    layers_drawn = depth * draws
    for percentage in (20, 50):
        share = percentage / 100
        share_alive = sum(alive[f"{percentage}%"]) / layers_drawn
        standard_deviation = (share * (1 - share) / layers_drawn) ** 0.5
        assert abs(share_alive - (1 - share)) < 6 * standard_deviation

    with pytest.raises(ValueError, match="not 100%"):
        trials(["failing"], 4, dead=(100,))


def test_protocols_speak_of_the_steps_of_the_base_order():
    base_order = parse_order("cycle-rev(6)", sequential(3))
    assert base_order == Order("0 1 2 2 1 0")

    (in_sequence,) = trials(["sequential"], base_order)
    assert in_sequence.order == base_order
    first_four, *_ = trials(["pruned"], base_order, random_orders=1, depths=(4,))
    assert first_four.order == Order("0 1 2 2")
    _per_batch, *fixed = trials(["arbitrary"], base_order, random_orders=3)
    for trial in fixed:
        assert sorted(trial.order) == sorted(base_order)
    without_fourth = trials(["ablations"], base_order)[3]
    assert without_fourth.order == Order("0 1 2 1 0")

    # Given orders and sublayers are those of the layers.
    (given,) = trials(["given"], base_order, orders=(Order("2 1"),))
    assert given.order == Order("2 1")
    sublayers, *_ = trials(["sublayers"], base_order, random_orders=1)
    assert sublayers.order == Order("0a 0f 1a 1f 2a 2f")


# --- Models whose base order repeats layers or halves them ---------------------------------------------------


def test_shared_layers_run_as_often_as_they_are_visited(small, images):
    model = small(depth=3, order="cycle-rev(6)", position="predict")
    ran = []
    for layer, block in enumerate(model.vit.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    output = model(images)

    assert ran == [0, 1, 2, 2, 1, 0]
    assert len(model.vit.blocks) == 3

    # There are as many positions as visits.
    assert output.position_logits.shape == (6, 3, 6)  # steps, images, possible positions
    encoding = small(depth=3, order="cycle(6)", position="encode").encoding
    assert encoding.table.weight.shape == (6, 32)  # positions, features
    with pytest.raises(ValueError, match="6 steps.* 4 positions"):
        small(depth=3, order="cycle(6)", position="encode", positions=4)


def test_sublayers_in_sequence_are_the_ordinary_model(small, images):
    torch.testing.assert_close(small(order="sublayers")(images).logits, small()(images).logits)


def test_a_shared_model_starts_from_the_first_layers_of_a_pretrained_one(small, tmp_path, monkeypatch):
    deep = small(depth=4)
    path = str(tmp_path / "deep.pth")
    torch.save(deep.vit.state_dict(), path)

    def check_layers(model):
        assert model.depth == 3
        for key, value in model.vit.state_dict().items():
            assert torch.equal(value, deep.vit.state_dict()[key]), key

    name = "vit_tiny_patch16_224"
    arguments = SMALL | {"depth": 3, "order": "cycle(6)"}
    check_layers(layershuffle.create_model(name, 5, pretrained=path, **arguments))

    # timm's own weights may have another number of layers than is asked for.
    create = timm.create_model

    def fetch(name, pretrained=False, **kwargs):
        if not pretrained or "pretrained_cfg_overlay" in kwargs:
            return create(name, pretrained=pretrained, **kwargs)
        assert "depth" not in kwargs
        return deep.vit

    monkeypatch.setattr(timm, "create_model", fetch)
    monkeypatch.setattr(layershuffle.models.timm_models, "_cached", lambda name: {})
    check_layers(layershuffle.create_model(name, 5, pretrained=True, **arguments))
    with pytest.raises(ValueError, match="4 layers: .* depth 7"):
        layershuffle.create_model(name, 5, pretrained=True, **SMALL, depth=7)


def tuner(**arguments):
    """A module that trains a small model of three layers, with other arguments besides."""
    return FineTuner("vit_tiny_patch16_224", 10, timm_args=dict(SMALL), depth=3, **arguments)


def test_samplers_sample_from_the_steps_of_the_base_order():
    shared = tuner(order="cycle(6)", sampler=Shuffle())
    shuffled = [shared.orders.sample(step) for step in range(5)]
    assert len(set(shuffled)) > 1
    for order in shuffled:
        assert sorted(order) == list(Order("0 0 1 1 2 2"))

    sublayers = tuner(order="sublayers", sampler=Shuffle())
    for step in range(5):
        assert sorted(sublayers.orders.sample(step)) == list(Order("0a 0f 1a 1f 2a 2f"))

    dropping = tuner(order="cycle(6)", sampler=LayerDrop(0.5))
    assert len(dropping.orders.sample(0)) < 6

    assert shared.method == "layershuffle on cycle(6)"
    assert tuner(sampler=Shuffle()).method == "layershuffle"


class Progress(OrderSampler):
    """Runs the layers from the one on that the progress points at."""

    method = "progress"

    def __init__(self):
        self.seen = []

    def sample(self, depth, rng, progress):
        self.seen.append(progress)
        return Order(range(int(depth * progress), depth))


def progress_of_training(folder, ckpt_path=None, max_epochs=2, **options):
    """Train in batches of 64 on 320 images, 5 steps per epoch, and return the progress that the sampler saw."""
    sampler = Progress()
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)],
        **options,
    )
    data = Digits(train_images=356, val_fraction=0.1, batch_size=64)
    trainer.fit(tuner(sampler=sampler), datamodule=data, ckpt_path=ckpt_path, weights_only=bool(ckpt_path))
    tried_before_training = 2
    planned_with = 16
    return sampler.seen[tried_before_training + planned_with :]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [step / 10 for step in range(10)]),
        ({"max_steps": 4}, [0, 1 / 4, 2 / 4, 3 / 4]),
        ({"max_epochs": -1, "max_steps": 3}, [0, 1 / 3, 2 / 3]),
        ({"max_epochs": -1, "max_time": "00:00:00:00"}, None),
    ],
    ids=["epochs", "steps before epochs", "steps", "no plan"],
)
def test_samplers_see_the_progress_of_training(tmp_path, options, expected):
    seen = progress_of_training(tmp_path, **options)
    if expected:
        assert seen == expected
    else:
        assert set(seen) <= {0.0}


@pytest.mark.heavy
def test_a_resumed_run_sees_the_same_progress(tmp_path):
    whole = progress_of_training(tmp_path)
    resumed = progress_of_training(tmp_path / "again", ckpt_path=tmp_path / "step=7.ckpt")
    assert resumed == whole[7:]


def test_a_sampler_without_a_name_says_so():
    class Nameless(OrderSampler):
        def sample(self, depth, rng):
            return sequential(depth)

    with pytest.raises(ValueError, match="Nameless .* method"):
        tuner(sampler=Nameless())
