"""A bar, or lines where there is no terminal."""

from layershuffle import progress_lines
from layershuffle.api.progress import progress_bar


def test_without_a_terminal_steps_are_counted_in_lines(monkeypatch, caplog):
    now = [1000.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: now[0])
    with caplog.at_level("INFO", "layershuffle"), progress_bar("packing", 1000, "image") as advance:
        for _ in range(3):
            now[0] += 10
            advance(100)
    assert [record.getMessage() for record in caplog.records] == [
        "packing: 100 of 1,000 images, 10 a second, about 2 min left"
    ]
