"""The file of results: what is written reads back, and what can't be is refused."""

import errno
import json

import pytest
from example_results import results
from helpers import ROOT

from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.results import EvaluationInfo, Results, tables


def test_a_file_reads_back(tmp_path):
    path = tmp_path / "deep" / "results.json"
    results().save(path)
    assert Results.load(path) == results()
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_a_file_without_what_was_added_later_is_read(tmp_path):
    results().save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    for group in content["scores"]:
        del group["ece"], group["nan"], group["chosen"]
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert Results.load(tmp_path / "b.json") == results()
    header, rows = tables.of(results())["orders"]
    assert [row[header.index("ECE %")] for row in rows] == ["", "", ""]


def test_files_that_are_no_results_say_why(tmp_path):
    results().save(tmp_path / "whole.json")
    whole = (tmp_path / "whole.json").read_text()
    content = json.loads(whole)
    without_scores = content.copy()
    del without_scores["scores"]
    for name, text, complaint in (
        ("cut", whole[:-30], "cut.json"),
        ("binary", "\ud800", "binary.json"),
        ("list", "[]", "list.json"),
        ("version", json.dumps(content | {"layershuffle_results": 99}), "99, not 2"),
        ("short", json.dumps(without_scores), "short.json.* scores"),
        ("other", json.dumps(content | {"scores": [{"top1": [1]}]}), "other.json.* protocol"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))  # the surrogate makes bytes that aren't UTF-8
        with pytest.raises(UserError, match=complaint):
            Results.load(path)
    with pytest.raises(UserError, match="nowhere.json"):
        Results.load(tmp_path / "nowhere.json")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results().save(path)

    def fsync_on_full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync_on_full_disk)
    with pytest.raises(ValueError, match=r"results\.json .*: No space left on device"):
        results("other").save(path)
    assert Results.load(path) == results()
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"results\.json"):
        write_whole(tmp_path / "file" / "results.json", "")


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.slow)], ids=["a tenth", "all"])
def test_the_stored_results_are_written_as_they_were_read(tmp_path, step):
    """Also those of older versions, which lack keys that were added later."""
    files = sorted((ROOT / "results").rglob("*.json"))
    paths = [path for path in files if b'"layershuffle_results"' in path.read_bytes()[:200]]
    assert len(paths) > 200
    for path in paths[::step]:
        Results.load(path).save(tmp_path / "again.json")
        assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text()), path


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("model", "config", {"name": "vit_tiny_patch16_224", "num_classes": 0}),
        ("model", "config", {"num_classes": 10}),
        ("model", "seed", "0"),
        ("model", "unknown", 1),
        ("data", "images", -1),
        ("data", "classes", ["cat", 1]),
        ("evaluation", "batch_size", 1.5),
        ("evaluation", "protocols", "sequential"),
        ("evaluation", "an_option", float("inf")),
        ("environment", "compiled", 1),
        ("measures", "unknown", {}),
    ],
)
def test_what_a_part_cannot_have_is_refused(tmp_path, part, key, value):
    path = tmp_path / "results.json"
    results().save(path)
    content = json.loads(path.read_text())
    content[part][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not a whole results file"):
        Results.load(path)


def test_settings_are_one_object_in_the_file(tmp_path):
    settings = EvaluationInfo(protocols=["pruned"], random_orders=3, seed=1, batch_size=64, options={"keep": None})
    results(evaluation=settings).save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())["evaluation"]
    assert list(content.items()) == [
        ("protocols", ["pruned"]),
        ("draws", 3),
        ("keep", None),
        ("seed", 1),
        ("batch_size", 64),
    ]
    assert Results.load(tmp_path / "a.json").evaluation == settings
