"""The systems around LayerShuffle against their definitions written out by hand for few layers."""

import lightning.pytorch as pl
import pytest
import torch
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
        built = list(range(depth))
        for i in range(visits - depth * 2):
            built.append(built[i % depth])
        base = built[:depth]
        built += [base[-((i % depth) + 1)] for i in range(visits - len(built))]
        assert parse_order(f"cycle-rev({visits})", sequential(depth)) == Order(built)


@pytest.mark.parametrize("depth", range(2, 14))
def test_the_middle_is_what_the_ends_leave(depth):
    ns = range(depth // 2)
    for n in ns:
        ends = set(range(n + 1)) | set(range(depth - n, depth))
        assert set(middle(n, depth)) == set(range(depth)) - ends != set()
        assert depth // 2 in middle(n, depth)
    with pytest.raises(ValueError, match=f"n from 0 to {len(ns) - 1}"):
        middle(len(ns), depth)


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
    model, numbers = (
        small(depth=4),
        {"n": 1, "k": 2, "groups": 2, "visits": 8, "times": 2, "one": 0, "other": 3, "layer": 2},
    )
    for name, named_order in NAMED.items():
        arguments = ",".join(str(numbers[word]) for word in named_order.numbers)
        assert named_order.summary
        order = parse_order(f"{name}({arguments})", model.order)
        assert torch.isfinite(model(images, order).logits).all()


# --- Protocols ----------------------------------------------------------------------------------------------


def by_variant(protocol, depth, **settings):
    orders = {}
    for trial in trials([protocol], depth, **settings):
        orders.setdefault(tuple(trial.variant.values()), []).append(trial.order)
    return orders


def test_painters_sweep_every_n():
    orders = by_variant("painters", 6, random_orders=4, loops=(2, 3))
    strategies = {"skip", "middle-repeat", "reverse", "parallel", "looped-parallel 2x", "looped-parallel 3x", "random"}
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
    assert len(matrix) == 4 * 5 / 2
    assert matrix[1, 3] == [Order("0 3 2 1")]
    assert matrix[2, 2] == [sequential(4)]


def test_sublayer_protocol():
    orders = by_variant("sublayers", 3, random_orders=5)
    assert orders["sandwich", 1] == [Order("0a 1a 0f 2a 1f 2f")]
    assert len(orders) == 5
    assert all(sorted(order) == list(Order("0a 0f 1a 1f 2a 2f")) for order in orders["random",])
    assert len(set(orders["random",])) == 5


def test_failing_protocol():
    to_score = trials(["failing"], 40, random_orders=50, seed=3, dead=(0, 20, 50))
    alive = {}
    for trial in to_score:
        layers = [step.units[0].layer for step in trial.order]
        assert len(set(layers)) == len(layers)
        assert layers != sorted(layers)
        alive.setdefault(trial.variant["dead"], []).append(len(layers))
    assert [len(counts) for counts in alive.values()] == [50, 50, 50]
    assert set(alive["0%"]) == {40}
    for dead in (20, 50):
        share = dead / 100
        assert abs(sum(alive[f"{dead}%"]) / 2000 - (1 - share)) < 6 * (share * (1 - share) / 2000) ** 0.5
    with pytest.raises(ValueError, match="not 100%"):
        trials(["failing"], 4, dead=(100,))


def test_protocols_speak_of_the_steps_of_the_base_order():
    base_order = parse_order("cycle-rev(6)", sequential(3))
    assert [t.order for t in trials(["sequential"], base_order)] == [base_order]
    first, *_ = trials(["pruned"], base_order, random_orders=1, depths=(4,))
    assert first.order == Order("0 1 2 2")
    for trial in trials(["arbitrary"], base_order, random_orders=3)[1:]:
        assert sorted(trial.order) == sorted(base_order)
    assert [t.order for t in trials(["ablations"], base_order)][3] == Order("0 1 2 1 0")
    (trial,) = trials(["given"], base_order, orders=(Order("2 1"),))
    assert trial.order == Order("2 1")
    assert trials(["sublayers"], base_order, random_orders=1)[0].order == Order("0a 0f 1a 1f 2a 2f")


# --- Models whose base order repeats layers or halves them ---------------------------------------------------


def test_shared_layers_run_as_often_as_they_are_visited(small, images):
    model = small(depth=3, order="cycle-rev(6)", position="predict")
    ran = []
    for layer, block in enumerate(model.vit.blocks):
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    output = model(images)
    assert ran == [0, 1, 2, 2, 1, 0]
    assert len(model.vit.blocks) == 3
    # Positions count visits.
    assert output.position_logits.shape == (6, 3, 6)
    assert small(depth=3, order="cycle(6)", position="encode").encoding.table.weight.shape == (6, 32)
    with pytest.raises(ValueError, match="6 steps.* 4 positions"):
        small(depth=3, order="cycle(6)", position="encode", positions=4)


def test_sublayers_in_sequence_are_the_ordinary_model(small, images):
    torch.testing.assert_close(small(order="sublayers")(images).logits, small()(images).logits)


def test_a_shared_model_starts_from_the_first_layers_of_a_pretrained_one(small, tmp_path, monkeypatch):
    deep = small(depth=4)
    torch.save(deep.vit.state_dict(), tmp_path / "deep.pth")

    def check(model):
        assert model.depth == 3
        for key, value in model.vit.state_dict().items():
            assert torch.equal(value, deep.vit.state_dict()[key]), key

    name = "vit_tiny_patch16_224"
    arguments = {"order": "cycle(6)", **SMALL, "depth": 3}
    check(layershuffle.create_model(name, 5, pretrained=str(tmp_path / "deep.pth"), **arguments))
    # timm's own weights, which have another number of layers than is asked for.
    import timm

    create = timm.create_model

    def fetched(name, pretrained=False, **kwargs):
        if not pretrained or "pretrained_cfg_overlay" in kwargs:
            return create(name, pretrained=pretrained, **kwargs)
        assert "depth" not in kwargs
        return deep.vit

    monkeypatch.setattr(timm, "create_model", fetched)
    monkeypatch.setattr(layershuffle.models.timm_models, "_cached", lambda name: {})
    check(layershuffle.create_model(name, 5, pretrained=True, **arguments))
    with pytest.raises(ValueError, match="4 layers: .* depth 7"):
        layershuffle.create_model(name, 5, pretrained=True, **SMALL, depth=7)


def tuner(**arguments):
    return FineTuner("vit_tiny_patch16_224", 10, timm_args=dict(SMALL), **{"depth": 3, **arguments})


def test_samplers_sample_from_the_steps_of_the_base_order():
    shuffled = [tuner(order="cycle(6)", sampler=Shuffle()).orders.sample(step) for step in range(5)]
    assert all(sorted(order) == list(Order("0 0 1 1 2 2")) for order in shuffled)
    assert len(set(shuffled)) > 1
    halves = [tuner(order="sublayers", sampler=Shuffle()).orders.sample(step) for step in range(5)]
    assert all(sorted(order) == list(Order("0a 0f 1a 1f 2a 2f")) for order in halves)
    dropped = tuner(order="cycle(6)", sampler=LayerDrop(0.5)).orders.sample(0)
    assert len(dropped) < 6
    assert tuner(order="cycle(6)", sampler=Shuffle()).method == "layershuffle on cycle(6)"
    assert tuner(sampler=Shuffle()).method == "layershuffle"


class Progress(OrderSampler):
    """Runs the layers from the one on that the progress points at."""

    method = "progress"

    def __init__(self):
        self.seen = []

    def sample(self, depth, rng, progress):
        self.seen.append(progress)
        return Order(range(int(depth * progress), depth))


def run(folder, ckpt_path=None, **options):
    """Train in batches of 64 on 320 images, 5 steps per epoch, and return the progress that the sampler saw."""
    module = tuner(sampler=(sampler := Progress()))
    saved = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = pl.Trainer(
        **{"max_epochs": 2, "limit_val_batches": 0} | options,
        **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
        callbacks=[saved],
    )
    data = Digits(train_images=356, val_fraction=0.1, batch_size=64)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=bool(ckpt_path))
    return sampler.seen[2 + 16 :]  # without the orders that are tried and planned with before the training


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
    seen = run(tmp_path, **options)
    assert seen == expected if expected else set(seen) <= {0.0}


@pytest.mark.heavy
def test_a_resumed_run_sees_the_same_progress(tmp_path):
    whole = run(tmp_path)
    resumed = run(tmp_path / "again", ckpt_path=tmp_path / "step=7.ckpt")
    assert resumed == whole[7:]


def test_a_sampler_without_a_name_says_so():
    class Nameless(OrderSampler):
        def sample(self, depth, rng):
            return sequential(depth)

    with pytest.raises(ValueError, match="Nameless .* method"):
        tuner(sampler=Nameless())
