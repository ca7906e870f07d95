import pytest
import yaml
from small_experiments import TINY, settings


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Writes an experiment of small runs with these changes to its setup; returns its path."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        setup = {
            "train": {"configs": ["model/mini_digits", "data/digits", "trainer/cpu"], "options": TINY},
            "base": settings("method/baseline", trainer__max_epochs=1),
            "methods": {
                "baseline": settings("method/baseline", trainer__max_epochs=1),
                "layershuffle": settings("method/layershuffle", trainer__max_epochs=2),
            },
            "evaluations": {"results": settings(random_orders=2, depths=[1])},
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({"seeds": [0, 1], "setups": {"digits": setup | changes}}))
        return path

    return write
