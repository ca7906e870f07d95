"""Compiled layers: the same results, and no order adds a graph, whatever it skips, repeats or splits."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from layershuffle import Order, UserError
from layershuffle.evaluation.scoring import run_orders
from layershuffle.models.compilers import check_compilers
from layershuffle.orders.named import parse_order, permutation, random_subset, sequential
from layershuffle.orders.order import Unit, seeded
from layershuffle.orders.samplers import LayerDrop
from layershuffle.training.objectives.classification import position_cross_entropy

pytestmark = pytest.mark.heavy

DEPTH = 4


class Graphs:
    """A backend that counts the graphs it is given and runs them as they are."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, example_inputs):
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh():
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


def compiled(model, **options):
    graphs, twin = Graphs(), copy.deepcopy(model)
    twin.compile(**{"backend": graphs} | options)
    return twin, graphs


def several(count):
    """``count`` orders of every kind, the first eight of them one of each."""
    kinds = [
        lambda rng: permutation(DEPTH, rng),
        lambda rng: sequential(DEPTH),
        lambda rng: random_subset(1 + int(rng.random() * DEPTH), DEPTH, rng).shuffled(rng),
        lambda rng: LayerDrop(0.5).sample(DEPTH, rng),
        lambda rng: parse_order("sublayers", sequential(DEPTH)).shuffled(rng),
        lambda rng: Order([(Unit(0), Unit(2)), *sequential(DEPTH)]).shuffled(rng),
        lambda rng: Order(["(0+2)", *sequential(DEPTH)]).shuffled(rng),
        lambda rng: Order("1 0<1 2 3<2"),
    ]
    return [kinds[at % len(kinds)](seeded("compile", at)) for at in range(count)]


def loss_of(model, images, order):
    output = model(images, order)
    loss = F.cross_entropy(output.logits.float(), torch.arange(len(images)))
    return loss if output.position_logits is None else loss + position_cross_entropy(output).sum()


def gradients(model, images, order):
    model.train().zero_grad()
    loss = loss_of(model, images, order)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("count", [24, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("position", "pool"),
    [
        ("none", {}),
        pytest.param("encode", {}, marks=pytest.mark.slow),
        ("predict", {"class_token": False, "global_pool": "avg"}),
    ],
    ids=["none", "encode", "predict, averaged"],
)
def test_many_orders_share_the_graphs_of_the_first_few(small, images, position, pool, count):
    model, graphs = compiled(small(position=position, positions=2 * DEPTH, **pool))
    orders, added = several(count), []
    for order in orders:
        before = graphs.count
        loss_of(model.train(), images, order).backward()
        with torch.no_grad():
            model.eval()(images, order)
        with torch.inference_mode():
            model(images, order)
        added.append(graphs.count - before)
    # A layer, its two halves and the projection or head, each in training and in two kinds of evaluation.
    assert graphs.count == sum(added[:8]) == 3 * (3 if position == "none" else 4)


@pytest.mark.parametrize(
    ("position", "autocast"),
    [
        ("encode", True),
        ("predict", False),
        pytest.param("none", False, marks=pytest.mark.slow),
        pytest.param("none", True, marks=pytest.mark.slow),
        pytest.param("encode", False, marks=pytest.mark.slow),
        pytest.param("predict", True, marks=pytest.mark.slow),
    ],
)
def test_compiled_and_uncompiled_results_are_equal(small, images, position, autocast):
    plain = small(position=position, positions=2 * DEPTH)
    model, _ = compiled(plain, backend="aot_eager")
    assert model.state_dict().keys() == plain.state_dict().keys()
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    # A bias's gradient, summed in another sequence, may round to the next bf16 number.
    rounding = {"rtol": 2**-7, "atol": 1e-5} if autocast else {}
    for order in several(8):
        with context:
            (loss, found), (expected_loss, expected) = (gradients(m, images, order) for m in (model, plain))
            with torch.inference_mode():
                torch.testing.assert_close(model.eval()(images, order), plain.eval()(images, order))
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(found, expected, **rounding)


def test_autocast_has_its_own_graphs_and_orders_share_them(small, images):
    model, graphs = compiled(small(position="predict", positions=2 * DEPTH))
    counts = []
    with torch.autocast("cpu", torch.bfloat16):
        for order in several(16):
            loss_of(model.train(), images, order).backward()
            with torch.inference_mode():
                model.eval()(images, order)
            counts.append(graphs.count)
    assert counts[4:] == [8] * 12


def test_layers_with_stochastic_depth_have_a_graph_each_and_orders_share_them(small, images):
    model, graphs = compiled(small(depth=9, drop_path_rate=0.2).train())
    for at in range(10):
        loss_of(model, images, permutation(9, seeded(at))).backward()
    assert graphs.count == 9  # torch gives up at 8 unless told otherwise


def test_the_prefix_tree_shares_the_graphs(small, images):
    model, graphs = compiled(small())
    with torch.inference_mode():
        for _, output in run_orders(model, images, [Order(f"{a} {b} (0|1)*2") for a in range(4) for b in range(4)]):
            assert output.logits.isfinite().all()
    assert graphs.count == 1


def test_images_that_choose_run_in_groups_of_any_size_with_few_graphs(small):
    model, graphs = compiled(small(choices=["0 1 2 3", "3 2 1 0", "1 0"]))
    for at in range(12):
        with torch.inference_mode():
            model(torch.randn(2 + at, 1, 8, 8))
    assert graphs.count <= 3  # for one image, for the first number of images, for any number


@pytest.mark.parametrize("missing", ["C\\+\\+ compiler", "C compiler", "Python.h"])
def test_without_what_compiling_needs_one_sentence(small, monkeypatch, missing):
    programs = {"C\\+\\+ compiler": [], "C compiler": ["g++"], "Python.h": ["g++", "gcc"]}[missing]
    monkeypatch.setattr("shutil.which", lambda name: name if name in programs else None)
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: "/nowhere")
    # Triton, which compiles for GPUs alone, needs C.
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match=missing):
        small().compile()


def test_a_cpu_needs_no_c_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name if name == "g++" else None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_compilers()
