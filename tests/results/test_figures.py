"""Which pictures there are of results."""

import math
from dataclasses import replace

import pytest
from example_results import by_class, results, score, with_several_labels
from matplotlib.figure import Figure
from matplotlib.image import imread

from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.results import figures
from layershuffle.results.figures import legend_below, panels
from layershuffle.results.figures.protocols import lines

pytestmark = pytest.mark.usefixtures("with_rendering")


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_plots_are_written(tmp_path, name):
    without_pruned = results("baseline", scores=results().of("sequential", "arbitrary"))
    figures.save(figures.overview([results(), without_pruned], "title"), tmp_path / name)
    if name.endswith("png"):
        picture = imread(tmp_path / name)
        height, width, _ = picture.shape
        assert width > height > 300
        colours = picture[..., :3]
        assert colours.std() > 0.05  # something is drawn
    else:
        # Letters are drawn as shapes, and a comment says what they spell.
        assert "<!-- layers kept -->" in (tmp_path / name).read_text()


def test_the_sequential_order_alone_has_an_overview_beside_its_confusion(tmp_path):
    found = by_class()
    alone = replace(found, scores=found.of("sequential"))
    assert list(figures.draw(alone, tmp_path / "a.json")) == ["overview", "confusion"]


def test_the_overview_has_a_place_only_for_what_was_scored():
    found = results()
    sequential = replace(found, scores=found.of("sequential"))
    (axis,) = figures.overview([sequential]).axes
    assert len(axis.get_xticks()) == 1
    (bar,) = axis.patches
    left, right = axis.get_xlim()
    assert bar.get_width() < (right - left) / 4

    # Without scores of all layers, there is no empty panel for them.
    pruned = replace(found, scores=found.of("pruned"))
    axes = figures.overview([pruned]).axes
    assert [axis.get_xlabel() for axis in axes] == ["layers kept", "layers kept"]


def test_chance_among_many_classes_is_not_hidden_by_the_axis():
    found = results()
    many = replace(found, model=replace(found.model, config={"name": "vit", "num_classes": 500}))
    axis, *_ = figures.overview([many]).axes
    assert axis.spines["bottom"].get_position() == ("outward", 4)


def test_a_value_has_an_edge_that_keeps_lines_out_of_it():
    axis, *_ = figures.overview([results()]).axes
    assert axis.texts
    assert all(text.get_path_effects() for text in axis.texts)


def test_captions_speak_of_what_is_drawn():
    # Where each bar is one score, there are no lines from the worst to the best.
    one_each = [score("failing", 0.5, "0", dead="20%"), score("failing", 0.6, "0", dead="30%")]
    found = results(scores=one_each)
    (plot,) = figures.plots(found)
    assert "worst" not in plot.caption
    axis, *_ = plot.figure(found, "").axes
    assert "dead" in axis.get_ylabel()  # of what "20%" are

    (plot,) = figures.plots(results(scores=[*one_each, *one_each]))
    assert "Black lines" in plot.caption

    # Of a protocol with columns whose variants have no number, bars are drawn.
    without_steps = [score("grouped", 0.5, "0", layers="random"), score("grouped", 0.6, "0", layers="random")]
    found = results(scores=without_steps)
    (plot,) = figures.plots(found)
    assert "Black lines" in plot.caption
    axis, *_ = plot.figure(found, "").axes
    assert axis.patches


def test_points_of_one_number_of_layers_can_be_told_apart():
    of_one_layer = [one for one in results().scores if one.variant.get("kept", 1) == 1]
    methods = [results(scores=of_one_layer), results("baseline", scores=of_one_layer)]
    _, *pruned = figures.overview(methods).axes
    for axis in pruned:
        # Of two models in two sequences, no two points have the same place, and the markers differ.
        points = [line for line in axis.lines if line.get_marker() not in ("None", "")]
        places = [(*line.get_xdata(), *line.get_ydata()) for line in points]
        assert len(set(places)) == len(places) == 4
        assert len({line.get_marker() for line in points}) == 2


def test_groups_have_a_panel_of_the_overview():
    scores = results().scores[:2]  # those of all layers, in sequential order and in a new order in every batch
    for steps, accuracy in ((4, 0.9), (2, 0.7), (1, 0.2)):
        for layers in ("in sequence", "random", "random"):
            scores.append(score("grouped", accuracy, steps=steps, layers=layers))
    _, panel = figures.overview([results(scores=scores)]).axes
    assert panel.get_xlabel() == "steps"
    in_sequence, in_random_sequence, *_ = panel.lines
    for line in (in_sequence, in_random_sequence):
        assert dict(zip(line.get_xdata(), line.get_ydata())) == pytest.approx({1: 20, 2: 70, 4: 90})
    assert panel.xaxis_inverted()  # Fewer steps, to the right, take less time.


