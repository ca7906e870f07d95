"""Which orders a step runs, in one process and in several. test_distributed.py has real ones."""

import pytest

from layershuffle.errors import UserError
from layershuffle.orders.named import sequential
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.samplers import FirstLayers, GrowingDepth, LayerDrop, RandomSubset, Sequential, Shuffle
from layershuffle.training.step_orders import StepOrders

SEED = 5
CHOICES = (Order("0 1 2 3"), Order("3 2 1"))


def step_orders(sampler=None, fixed=None, parts=1, progress=lambda step: 0.0, model_order="0 1 2 3"):
    """The orders of a model of four layers; by default each step has one, which ``Shuffle`` samples."""
    return StepOrders(sampler or Shuffle(), Order(model_order), fixed, SEED, parts, progress)


def test_each_process_samples_its_own_parts():
    orders = step_orders(parts=2)
    orders.processes = 3

    expected = [Shuffle().sample_step(4, SEED, 7, part) for part in range(6)]
    assert orders.of_all_processes(7) == [expected[0:2], expected[2:4], expected[4:6]]
    assert orders.of_process(7, 2) == expected[4:6]


def test_where_all_run_the_same_every_process_has_the_first_ones():
    orders = step_orders(parts=2)
    assert orders.of_process(7, 5) == orders.of_process(7, 0) == orders.of_all_processes(7)[0]


def test_a_batch_has_no_more_parts_than_images():
    orders = step_orders(parts=4)
    assert orders.of_batch(0, 0, images=3) == orders.of_process(0, 0)[:3]
    # Orders of the objective are no parts: every image runs in all of them.
    assert step_orders(fixed=CHOICES).of_batch(0, 0, images=1) == list(CHOICES)


def test_a_step_keeps_its_orders_while_the_budget_is_used_up():
    progress = 0.0
    orders = step_orders(GrowingDepth(k0=1), progress=lambda step: progress)
    shallow = orders.of_process(3, 0)

    # Batches that are accumulated are one step, and the budget has moved on between them.
    progress = 1.0
    assert orders.of_process(3, 0) == shallow
    orders.forget_before(3)
    assert orders.of_process(3, 0) == shallow

    # Only an order that was forgotten is sampled again.
    orders.forget_before(4)
    assert len(orders.of_process(3, 0)[0]) == 4 > len(shallow[0])
    progress = 0.0
    orders.forget_all()
    assert orders.of_process(3, 0) == shallow


def test_layers_are_counted_over_all_processes():
    orders = step_orders(LayerDrop(0.5), parts=2)
    orders.processes = 2
    lengths = []
    for parts in orders.of_all_processes(1):
        lengths += map(len, parts)
    assert orders.layers_run(1) == sum(lengths) / 4

    # Every image runs in both choices, of 4 and of 3 layers.
    assert step_orders(fixed=CHOICES).layers_run(1) == 4 + 3


@pytest.mark.parametrize(
    ("sampler", "fixed", "updates_per_full_update"),
    [
        (Sequential(), None, 1),
        (RandomSubset(), None, 4 / 2.5),  # 1, 2, 3 or 4 of 4 layers
        (FirstLayers(2), None, 2),
        # With 1, 2 and 3 layers for 0.2 of the computation each, and then with all.
        (GrowingDepth(k0=1, end=0.6), None, 0.2 * (4 + 2 + 4 / 3) + 0.4),
        (None, CHOICES, 4 / 7),
    ],
)
def test_shorter_orders_make_more_updates_of_the_same_computation(sampler, fixed, updates_per_full_update):
    updates = step_orders(sampler, fixed).updates_within(32)
    assert updates == pytest.approx(32 * updates_per_full_update, rel=0.1)


def test_the_base_order_leaves_out_what_is_never_trained():
    assert step_orders(FirstLayers(2)).base_order == Order("0 1")
    assert step_orders(FirstLayers(2), fixed=CHOICES).base_order == Order("0 1 2 3")
    assert step_orders(FirstLayers(3), model_order="0 0 1 1").base_order == Order("0 0 1")


def test_examples_show_the_whole_course_of_a_training():
    growing = step_orders(GrowingDepth(k0=1, end=1.0))
    assert {len(order) for order in growing.examples} == {1, 2, 3, 4}
    assert step_orders(fixed=CHOICES).examples == CHOICES
    assert set(step_orders(Sequential()).examples) == {sequential(4)}


def test_examples_are_sampled_once(monkeypatch):
    steps = []

    def sample_step(sampler, depth, seed, step, *_, **__):
        steps.append(step)
        return sequential(4)

    monkeypatch.setattr(Shuffle, "sample_step", sample_step)
    orders = step_orders()
    assert orders.examples == orders.examples
    assert len(steps) == 16


def test_validation_compares_all_epochs_on_the_same_orders():
    orders = step_orders(FirstLayers(3)).for_validation(batch=2, step=0)
    assert orders == step_orders(FirstLayers(3)).for_validation(batch=2, step=50)
    assert orders.sequential == Order("0 1 2")
    assert orders.selecting == Order("0 1 2")
    assert orders.arbitrary == Order("0 1 2").shuffled(seeded(SEED, "validation", 2))


@pytest.mark.parametrize(("fixed", "parts"), [(None, 0), (CHOICES, 2)])
def test_parts_that_cannot_be_are_refused(fixed, parts):
    with pytest.raises(UserError, match="orders_per_batch"):
        step_orders(fixed=fixed, parts=parts)
