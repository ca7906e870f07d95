"""The order algebra: text form, named orders, samplers."""

from collections import Counter
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layershuffle.errors import UserError
from layershuffle.orders.named import evenly_spaced, first, permutation, random_subset, sequential
from layershuffle.orders.order import Order, Step, Unit, seeded
from layershuffle.orders.samplers import (
    FirstLayers,
    GrowingDepth,
    LayerDrop,
    RandomSubset,
    Sequential,
    Shuffle,
    ShuffleDrop,
)

# What hypothesis draws.

units = st.builds(Unit, st.integers(0, 9999), st.sampled_from(["", "a", "f"]))
groups = st.lists(units, min_size=1, max_size=4, unique=True).map(lambda group: tuple(sorted(group)))


@st.composite
def steps(draw, largest_lag):
    """Any steps. One of a single unit is never summed: its text couldn't say so."""
    step = draw(st.builds(Step, groups, st.booleans(), st.integers(0, largest_lag)))
    return step if step.is_group else step._replace(summed=False)


@st.composite
def orders(draw, largest_lag=5):
    """Orders of up to 12 different steps, each of which runs up to four times in a row."""
    order = []
    for step, times in draw(st.lists(st.tuples(steps(largest_lag), st.integers(1, 4)), max_size=12)):
        order += [step] * times
    return Order(order)


depths = st.integers(1, 40)


@given(orders())
def test_text_parses_back(order):
    parsed = Order(str(order))
    assert parsed == order
    assert hash(parsed) == hash(order)


def layers_of(order):
    """The layers of an order whose steps are single units, in its sequence."""
    return [step.units[0].layer for step in order]


@given(st.lists(st.integers(0, 9999)))
def test_integers_and_their_text_are_the_same_order(layers):
    assert Order(layers) == Order(" ".join(map(str, layers)))
    assert layers_of(Order(layers)) == layers


def test_texts_from_the_documentation():
    assert Order("(1|2|3)*4").steps == (Step((Unit(1), Unit(2), Unit(3))),) * 4
    assert Order("(3+1)<2*2").steps == (Step((Unit(1), Unit(3)), summed=True, lag=2),) * 2
    assert Order("5f<2").steps == (Step((Unit(5, "f"),), lag=2),)
    assert str(Order("0 1<1 2<1 (3+4)<1 (3+4)<1")) == "0 1<1 2<1 (3+4)<1*2"
    assert Order([0, (1, 2)]) == Order("0 (1|2)")
    assert Order("(3|2|1)") == Order("(1|2|3)")
    sublayers = [Unit(0, "a"), Unit(1, "a"), Unit(0, "f"), Unit(1, "f")]
    assert Order("0a 1a 0f 1f").steps == tuple(Step((unit,)) for unit in sublayers)
    assert Order("2*3") == Order([2, 2, 2])
    assert str(Order("0 (1|2) (1|2) 3 3")) == "0 (1|2)*2 3 3"
    assert Order([0, "(1|2)", 3]) == Order("0 (1|2) 3")
    assert Order("0 1 2") + [3] == Order(range(4))
    assert Order("0 1 2")[1:] == Order("1 2")


NO_ORDERS = ["0,1", "(1|1)", "(1", "()", "a", "1x", "-1", "1*0", "1*", "1**2", "²", "1 |2", "10000"]
NO_SUMS_OR_LAGS = ["(1+1)", "(1+)", "(1|2+3)", "1+2", "1<0", "1<", "1<-1", "1*2<1", "(1<1+2)"]


@pytest.mark.parametrize("text", NO_ORDERS + NO_SUMS_OR_LAGS)
def test_what_is_not_an_order_is_named(text):
    with pytest.raises(ValueError, match=r"step"):
        Order(text)


def test_huge_orders_are_refused_before_memory_is_taken():
    with pytest.raises(ValueError, match="100000"):
        Order("1*99999 1*99999 1*99999")


@pytest.mark.parametrize("bad", [[-1], [1.5], [None], [((0, "x"),)], [()]])
def test_sequences_of_other_things_are_refused(bad):
    with pytest.raises((ValueError, TypeError)):
        Order(bad)