def test_the_most_frequent_class_is_a_line_in_every_picture_of_accuracies():
    skewed = by_class()  # of 10 classes, two have half of the images each
    skewed = replace(skewed, scores=[*skewed.scores, score("failing", 0.5, "0", dead="20%")])
    drawn = [figures.overview([skewed]), figures.plots(skewed)[0].figure(skewed, "")]
    for figure in drawn:
        names = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
        assert {"chance (10%)", "most frequent class (50%)"} <= names


def test_names_are_drawn_as_they_are():
    """Matplotlib would take what stands between two dollars for mathematics, and fails on a byte that isn't UTF-8."""
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 1000], [0, 1], label=r"$\frac_^$")
    axes.set_xscale("log")
    axes.set(title=r"my $_[red]^\label$", yticks=[0, 1], yticklabels=[r"a$_^\x$", "caf\udce9"])
    axes.legend()
    assert figures.rendered(figure, "png")
    assert [label.get_text() for label in axes.get_yticklabels()] == [r"a$_^\x$", "caf?"]
    assert not axes.title.get_parse_math()
    assert all(label.get_parse_math() for label in axes.get_xticklabels())


def test_the_same_figure_is_always_the_same_svg():
    figure = figures.overview([results()], "title")
    first = figures.rendered(figure, "svg")
    assert figures.rendered(figure, "svg") == first
    assert figures.rendered(figures.overview([results()], "title"), "svg") == first


def test_grouped_has_fewer_steps_to_the_right_as_the_overview():
    scores = [
        score("grouped", 0.5, steps=4, layers="random"),
        score("grouped", 0.7, steps=4, layers="random"),
        score("grouped", 0.6, steps=6, layers="random"),
        score("grouped", 0.8, steps=6, layers="random"),
    ]
    figure = lines([PROTOCOLS["grouped"]], results(scores=scores))
    (axis,) = figure.axes
    left, right = axis.get_xlim()
    assert left > right
    (legend,) = figure.legends
    assert "worst to best order" in [text.get_text() for text in legend.get_texts()]


def test_the_overview_says_what_its_dots_and_bands_are():
    scores = [score("arbitrary", 0.5, "1 0"), score("arbitrary", 0.7, "0 1")]
    (legend,) = figures.overview([results(scores=scores)]).legends
    assert "one order" in [text.get_text() for text in legend.get_texts()]


def test_orders_that_were_new_in_every_batch_are_no_dot_of_the_overview():
    per_batch = score("arbitrary", 0.9, reading="per batch")
    fixed = [score("arbitrary", 0.5, "1 0", reading="fixed"), score("arbitrary", 0.7, "0 1", reading="fixed")]
    axis = figures.overview([results(scores=[per_batch, *fixed])]).axes[0]
    (dots,) = axis.collections
    assert [height for _, height in dots.get_offsets()] == pytest.approx([50, 70])


def test_the_lines_of_a_legend_below_are_equally_long():
    figure, (axis,) = panels(1, 6.4, 4.0)
    for number in range(10):
        axis.plot([0, 1], [0, number], label=f"method {number}")
    legend_below(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    lines_of_legend = {round(text.get_window_extent().y0) for text in legend.get_texts()}
    columns = {round(text.get_window_extent().x0) for text in legend.get_texts()}
    assert len(columns) == math.ceil(10 / len(lines_of_legend))


@pytest.mark.parametrize("entries", [3, 12])
def test_a_legend_below_stays_within_the_picture(entries):
    figure, (axis,) = panels(1, 6.4, 4.0)
    for number in range(entries):
        axis.plot([0, 1], [0, number], label=f"a method with a long name {number}")
    legend_below(figure)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert len(legend.get_texts()) == entries


def test_a_caption_says_what_the_numbers_are():
    found = results(scores=[score("swaps", 0.5, layer=0), score("swaps", 0.4, layer=1)])
    (plot,) = figures.plots(found)
    assert plot.caption.startswith("Top-1 accuracy: Each layer")
    (plot,) = figures.plots(with_several_labels(found))
    assert plot.caption.startswith("Mean average precision: Each layer")
