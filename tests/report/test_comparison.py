"""Methods side by side."""

from dataclasses import replace

from example_results import results, score

from layershuffle.report.comparison import comparison
from layershuffle.results import estimate, tables


def test_the_comparison_names_what_is_missing():
    partly = results("baseline", scores=[score("sequential", 0.95, "0 1 2")])
    (header, rows), caption = comparison([partly, results()])
    assert header == ["top-1 %", "baseline", "layershuffle"]
    sequential = [tables.percent(estimate([found.of("sequential")])) for found in (partly, results())]
    assert rows[0] == ["sequential", *sequential]
    assert rows[1] == ["arbitrary, per batch", "missing", "75.00"]
    assert tables.PER_BATCH in caption
    text = tables.markdown(header, rows)
    assert text.splitlines()[:3] == [
        "| top-1 % | baseline | layershuffle |",
        "| --- | ---: | ---: |",
        f"| sequential | {sequential[0]} | {sequential[1]} |",
    ]


def test_the_caption_says_which_methods_have_one_seed():
    seeds = [results(model=replace(results().model, seed=seed)) for seed in (0, 1)]
    assert comparison(seeds)[1] == tables.SEVERAL_SEEDS
    assert comparison(seeds[:1])[1] == f"{tables.ONE_SEED} {tables.PER_BATCH}"
    caption = comparison([*seeds, results("baseline")])[1]
    assert caption.startswith(tables.SEVERAL_SEEDS)
    assert "baseline" in caption
    assert "layershuffle" not in caption


def test_the_caption_speaks_of_new_orders_only_where_there_are_some():
    fixed = [one for one in results().scores if one.order]
    assert comparison([results(scores=fixed)])[1] == tables.ONE_SEED
