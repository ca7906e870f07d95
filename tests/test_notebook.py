"""The notebook in docs/, executed cell by cell."""

import json

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
