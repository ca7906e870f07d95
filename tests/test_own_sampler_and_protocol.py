"""The code that docs/guides/extend.md tells a stranger to write, as it is printed there."""

import contextlib
import csv
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import preloaded
import pytest
from helpers import DIGITS, QUIET, ROOT, fails, train

from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.list import list_command
from layershuffle.commands.report import report_command
from layershuffle.errors import UserError
from layershuffle.orders import (
    FirstLayers,
    GrowingDepth,
    LayerDrop,
    RandomGroups,
    RandomSchedule,
    RandomSubset,
    Recorded,
    Sequential,
    Shuffle,
    ShuffleDrop,
    named,
    protocols,
)
from layershuffle.orders.order import Order
from layershuffle.results import Results, figures, tables

SMALL = ["--model.depth=4", "--data.train_images=128", "--data.test_images=40", "--trainer.max_epochs=2"]


def section_of(heading):
    """What stands under a heading of docs/guides/extend.md."""
    page = (ROOT / "docs/guides/extend.md").read_text()
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.M | re.S)[1]


def write_files(heading):
    """Write the files under a heading of the guide, named in their first lines; returns their number of lines."""
    lines = 0
    for path, code in re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", section_of(heading), re.M | re.S):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(code)
        lines += len(code.splitlines())
    return lines


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder whose modules can be imported. What they register is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    registered = dict(protocols.PROTOCOLS)
    monkeypatch.setattr(protocols, "PROTOCOLS", registered)
    for module in ("api.evaluate", "commands.evaluate", "evaluation.order_groups", "results.tables.scores"):
        monkeypatch.setattr(f"layershuffle.{module}.PROTOCOLS", registered)
    yield
    for module in ("my_samplers", "my_protocols"):
        sys.modules.pop(module, None)


def fit(*options):
    """Train a small model; its checkpoint is best.ckpt in the working folder."""
    return train([*DIGITS, *QUIET, *SMALL, "--trainer.logger=false", "--checkpoint.dirpath=.", *options])


def test_an_order_has_a_name(monkeypatch):
    # The page shows a function, and its entry in the list of named orders.
    function, entry = re.findall(r"^```python\n(.*?)^```", section_of("Add a named order"), re.M | re.S)
    namespace = {"Order": Order, "NamedOrder": named.NamedOrder}
    exec(function, namespace)
    order = eval(entry, namespace)
    monkeypatch.setitem(named.NAMED, order.name, order)

    assert named.parse_order("odd-first", named.sequential(5)) == Order("1 3 0 2 4")
    assert order.summary in listed("orders")