def test_a_step_reads_no_state_from_before_the_first():
    assert Order("0 1<1 2<2").check(3).positions == [0, 0, 0]
    assert Order("0 1 2<1").check(3).longest_lag == 1
    with pytest.raises(UserError, match="2<3 at position 2"):
        Order("0 1 2<3").check(3)
    with pytest.raises(UserError, match="shuffled"):
        Order("0 1<1").shuffled(seeded(0))


def test_whole_layers_are_those_that_run_by_themselves():
    assert Order("3 1").whole_layers == [3, 1]
    for text in ("0 1a", "(0|1)", "(0+1)", "0 1<1"):
        assert Order(text).whole_layers is None


def test_groups_over_a_base_order():
    base = Order("5 (1+2) (3|4) 0<1")
    assert Order("(0+1)").over(base) == Order("(1+2+5)")
    assert Order("0 1<1 3").over(base) == Order("5 (1+2)<1 0<1")
    assert Order("1a 2f").over(base) == Order("(1a+2a) (3f|4f)")
    for text in ("(0|1)", "(0+2)", "(0+3)", "0 3<1"):
        with pytest.raises(UserError):
            Order(text).over(base)


def test_check_names_the_missing_layer():
    assert Order("0 (1|11a)").check(12) == Order("0 (1|11a)")
    with pytest.raises(ValueError, match="layer 12, .* 0 to 11"):
        Order("0 12 3").check(12)


@given(depths, st.integers())
def test_permutation_has_every_layer_once(depth, seed):
    assert sorted(permutation(depth, seeded(seed)).steps) == list(sequential(depth).steps)


@given(orders(largest_lag=0), st.integers())
def test_shuffled_keeps_the_steps(order, seed):
    assert Counter(order.shuffled(seeded(seed))) == Counter(order)


@given(depths, st.integers(1, 40), st.integers())
def test_pruned_orders_keep_k_layers_in_original_sequence(depth, k, seed):
    def random(k, depth):
        return random_subset(k, depth, seeded(seed))

    for choose in (first, evenly_spaced, random):
        if k > depth:
            with pytest.raises(ValueError, match=f"{k} layers .* {depth}"):
                choose(k, depth)
            continue
        order = choose(k, depth)
        layers = layers_of(order)
        assert len(layers) == k
        assert layers == sorted(set(layers))
        order.check(depth)

    if k <= depth:
        even = layers_of(evenly_spaced(k, depth))
        assert even[0] == 0
        gaps = np.diff([*even, depth])
        assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("k", "drop_every"), [(6, 2), (8, 3), (9, 4), (10, 6)])
def test_evenly_spaced_is_layerdrops_every_other(k, drop_every):
    """LayerDrop's authors count layers from 1, and leave out each whose number is a multiple."""
    kept = [number - 1 for number in range(1, 13) if number % drop_every]
    assert evenly_spaced(k, 12) == Order(kept)


def is_binomial(count, draws, probability):
    """Whether a count is within six standard deviations of its mean, which all but one in 500 million are."""
    standard_deviation = (draws * probability * (1 - probability)) ** 0.5
    return abs(count - draws * probability) < 6 * standard_deviation


def test_permutations_are_uniform():
    counts = Counter(permutation(3, seeded(number)) for number in range(6000))
    assert len(counts) == 6
    for count in counts.values():
        assert is_binomial(count, 6000, 1 / 6)


@pytest.mark.parametrize(
    "sampler",
    [
        Sequential(),
        Shuffle(),
        LayerDrop(0.3),
        FirstLayers(5),
        ShuffleDrop(0.3),
        RandomSubset(),
        GrowingDepth(),
    ],
)
def test_sampled_orders_depend_on_seed_step_and_rank_alone(sampler):
    sampled = [sampler.sample_step(12, seed=7, step=step, rank=1) for step in range(20)]
    again = [sampler.sample_step(12, seed=7, step=step, rank=1) for step in range(20)]
    assert again == sampled

    if not isinstance(sampler, (Sequential, FirstLayers)):
        # The first, and those with another seed, step or rank.
        keys = [(7, 3, 1), (8, 3, 1), (7, 4, 1), (7, 3, 2)]
        sampled = {sampler.sample_step(12, seed, step, rank, progress=0.5) for seed, step, rank in keys}
        assert len(sampled) == 4


