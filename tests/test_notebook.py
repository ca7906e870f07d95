"""The notebook in examples/, executed cell by cell, and its page in the documentation."""

import json
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from helpers import ROOT


@pytest.mark.slow
def test_the_first_ten_minutes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    notebook = json.loads((ROOT / "examples/first_ten_minutes.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = {}
    with mpl.rc_context({"backend": "agg"}):
        for cell in cells:
            exec("".join(cell["source"]), found)
    arbitrary = {name: sum(each) / 100 for name, each in found["arbitrary"].items()}
    assert arbitrary["fine-tuned with shuffled layers"] > arbitrary["as it came"]
    assert sum(bar.get_height() for bar in found["axes"].patches) == 200
    plt.close("all")
    # The page shows what a run of it gave, with the picture.
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in cells[-1]["outputs"])


@pytest.fixture(scope="module")
def generate_notebook():
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate_notebook
    finally:
        sys.path.pop(0)
    return generate_notebook


def test_its_page_has_text_code_output_and_picture(generate_notebook):
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "See [this](../README.md)."]},
        {"cell_type": "code", "source": ["print(1)\n", "print(2)"], "outputs": [{"text": ["1\n", "2\n"]}]},
        {"cell_type": "code", "source": ["show()"], "outputs": [{"data": {"image/png": "aGVsbG8=\n"}}]},
    ]
    page, pictures = generate_notebook.convert({"cells": cells}, "page")
    assert page == (
        "# Title\nSee [this](../../README.md).\n\n"
        "```python\nprint(1)\nprint(2)\n```\n\n```text\n1\n2\n```\n\n"
        "```python\nshow()\n```\n\n![What the code above draws](page_1.png)\n"
    )
    assert pictures == {"page_1.png": b"hello"}


def test_its_page_is_written_once(generate_notebook, tmp_path):
    generate_notebook.write(tmp_path)
    page = tmp_path / "first_ten_minutes.md"
    before = page.stat().st_mtime_ns
    generate_notebook.write(tmp_path)
    assert page.stat().st_mtime_ns == before
    assert "100 orders" in page.read_text()
    assert (tmp_path / "first_ten_minutes_1.png").read_bytes().startswith(b"\x89PNG")