def listed(section):
    """What `layershuffle list` prints of a section, in one line."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        list_command([section])
    return " ".join(out.getvalue().split())


def test_every_sampler_is_listed():
    samplers = listed("samplers")
    built_in = (Sequential, Shuffle, LayerDrop, ShuffleDrop, RandomSubset, RandomGroups, RandomSchedule, GrowingDepth)
    for sampler in (*built_in, FirstLayers, Recorded):
        assert sampler.__name__ in samplers
        assert sampler.summary
        assert sampler.summary in samplers


def test_an_order_sampler_is_in_every_table_and_figure():
    lines = write_files("Add an order sampler")
    assert 10 < lines < 21

    # Training runs the orders that the sampler gives for its seed, step and progress.
    module = fit("--config=configs/method/annealed.yaml").lightning_module
    steps = module.trainer.global_step
    for step in range(steps):
        expected = module.sampler.sample_step(4, module.seed, step, rank=0, progress=step / steps)
        assert module.orders.sample(step) == expected
    assert module.orders.sample(0) == Order(range(4))  # without progress, the sampler doesn't shuffle yet

    options = ["--data.test_images=40", "--random_orders=2", "--depths", "1", "2"]
    evaluate_command(["best.ckpt", *options, "--output=r/r.json"])
    report_command(["r"])
    report = Path("r/report/report.md").read_text()
    after_heading = report[report.index("## Sequential and arbitrary order") :]
    head_of_table = after_heading.partition("\n| --- ")[0]
    assert head_of_table.endswith("| annealed |")
    (data,) = Path("r/report/data").glob("pruning-*.csv")
    assert {row["method"] for row in csv.DictReader(data.open())} == {"annealed"}


def test_the_command_finds_a_config_and_a_module_in_the_working_folder():
    write_files("Add an order sampler")
    # Like the installed command, and unlike `python -m`, `python -P` doesn't look for modules in the working folder.
    command = [preloaded.python(), "-P", "-m", "layershuffle", "train", "mini_digits", "digits", "annealed", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run([*command, "--print_config"], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "class_path: my_samplers.Annealed" in process.stdout


@pytest.mark.usefixtures("with_rendering")
def test_a_protocol_has_an_option_a_table_and_a_picture(capsys, monkeypatch):
    lines = write_files("Add a protocol")
    assert 10 < lines < 25
    fit("--config", str(ROOT / "configs/method/baseline.yaml"))
    protocol_options = ["--protocols", "sequential", "my_protocols.backwards", "--lengths"]
    capsys.readouterr()

    results = evaluate_command(["best.ckpt", *protocol_options, "2", "4", "--data.test_images=40", "--output=r.json"])
    assert [score.order for score in results.scores[1:]] == ["1 0 2 3", "0 2 1 3", "0 1 3 2", "3 2 1 0"]
    assert results.evaluation.protocols == ["sequential", "my_protocols.backwards"]
    assert results.evaluation.options["lengths"] == [2, 4]
    said = capsys.readouterr().out
    assert re.search(r"first layer\s+turned\s+0\s+1\s+2", said)
    assert re.search(r"4 layers\s+[0-9.]+", said)
    assert Path("r.png").stat().st_size > 10_000

    with pytest.raises(SystemExit):
        evaluate_command(["best.ckpt", *protocol_options, "2", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert "How many layers in a row run backwards." in help_text
    assert "lengths" in fails(capsys, evaluate_command, "best.ckpt", *protocol_options, "2", "two")

    # Without its module, the results still have their table and picture.
    monkeypatch.delitem(protocols.PROTOCOLS, "backwards")
    loaded = Results.load("r.json")
    assert tables.of(loaded)["backwards"][0] == ["start", "0", "1", "2"]
    assert "backwards" in figures.draw(loaded, Path("again.json"))


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("@protocol('pruned', '')\ndef pruned(depth): ...", "there is already a protocol named pruned"),
        ("@protocol('mine', '')\ndef mine(depth, length): ...", "has an option length: give it a type and a default"),
        ("@protocol('mine', '')\ndef mine(depth, length: int = 1): ...", "has an option length: give it a help text"),
        ("@protocol('mine', '', options={'length': ''})\ndef mine(depth): ...", "help texts of length, which are no"),
        (
            "@protocol('mine', '', options={'seeds': '', 'depths': ''})\n"
            "def mine(depth, seeds: int = 1, depths: int = 2): ...",
            "can't have an option of that name",
        ),
        ("def mine(depth): ...", "there is no protocol named my_protocols.mine: decorate it with"),
        ("import nothing_there", "can't be imported: No module named 'nothing_there'"),
    ],
)
def test_protocols_that_cannot_be_say_why(capsys, code, complaint):
    Path("my_protocols.py").write_text(f"from layershuffle.orders.protocols import protocol\n{code}\n")
    assert complaint in fails(capsys, evaluate_command, "mini_digits", "--protocols", "my_protocols.mine")


def test_a_protocol_with_columns_has_one_for_each_variant():
    @protocols.protocol("mine", "", columns="length")
    def mine(depth):
        yield named.sequential(depth), {}

    with pytest.raises(UserError, match="the protocol mine has columns: give each of its variants an entry"):
        protocols.trials(["mine"], 3)
