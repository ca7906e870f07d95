"""Methods side by side."""

from dataclasses import replace

from example_results import results, score

from layershuffle.report.comparison import comparison
from layershuffle.results import estimate, tables


def test_the_comparison_names_what_is_missing():
    partly = results("baseline", scores=[score("sequential", 0.95, "0 1 2")])
    whole = results("layershuffle")
    (header, rows), caption = comparison([partly, whole])
    baseline = tables.percent(estimate([partly.of("sequential")]))
    shuffled = tables.percent(estimate([whole.of("sequential")]))
    assert header == ["top-1 %", "baseline", "layershuffle"]
    assert rows[0] == ["sequential", baseline, shuffled]
    assert rows[1] == ["arbitrary, per batch", "missing", "75.00"]
    assert tables.PER_BATCH in caption

    text = tables.markdown(header, rows)
    assert text.splitlines()[:3] == [
        "| top-1 % | baseline | layershuffle |",
        "| --- | ---: | ---: |",
        f"| sequential | {baseline} | {shuffled} |",
    ]


def test_the_caption_says_which_methods_have_one_seed():
    first = results(model=replace(results().model, seed=0))
    second = results(model=replace(results().model, seed=1))
    _, caption = comparison([first, second])
    assert caption == tables.SEVERAL_SEEDS
    _, caption = comparison([first])
    assert caption == f"{tables.ONE_SEED} {tables.PER_BATCH}"
    _, caption = comparison([first, second, results("baseline")])
    assert caption.startswith(tables.SEVERAL_SEEDS)
    assert "baseline" in caption
    assert "layershuffle" not in caption


def test_the_caption_speaks_of_new_orders_only_where_there_are_some():
    with_order = [one for one in results().scores if one.order]
    _, caption = comparison([results(scores=with_order)])
    assert caption == tables.ONE_SEED