def test_sampled_orders_never_change_between_versions():
    # Published orders must stay what they were; these numbers were printed when the sampler was written.
    assert str(Shuffle().sample_step(12, seed=0, step=0)) == "11 7 0 4 9 5 10 1 6 2 3 8"
    assert str(Shuffle().sample_step(12, seed=0, step=1, rank=3)) == "7 9 5 0 1 2 3 11 10 6 4 8"
    assert str(LayerDrop(0.5).sample_step(12, seed=1, step=2)) == "2 4 5 6 7 8"


def test_layerdrop_keeps_with_its_probability():
    sampler = LayerDrop(0.2)
    kept = sum(len(sampler.sample_step(12, 0, step)) for step in range(2000))
    assert is_binomial(kept, 12 * 2000, 0.8)
    assert sampler.at_validation(12, seeded(0)) == sequential(12)
    for p in (-0.1, 1, 2):
        with pytest.raises(ValueError, match="probability"):
            LayerDrop(p)


def test_random_subsets_are_uniform_in_size_choice_and_sequence():
    sampled = [layers_of(RandomSubset(2).sample_step(4, 0, step)) for step in range(6000)]
    assert all(len(set(layers)) == len(layers) for layers in sampled)

    sizes = Counter(len(layers) for layers in sampled)
    assert sizes.keys() == {2, 3, 4}
    for count in sizes.values():
        assert is_binomial(count, 6000, 1 / 3)

    pairs = Counter(tuple(layers) for layers in sampled if len(layers) == 2)
    assert len(pairs) == 12  # two of four layers, in either sequence
    for count in pairs.values():
        assert is_binomial(count, sizes[2], 1 / 12)

    assert {len(RandomSubset().sample_step(3, 0, step)) for step in range(100)} == {1, 2, 3}
    assert len(RandomSubset(9).sample_step(4, 0, 0)) == 4
    with pytest.raises(ValueError, match="k_min .* not 0"):
        RandomSubset(0)


def test_the_depth_grows_with_the_share_of_the_budget():
    sampler = GrowingDepth(k0=2, end=0.5)

    # The five depths from 2 to 6 begin at 0, 1/4, 1/2, 3/4 and all of the first half.
    depth_at = {0: 2, 0.12: 2, 0.125: 3, 0.249: 3, 0.25: 4, 0.374: 4, 0.375: 5, 0.499: 5, 0.5: 6, 0.7: 6, 1: 6}
    for progress, depth in depth_at.items():
        assert len(sampler.sample_step(6, seed=0, step=3, progress=progress)) == depth

    # At 0.3, four of the six layers run, and all are as likely.
    kept = Counter()
    for step in range(3000):
        kept.update(layers_of(sampler.sample_step(6, seed=0, step=step, progress=0.3)))
    for layer in range(6):
        assert is_binomial(kept[layer], 3000, 2 / 3)
    choices = {sampler.sample_step(6, seed=0, step=step, progress=0.3).layers for step in range(500)}
    assert len(choices) == comb(6, 4)

    sampled = [layers_of(sampler.sample_step(6, seed=0, step=step)) for step in range(9)]
    assert any(layers != sorted(layers) for layers in sampled)

    assert len(sampler.at_validation(6, seeded(0), 0.0)) == 6
    assert len(GrowingDepth(9).sample_step(6, seed=0, step=0)) == 6
    for wrong in ({"k0": 0}, {"end": 0}, {"end": 1.1}):
        with pytest.raises(ValueError, match="k0"):
            GrowingDepth(**wrong)


def test_shuffledrop_shuffles_and_drops():
    sampler = ShuffleDrop(0.2)
    sampled = [layers_of(sampler.sample_step(12, 0, step)) for step in range(2000)]
    assert is_binomial(sum(map(len, sampled)), 12 * 2000, 0.8)
    in_sequence = [layers for layers in sampled if layers == sorted(layers)]
    assert len(in_sequence) < 3

    assert sorted(layers_of(sampler.at_validation(12, seeded(0)))) == list(range(12))
    with pytest.raises(ValueError, match="ShuffleDrop's p "):
        ShuffleDrop(1)


def test_depth_runs_the_first_layers():
    assert FirstLayers(3).sample_step(12, 0, 0) == Order("0 1 2")
    with pytest.raises(ValueError, match="13 layers .* 12"):
        FirstLayers(13).sample_step(12, 0, 0)
