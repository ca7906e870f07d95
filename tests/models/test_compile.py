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
    """Let each test start without graphs, and leave torch's limit of recompilations as it was."""
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = limit


def compiled(model):
    """A compiled copy of a model, and what counts its graphs."""
    graphs = Graphs()
    twin = copy.deepcopy(model)
    twin.compile(backend=graphs)
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
    orders = []
    for at in range(count):
        kind = kinds[at % len(kinds)]
        orders.append(kind(seeded("compile", at)))
    return orders


def loss_of(model, images, order):
    """The loss as in training, with that of the predicted positions where the model predicts them."""
    output = model(images, order)
    loss = F.cross_entropy(output.logits.float(), torch.arange(len(images)))
    if output.position_logits is not None:
        loss = loss + position_cross_entropy(output).sum()
    return loss


def loss_and_gradients(model, images, order):
    """The loss in training mode, and the gradients by the names of their parameters."""
    model.train().zero_grad()
    loss = loss_of(model, images, order)
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return loss.detach(), gradients


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
    # An order of sublayers has two steps a layer, and so two positions.
    model, graphs = compiled(small(position=position, positions=2 * DEPTH, **pool))

    counts = []
    for order in several(count):
        loss_of(model.train(), images, order).backward()
        with torch.no_grad():
            model.eval()(images, order)
        with torch.inference_mode():
            model(images, order)
        counts.append(graphs.count)

    compiled_parts = 3 if position == "none" else 4  # a layer, its two halves, and the position's projection or head
    modes = 3  # training, and evaluation with torch.no_grad and with torch.inference_mode
    after_one_of_each_kind = counts[7]
    assert graphs.count == after_one_of_each_kind == modes * compiled_parts


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
    model = copy.deepcopy(plain)
    model.compile(backend="aot_eager")
    assert model.state_dict().keys() == plain.state_dict().keys()

    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    # A bias's gradient, summed in another sequence, may round to the next bf16 number.
    rounding = {"rtol": 2**-7, "atol": 1e-5} if autocast else {}
    for order in several(8):
        with context:
            loss, gradients = loss_and_gradients(model, images, order)
            expected_loss, expected_gradients = loss_and_gradients(plain, images, order)
            with torch.inference_mode():
                torch.testing.assert_close(model.eval()(images, order), plain.eval()(images, order))
        torch.testing.assert_close(loss, expected_loss)
        torch.testing.assert_close(gradients, expected_gradients, **rounding)


def test_autocast_has_its_own_graphs_and_orders_share_them(small, images):
    model, graphs = compiled(small(position="predict", positions=2 * DEPTH))
    counts = []
    with torch.autocast("cpu", torch.bfloat16):
        for order in several(16):
            loss_of(model.train(), images, order).backward()
            with torch.inference_mode():
                model.eval()(images, order)
            counts.append(graphs.count)
    # A layer, its two halves and the position's head, each in training and in evaluation. The fifth order has halves.
    assert counts[4:] == [8] * 12


def test_layers_with_stochastic_depth_have_a_graph_each_and_orders_share_them(small, images):
    model, graphs = compiled(small(depth=9, drop_path_rate=0.2).train())
    for at in range(10):
        loss_of(model, images, permutation(9, seeded(at))).backward()
    assert graphs.count == 9  # torch gives up at 8 unless told otherwise


def test_the_prefix_tree_shares_the_graphs(small, images):
    model, graphs = compiled(small())
    orders = [Order(f"{first} {second} (0|1)*2") for first in range(DEPTH) for second in range(DEPTH)]
    with torch.inference_mode():
        for _, output in run_orders(model, images, orders):
            assert output.logits.isfinite().all()
    assert graphs.count == 1


def test_images_that_choose_run_in_groups_of_any_size_with_few_graphs(small):
    model, graphs = compiled(small(choices=["0 1 2 3", "3 2 1 0", "1 0"]))
    with torch.inference_mode():
        for count in range(2, 14):
            model(torch.randn(count, 1, 8, 8))
    assert graphs.count <= 3  # for one image, for the first number of images, for any number


INSTALLED_WITHOUT = {"C\\+\\+ compiler": [], "C compiler": ["g++"], "Python.h": ["g++", "gcc"]}
"""The compilers that are installed while something is missing, by what that is."""


@pytest.mark.parametrize("missing", INSTALLED_WITHOUT)
def test_without_what_compiling_needs_one_sentence(small, monkeypatch, missing):
    installed = INSTALLED_WITHOUT[missing]
    monkeypatch.setattr("shutil.which", lambda name: name if name in installed else None)
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: "/nowhere")
    # Triton, which compiles for GPUs alone, needs C.
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UserError, match=missing):
        small().compile()


def test_a_cpu_needs_no_c_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: name if name == "g++" else None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    check_compilers()
