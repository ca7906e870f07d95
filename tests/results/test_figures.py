"""Which pictures there are of results."""

from dataclasses import replace

import pytest
from example_results import by_class, results
from matplotlib.image import imread

from layershuffle.results import figures


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_plots_are_written(tmp_path, name):
    figures.save(
        figures.overview([results(), results("baseline", scores=results().scores[:4])], "title"), tmp_path / name
    )
    if name.endswith("png"):
        picture = imread(tmp_path / name)
        assert picture.shape[1] > picture.shape[0] > 300
        assert picture[..., :3].std() > 0.05
    else:
        assert "layers kept" in (tmp_path / name).read_text() or "<svg" in (tmp_path / name).read_text()


def test_the_sequential_order_alone_has_an_overview_beside_its_confusion(tmp_path):
    found = by_class()
    alone = replace(found, scores=found.of("sequential"))
    assert list(figures.draw(alone, tmp_path / "a.json")) == ["overview", "confusion"]
