import csv
import html.parser
import json
import math
import os
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from example_results import with_several_labels
from helpers import paths
from matplotlib.figure import Figure

import layershuffle
from layershuffle.api.simulation_sections import simulations
from layershuffle.checkpoints.authors import load_reference
from layershuffle.commands.report import report_command
from layershuffle.commands.simulate import simulate_command
from layershuffle.errors import UserError
from layershuffle.experiments.definition import Evaluation, Experiment, Settings, Setup
from layershuffle.experiments.runs import list_runs, results_of
from layershuffle.files import read_json
from layershuffle.report import collect as collecting
from layershuffle.report import manifest, page, paper
from layershuffle.report.collect import read_files
from layershuffle.report.manifest import Manifest
from layershuffle.report.sections import sections
from layershuffle.report.sections.summary import accuracies
from layershuffle.results import (
    DataInfo,
    Environment,
    EvaluationInfo,
    ModelInfo,
    Results,
    Score,
    estimate,
    record,
    tables,
)
from layershuffle.results.measures import (
    ByClassCounts,
    ByCorruptionCounts,
    Contributions,
    Corruption,
    OrderCounts,
    OrdersOnCorruptions,
    Search,
    SearchStep,
)
from layershuffle.results.measures.by_corruption import ALEXNET

VIT = "vit_base_patch16_224.orig_in21k_ft_in1k"
"""The weights that the paper calls ViT-B/16."""

A_DRAWING = 10_000
"""A PNG file with more bytes than this has something drawn in it."""

LONGEST_COMPLAINT = 500
"""More characters than any complaint about a file has, however long the text is that the file holds."""


# --- Results made by hand -----------------------------------------------------------------------------------


def score(protocol, top1, **variant):
    """The score of one order, except that no order is named where every batch has another."""
    order = None if variant.get("reading") == "per batch" else "0 1"
    return Score(protocol, variant, order, images=50_000, top1=top1, top5=1.0, loss=0.5, position_accuracy=None)


def results(method="layershuffle", seed=0, sequential=0.75, arbitrary=(0.6, 0.7), name=VIT, data="imagenet"):
    """The evaluation of a model with two layers.

    Args:
        method: what trained it.
        seed: of its training.
        sequential: its accuracy in sequential order.
        arbitrary: its accuracy in each of several fixed orders. The first is also that in a new order in every batch.
        name: timm's name of the backbone.
        data: the name of the data set.
    """
    scores = [score("sequential", sequential), score("arbitrary", arbitrary[0], reading="per batch")]
    scores += [score("arbitrary", accuracy, reading="fixed") for accuracy in arbitrary]
    for kept in (1, 2):
        for sequence in ("original", "random"):
            variant = {"kept": kept, "strategy": "random", "sequence": sequence}
            scores.append(score("pruned", 0.1 * kept, **variant))
            scores.append(score("pruned", 0.2 * kept, **variant))
    return Results(
        model=ModelInfo(
            name="best",
            method=method,
            seed=seed,
            sha256=f"{seed}" * 64,
            source="best.ckpt",
            config={"name": name, "num_classes": 1000},
        ),
        data=DataInfo(name=data, images=100, split="test"),
        evaluation=EvaluationInfo(
            protocols=["sequential", "arbitrary", "pruned"], random_orders=2, seed=0, options={"keep": [1, 2]}
        ),
        environment=Environment(
            device="CPU", precision="32-true", torch="2", timm="1", created="2026-01-01T00:00:00+00:00"
        ),
        scores=scores,
    )


def own(method, seed=0, sequential=0.75, arbitrary=(0.6, 0.7), images=(50, 30, 20)):
    """Results on data and with a model of the user's own, with counts by class: half of each class are right.

    The first four arguments are those of ``results``; ``images`` says how many there are of each of three classes.
    """
    found = results(method, seed, sequential, arbitrary, name="vit_small_patch16_224", data="birds")
    right = [count // 2 for count in images]
    # All 25 mistakes about wrens are that they are taken for tits.
    counts = OrderCounts("sequential", {}, 1, right, confused=[(0, 1, 25)])
    return replace(
        found,
        model=replace(found.model, config={"name": "vit_small_patch16_224", "num_classes": 3}),
        data=replace(found.data, classes=["wren", "tit", "jay"]),
        measures=(ByClassCounts(list(images), [counts]),),
    )


# --- What a report holds ------------------------------------------------------------------------------------


def collect(source):
    """The setups of what lies in a file or folder, and a sentence for each file that was left out."""
    return collecting.collect(read_files(source))


def report_of(source):
    """The sections of the report on what lies in a file or folder."""
    setups, complaints = collect(source)
    return sections(setups, complaints)


def section_titled(found, title):
    """The first of these sections whose title starts so."""
    return next(section for section in found if section.title.startswith(title))


def table(found, title, at=0):
    """A table of the section whose title starts so, by default its first; a tuple of text and notes for each cell."""
    rows = section_titled(found, title).parts[at].cells()
    return [[(cell.text, *cell.notes) for cell in row] for row in rows]


# --- Beside the paper ---------------------------------------------------------------------------------------


def test_table_1_is_the_mean_over_seeds_beside_the_papers(tmp_path):
    accuracies = [0.75, 0.76, 0.80]
    for seed, accuracy in enumerate(accuracies):
        results(seed=seed, sequential=accuracy).save(tmp_path / f"{seed}/results.json")
    results("baseline", sequential=0.8261).save(tmp_path / "b/results.json")

    setups, complaints = collect(tmp_path)
    assert not complaints
    made = sections(setups, [])
    in_sequence, new_orders, fixed_orders = table(made, "Table 1")

    # The columns are the kind of order, the baseline and LayerShuffle; the paper has 82.61 and 75.22 in sequence.
    baseline = estimate(setups[0].scores_by_seed("baseline", "sequential"))
    shuffled = estimate(setups[0].scores_by_seed("layershuffle", "sequential"))
    difference = 100 * statistics.mean(accuracies) - 75.22
    assert in_sequence[0] == ("sequential",)  # the only backbone is named once, at the top
    assert in_sequence[1] == (tables.percent(baseline), "paper 82.61 (0.08)", "+0.00")
    assert in_sequence[2] == (tables.percent(shuffled), "paper 75.22 (0.28)", f"{difference:+.2f}")
    assert shuffled.models == 3

    # Accuracies of 60 percent in new orders and of 65 in fixed ones are beside the paper's 0.13 of the baseline.
    assert new_orders[1] == ("60.00", "paper 0.13 (0.03)", "+59.87")
    assert fixed_orders[1][1:] == ("paper 0.13 (0.03)", "+64.87")  # unmarked: one seed says nothing of its spread
    assert new_orders[2][-1].endswith("✱")
    assert "baseline, which has one seed" in " ".join(section_titled(made, "Summary").text)

    of_paper = table(made, "Table 1", at=1)
    assert [row[:2] for row in of_paper] == [
        [("sequential", "ViT-B/16, ImageNet-1k"), ("82.61 (0.08)",)],
        [("arbitrary", "ViT-B/16, ImageNet-1k"), ("0.13 (0.03)",)],
    ]


@pytest.mark.parametrize(
    ("accuracies", "images", "marked"),
    [
        # The paper's mean is 75.22.
        ([0.78, 0.79], 50_000, False),  # two seeds say little of their own spread
        ([0.78, 0.79, 0.785, 0.782, 0.788], 50_000, True),
        ([0.78, 0.79, 0.785, 0.782, 0.788], 200, False),  # so few images could be easy by chance
    ],
)
def test_a_difference_from_the_paper_is_marked_if_few_seeds_or_images_don_t_explain_it(
    tmp_path, accuracies, images, marked
):
    for seed, accuracy in enumerate(accuracies):
        found = results(seed=seed, sequential=accuracy)
        scores = [replace(each, images=images) for each in found.scores]
        replace(found, scores=scores).save(tmp_path / f"{seed}.json")

    in_sequence, *_ = table(report_of(tmp_path), "Table 1")
    _, shuffled = in_sequence
    assert shuffled[-1].endswith("✱") == marked


def test_only_the_papers_own_weights_are_set_beside_the_paper(tmp_path):
    of_paper = [VIT, "deit_base_distilled_patch16_224.fb_in1k", "deit_base_distilled_patch16_224"]
    others = ["vit_base_patch16_224.mae", "vit_base_patch16_224.dino", "vit_base_patch16_224"]
    for name in of_paper + others:
        results(name=name).save(tmp_path / f"{name}.json")

    setups, _ = collect(tmp_path)
    assert {setup.backbone for setup in setups} == {"ViT-B/16", "DeiT-B", *others}


def test_the_authors_checkpoints_are_set_beside_the_paper_unless_they_have_another_shape(tmp_path):
    """Their config has the shape in numbers, also where it is the usual one."""
    config = load_reference(*paths("ShufflingViTForImageClassification")).config
    usual_shape = {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12}
    for name, each in {"whole": config | usual_shape, "small": config}.items():
        found = results()
        replace(found, model=replace(found.model, config=each)).save(tmp_path / f"{name}.json")

    setups, _ = collect(tmp_path)
    # The longer name says how the shape differs.
    whole, small = sorted((setup.backbone for setup in setups), key=len)
    assert whole == "ViT-B/16"
    assert small.startswith(f"ViT-B/16 ({config['depth']} layers, width {config['embed_dim']}")


def test_all_standard_deviations_are_of_samples(tmp_path):
    # Layer 0 runs first in three orders, in which it changes the tokens by 0.1, 0.2 and 0.6. Second it runs in one.
    orders = ["0 1", "0 1", "0 1", "1 0"]
    changes = [[0.1, 0.3], [0.2, 0.4], [0.6, 0.5], [0.7, 0.8]]
    study = replace(
        results(), scores=[], measures=(Contributions(orders, changes=changes),), evaluation=EvaluationInfo()
    )
    study.save(tmp_path / "a.json")

    rows = section_titled(report_of(tmp_path), "What layers change").parts[0].data.texts()
    mean_deviation_and_samples = [row[-3:] for row in rows]
    assert mean_deviation_and_samples[0] == ["0.3", f"{statistics.stdev([0.1, 0.2, 0.6]):.4g}", "3"]
    assert ["0.8", "", "1"] in mean_deviation_and_samples


def test_the_papers_figures():
    # Two backbones, two data sets, two kinds of order and four methods.
    assert len(paper.TABLE_1) == 2 * 2 * 2 * 4
    assert paper.TABLE_1["DeiT-B", "CIFAR-100", "arbitrary", "layershuffle-predict"] == (58.77, 1.18)
    assert paper.TABLE_1["ViT-B/16", "ImageNet-1k", "sequential", "baseline"] == (82.61, 0.08)


# --- Curves -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_rendering")
def test_curves_are_means_of_draws_then_over_seeds(tmp_path):
    for seed in (0, 1):
        found = results(seed=seed)
        others = [each for each in found.scores if each.protocol != "pruned"]
        pruned = [replace(each, top1=each.top1 + 0.02 * seed) for each in found.of("pruned")]
        replace(found, scores=others + pruned).save(tmp_path / f"{seed}.json")

    report_command([str(tmp_path)])

    (data,) = (tmp_path / "report/data").glob("pruning-*")
    rows = list(csv.reader(data.open()))
    assert rows[0] == ["sequence", "method", "layers kept", "mean", "std", "seeds"]
    # With one layer the draws 10 and 20 have the mean 15 for seed 0 and 17 for seed 1; with two, 30 and 32.
    assert rows[1] == ["in original sequence", "layershuffle", "1", "16.00", "1.41", "2"]
    assert rows[4] == ["in random sequence", "layershuffle", "2", "31.00", "1.41", "2"]
    assert (tmp_path / "report/figures" / f"{data.stem}.png").stat().st_size > A_DRAWING
    text = (tmp_path / "report/report.md").read_text()
    assert f"](figures/{data.stem}.png)" in text
    assert "reduced-depth" not in text


@pytest.mark.parametrize("kind", ["", "-predict", "-merged"])
def test_a_reduced_depth_counts_at_its_own_depth(tmp_path, kind):
    found = results(f"reduced-depth-2{kind}")
    with_first_layers = [replace(each, variant=each.variant | {"strategy": "first"}) for each in found.of("pruned")]
    replace(found, scores=found.scores + with_first_layers).save(tmp_path / "a.json")
    results().save(tmp_path / "b.json")

    setups, _ = collect(tmp_path)
    rows = section_titled(sections(setups, []), "Fewer layers").parts[0].data.texts()
    # Of its scores with one layer and with two there are only those with two, whose mean is 30.
    assert [row for row in rows if "reduced" in row[1]] == [
        ["in original sequence", f"reduced-depth{kind}", "2", "30.00", "", "1"],
        ["in random sequence", f"reduced-depth{kind}", "2", "30.00", "", "1"],
    ]


@pytest.mark.parametrize(
    ("protocol", "key", "title"), [("grouped", "steps", "side by side"), ("asynchronous", "in flight", "don't wait")]
)
def test_layers_at_a_time_have_curves_of_all_methods(tmp_path, protocol, key, title):
    for method, top1 in (("baseline", 0.25), ("layershuffle", 0.5)):
        scores = [score("sequential", 0.9)]
        for number in (1, 2):
            for layers in ("random", "random, half left out"):
                variant = {key: number, "layers": layers}
                scores.append(score(protocol, top1, **variant))
                scores.append(score(protocol, top1 - 0.1, **variant))
        replace(own(method), scores=scores).save(tmp_path / f"{method}.json")

    section = next(section for section in report_of(tmp_path) if title in section.title)
    (picture,) = section.parts
    assert picture.data.rows[0] == ["random", "baseline", "1", "20.00", "", "1"]
    panels = picture.draw().axes
    assert len(panels) == 2
    assert panels[0].xaxis_inverted() == (protocol == "grouped")
    assert "deviation" not in picture.caption  # of one seed there is none


# --- What is missing or wrong -------------------------------------------------------------------------------


def test_what_is_missing_or_wrong_is_said_and_the_rest_is_made(tmp_path, capsys):
    # Each of two methods lacks the seed of the other.
    results(seed=0).save(tmp_path / "0/results.json")
    results("baseline", seed=1).save(tmp_path / "1/results.json")
    # A repetition counts once, and files that don't claim to hold results are passed over.
    results(seed=0).save(tmp_path / "again.json")
    (tmp_path / "0/results.json.copy").touch()
    (tmp_path / "cell.json").write_text("{}")
    # A damaged file, one of an older version and two that disagree are warned of.
    whole = (tmp_path / "0/results.json").read_text()
    (tmp_path / "cut.json").write_text(whole[: len(whole) // 2])
    (tmp_path / "old.json").write_text(whole.replace('"layershuffle_results": 2', '"layershuffle_results": 1'))
    results("layershuffle-predict", sequential=0.5).save(tmp_path / "one.json")
    results("layershuffle-predict", sequential=0.6).save(tmp_path / "other.json")

    report_command([str(tmp_path)])

    said = capsys.readouterr().err
    for value in ("cut.json", "old.json", "one.json", "other.json", "layershuffle-predict, seed 0"):
        assert value in said
    assert said.count("warning:") == 3
    made = report_of(tmp_path)
    assert table(made, "Missing") == [[("baseline, seed 0",)], [("layershuffle, seed 1",)]]
    in_sequence, *_ = table(made, "Table 1")
    _, _, shuffled = in_sequence
    one_seed = estimate([results().of("sequential")])
    assert shuffled[0] == tables.percent(one_seed)


def test_files_of_one_model_agree_unless_they_score_the_same_order_otherwise(tmp_path):
    def save(name, accuracy_of_orders):
        scores = []
        for order, top1 in accuracy_of_orders.items():
            scores.append(
                Score(
                    "given", {"order": order}, order, images=10, top1=top1, top5=0.9, loss=1.5, position_accuracy=None
                )
            )
        config = {"name": "vit_tiny_patch16_224", "num_classes": 10}
        found = Results(
            model=ModelInfo(name="best", method="baseline", seed=0, config=config),
            data=DataInfo(name="Digits", images=10, split="test"),
            evaluation=EvaluationInfo(protocols=["given"]),
            environment=Environment(),
            scores=scores,
        )
        found.save(tmp_path / name)

    save("a.json", {"0 1": 0.5})
    save("b.json", {"1 0": 0.6})
    save("c.json", {"0 1": 0.5, "1 0": 0.6})
    save("again.json", {"0 1": 0.5})  # which comes after a.json, and repeats it
    (setup,), complaints = collect(tmp_path)
    assert [list(run.files) for run in setup.runs_of("baseline")] == [["a.json", "b.json", "c.json"]]
    assert not complaints

    save("d.json", {"1 0": 0.7, "0": 0.1})
    (setup,), complaints = collect(tmp_path)
    assert [list(run.files) for run in setup.runs_of("baseline")] == [["a.json"]]
    complaint, *_ = complaints
    for value in ("b.json", "d.json", "baseline", "seed 0", "Digits"):
        assert value in complaint

    with pytest.raises(UserError, match="nowhere"):
        collect(Path("nowhere"))


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match=tmp_path.name):
        report_command([str(tmp_path)])
    (tmp_path / "cut.json").write_text('{"layershuffle_results": 2, ')
    with pytest.raises(UserError, match="cut.json"):
        report_command([str(tmp_path)])


def test_pipes_links_and_folders_with_names_of_results_files_are_left_out(tmp_path):
    results().save(tmp_path / "whole.json")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to("nowhere")
    (tmp_path / "circle.json").symlink_to("circle.json")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    # Python can read this number, but it fits in no float.
    whole = (tmp_path / "whole.json").read_text()
    (tmp_path / "numbers.json").write_text(whole.replace('"top1": [', f'"top1": [{10**400}, ', 1))

    setups, complaints = collect(tmp_path)

    assert len(setups) == 1
    # Nobody can tell whether the pipe or the endless zeros claim to be results, so they are passed over.
    names = sorted(complaint.split()[0] for complaint in complaints)
    assert names == ["circle.json", "folder.json", "link.json", "numbers.json"]
    assert max(map(len, complaints)) < LONGEST_COMPLAINT
    assert not read_files(tmp_path).simulations


# --- The page -----------------------------------------------------------------------------------------------


def test_a_results_file_is_a_whole_report(tmp_path, capsys):
    results().save(tmp_path / "best.json")
    results("baseline").save(tmp_path / "other.json")
    report_command([str(tmp_path / "best.json")])
    text = (tmp_path / "report/report.md").read_text()
    assert text.startswith("# best.json")
    assert "1 method" in text
    assert "other.json" not in text
    with pytest.raises(UserError, match=r"nowhere\.json"):
        report_command([str(tmp_path / "nowhere.json")])


class Page(html.parser.HTMLParser):
    """Notes all tags, ids and links of a page that it is fed."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.ids = []
        self.links = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.links.append(value)


def test_the_page_needs_nothing_else_and_trusts_no_file(tmp_path):
    results(name="<script>alert(1)</script>").save(tmp_path / "a.json")
    report_command([str(tmp_path)])
    text = (tmp_path / "report/index.html").read_text()
    assert "<script>" not in text
    parsed = Page()
    parsed.feed(text)
    assert parsed.tags.count("svg") == 2  # the bars of the summary, and the curves of fewer layers
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert all(link.startswith("#") for link in parsed.links)
    assert {link.removeprefix("#") for link in parsed.links} <= set(parsed.ids)


def test_names_of_files_and_protocols_stay_text(tmp_path):
    """What a stranger calls a file, a method, a class or a protocol never becomes a part of the page."""
    evil = '"><script>alert(1)</script>|x'
    evil_file = '"><script>alert(1)<|script>.json'  # the name of a file has no slash
    found = own(evil)
    evil_score = Score(evil, {evil: 1}, "0 1", images=100, top1=0.5, top5=1.0, loss=0.5, position_accuracy=None)
    evil_data = replace(found.data, name=evil, classes=[evil, "tit", "jay"])
    replace(found, scores=[*found.scores, evil_score], data=evil_data).save(tmp_path / evil_file)

    report_command([str(tmp_path), f"--title={evil}"])

    parsed = Page()
    parsed.feed((tmp_path / "report/index.html").read_text())
    assert "script" not in parsed.tags
    assert len(set(parsed.ids)) == len(parsed.ids)
    text = (tmp_path / "report/report.md").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\|x" in text
    for folder, suffix in (("figures", "png"), ("data", "csv")):
        for path in (tmp_path / "report" / folder).iterdir():
            assert re.fullmatch(rf"[a-z0-9-]+\.{suffix}", path.name)


def test_a_picture_has_a_name_that_is_safe_in_a_page():
    no_data = page.Table("", [], [])
    assert page.Picture(page.slug("A/b", "<c>"), "", Figure, no_data).name == "a-b-c"
    with pytest.raises(ValueError, match="slug"):
        page.Picture('a" onload="b', "", Figure, no_data)


def test_the_page_says_once_what_the_intervals_are(tmp_path):
    found = results("layershuffle-predict")
    scores = [replace(each, position_accuracy=0.5) for each in found.scores]
    replace(found, scores=scores).save(tmp_path / "0.json")
    setups, _ = collect(tmp_path)
    page.write("title", sections(setups, []), tmp_path / "report")
    assert (tmp_path / "report/index.html").read_text().count(tables.ONE_SEED) == 1
    assert (tmp_path / "report/report.md").read_text().count(tables.ONE_SEED) == 1


def test_a_report_is_written_from_python_and_each_file_read_once(tmp_path, monkeypatch):
    results().save(tmp_path / "a.json")
    (tmp_path / "other.json").write_text('{"scenario": 1}')
    files_read = []

    def counting(path, **options):
        files_read.append(Path(path).name)
        return read_json(path, **options)

    for module in (collecting, record):
        monkeypatch.setattr(module, "read_json", counting)
    page_path = layershuffle.write_report(tmp_path, tmp_path / "page", title="My <models>")
    assert page_path == tmp_path / "page/index.html"
    assert "My &lt;models&gt;" in page_path.read_text()
    assert (tmp_path / "page/report.md").is_file()
    assert sorted(files_read) == ["a.json", "other.json"]


# --- Files of one model -------------------------------------------------------------------------------------


def test_results_of_one_model_in_several_files(tmp_path):
    found = results()
    found.save(tmp_path / "results.json")
    landscape = [score("landscape", 0.1 * kept, kept=kept) for kept in (1, 1, 2)]
    about = EvaluationInfo(protocols=["landscape"])
    replace(found, scores=landscape, evaluation=about).save(tmp_path / "landscape.json")

    (setup,), _ = collect(tmp_path)
    (run,) = setup.runs_of("layershuffle")
    assert list(run.files) == ["landscape.json", "results.json"]
    assert len(run.scores("landscape", kept=1)) == 2
    how_it_was_made = section_titled(sections([setup], []), "How")
    assert len(how_it_was_made.parts[0].rows) == 2
    # The two scores of one layer are samples of the same thing, which a file has as columns.
    assert json.loads((tmp_path / "landscape.json").read_text())["scores"][0]["top1"] == [0.1, 0.1]


def test_studies_have_a_picture_each_and_no_part_in_the_tables(tmp_path):
    found = results("baseline")
    swaps = [score("swap-matrix", 0.5, one=one, other=other) for one, other in ((0, 0), (0, 1), (1, 1))]
    about = EvaluationInfo(protocols=["swap-matrix"])
    replace(found, scores=[*found.scores, *swaps], evaluation=about).save(tmp_path / "a.json")
    search = replace(
        found,
        scores=[score("sequential", 0.01), score("search", 0.25)],
        measures=(Search("greedy", 9, trace=[SearchStep("0", 2.0)]),),
        evaluation=EvaluationInfo(),
        data=replace(found.data, split="val"),
    )
    search.save(tmp_path / "b.json")

    made = report_of(tmp_path)
    swap_matrix, search_picture = section_titled(made, "Other orders").parts
    assert [swap_matrix.name, search_picture.name] == ["swap-matrix-a", "search-b"]
    assert swap_matrix.data.texts()[1] == ["swap-matrix", "one=0 other=1", "0 1", "50.00"]
    assert "(val)" in search_picture.caption
    for row in table(made, "Every score"):
        assert "swap-matrix" not in row[0][0]
        assert "search" not in row[0][0]
    # What a search says of its images doesn't count.
    in_sequence, *_ = table(made, "Table 1")
    assert in_sequence[1][0] == tables.percent(estimate([found.of("sequential")]))


def test_a_models_files_count_once(tmp_path):
    one = results("baseline", seed=0)
    other = results("baseline", seed=1, sequential=0.85)
    for name, found in {"a": one, "b": one, "c": other}.items():
        # The protocols' names make the settings differ, so that b.json is no repetition of a.json.
        same_model = replace(found.model, sha256=str(found.model.seed))
        other_settings = EvaluationInfo(protocols=[name])
        replace(found, model=same_model, evaluation=other_settings).save(tmp_path / f"{name}.json")
    in_sequence, *_ = table(report_of(tmp_path), "Every score")
    assert in_sequence[1][0] == tables.percent(estimate([one.of("sequential"), other.of("sequential")]))


# --- The user's own data ------------------------------------------------------------------------------------


def save_two_methods(folder):
    """Write results of two seeds of the baseline and of LayerShuffle, on data of the user's own."""
    for seed in (0, 1):
        baseline = own("baseline", seed, sequential=0.8, arbitrary=(0.3, 0.32))
        baseline.save(folder / f"baseline/{seed}.json")
        shuffled = own("layershuffle", seed, sequential=0.7, arbitrary=(0.6, 0.62))
        shuffled.save(folder / f"layershuffle/{seed}.json")


def test_a_report_on_own_data_is_about_that_and_not_about_the_paper(tmp_path):
    save_two_methods(tmp_path / "birds")

    report_command([str(tmp_path)])

    html_page = (tmp_path / "report/index.html").read_text()
    text = (tmp_path / "report/report.md").read_text()
    # The folder of pictures, the styles and the pictures themselves may have such words in them.
    markdown_to_read = text.replace("figures/", "")
    page_to_read = re.sub("<style>.*?</style>|<svg.*?</svg>", "", html_page, flags=re.DOTALL)
    for word in ("paper", "Table 1", "igure 1", "igures 4", "layershuffle-predict", "missing", "Missing"):
        assert word not in markdown_to_read
        assert word not in page_to_read
    assert text.startswith(f"# {tmp_path.name}\n")
    assert text.count("vit_small_patch16_224") == 1
    assert html_page.count("vit_small_patch16_224") == 1


@pytest.mark.parametrize(("layers", "text"), [(1, "(1 layer)"), (2, "(2 layers)")])
def test_the_title_of_a_backbone_counts_its_layers(tmp_path, layers, text):
    config = {"name": "vit_tiny_patch16_224", "num_classes": 1000, "depth": layers}
    found = results()
    replace(found, model=replace(found.model, config=config)).save(tmp_path / "a.json")
    (setup,), _ = collect(tmp_path)
    assert setup.backbone.endswith(text)


def test_the_summary_has_the_numbers_of_the_tables(tmp_path):
    save_two_methods(tmp_path)
    (setup,), _ = collect(tmp_path)
    summary, *_ = sections([setup], [])

    *bars, chance, most_frequent = summary.parts[0].data.texts()
    drawn = [[order, method, f"{mean} ± {half_interval}"] for order, method, mean, half_interval, _ in bars]
    expected = []
    for method in ("baseline", "layershuffle"):
        accuracy = estimate(setup.scores_by_seed(method, "sequential"))
        expected.append(["sequential order", method, tables.percent(accuracy)])
    for method in ("baseline", "layershuffle"):
        accuracy = estimate(setup.scores_by_seed(method, "arbitrary", reading="fixed"))
        expected.append(["arbitrary order", method, tables.percent(accuracy)])
    assert drawn == expected
    # There are three classes, and the most frequent one has 50 of 100 images.
    assert chance[1:3] == ["chance", "33.33"]
    assert most_frequent[1:3] == ["most frequent class", "50.00"]

    about, interval = summary.text
    assert interval.startswith(tables.SEVERAL_SEEDS)
    assert about.endswith("100 test images in 3 classes, 2 methods each with 2 seeds.")


def test_arbitrary_order_is_read_as_most_methods_have_it(tmp_path):
    own("baseline").save(tmp_path / "baseline.json")
    shuffled = own("layershuffle")
    without_fixed = [each for each in shuffled.scores if each.variant.get("reading") != "fixed"]
    replace(shuffled, scores=without_fixed).save(tmp_path / "layershuffle.json")

    (setup,), _ = collect(tmp_path)
    arbitrary = [bar for bar in accuracies(setup) if bar.order == "arbitrary order"]
    # In new orders per batch both have 0.6. In fixed orders, which only the baseline has, it would have 0.65.
    assert [bar.accuracy.mean for bar in arbitrary] == [0.6, 0.6]


def test_several_setups_are_told_apart_by_what_differs(tmp_path):
    found = own("baseline")
    found.save(tmp_path / "a.json")
    replace(found, data=replace(found.data, name="fish")).save(tmp_path / "b.json")

    setups, _ = collect(tmp_path)
    assert {setup.name for setup in setups} == {"birds", "fish"}
    rows = table(sections(setups, []), "Sequential")
    # The first of a setup's three rows names it in a note.
    assert [row[0][1:] for row in rows] == [("birds",), (), (), ("fish",), (), ()]


def test_an_experiment_gives_its_report_a_title_and_what_is_missing(tmp_path, capsys):
    own("baseline").save(tmp_path / "birds/baseline/seed0/results.json")
    own("layershuffle").save(tmp_path / "birds/layershuffle/seed0/results.json")
    setup = Setup(
        train=Settings(),
        methods={"baseline": Settings(), "layershuffle": Settings()},
        evaluations={"results": Evaluation(), "landscape": Evaluation(methods=["baseline"])},
    )
    experiment = Experiment({"birds": setup}, seeds=[0, 1])
    manifest.write(tmp_path, Manifest("Birds of the garden", results_of(list_runs(experiment))))

    report_command([str(tmp_path)])
    text = (tmp_path / "report/report.md").read_text()
    assert text.startswith("# Birds of the garden\n")
    missing = text[text.index("## Missing") : text.index("## How")]
    assert re.findall(r"birds\S+", missing) == [
        "birds/baseline/seed0/landscape.json",
        "birds/baseline/seed1/results.json",
        "birds/baseline/seed1/landscape.json",
        "birds/layershuffle/seed1/results.json",
    ]

    of_one_seed = Manifest("Birds", results_of(list_runs(experiment, seeds=[0])))
    manifest.write(tmp_path, of_one_seed)
    assert manifest.read(tmp_path) == of_one_seed
    assert of_one_seed.missing(tmp_path) == ["birds/baseline/seed0/landscape.json"]

    (tmp_path / manifest.NAME).write_text("[]")
    with pytest.raises(UserError, match="is not the list of an experiment's results"):
        manifest.read(tmp_path)


# --- Simulations --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("with_rendering")
def test_a_simulation_has_a_section(tmp_path, capsys):
    output = f"--output={tmp_path}/nodes.json"
    simulate_command(["--cluster_sizes=13", "--seeds=0", "--duration=100", "--policies", "any", "chain", output])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("13 chain")]
    # A file that was cut off is passed over.
    (tmp_path / "half.json").write_text((tmp_path / "nodes.json").read_text()[:99])

    report_command([str(tmp_path)])
    text = (tmp_path / "report/report.md").read_text()
    assert text.count("## Simulated nodes: nodes") == 1
    assert row.split() in [line.replace("|", " ").split() for line in text.splitlines()]
    assert (tmp_path / "report/figures/nodes.png").stat().st_size > A_DRAWING

    report_command([str(tmp_path / "nodes.json"), "--folder", str(tmp_path / "alone")])
    assert "## Simulated nodes: nodes" in (tmp_path / "alone/report.md").read_text()


def test_pictures_of_one_name_and_names_without_latin_letters_have_files_of_their_own(tmp_path):
    output = f"--output={tmp_path}/结果.json"
    simulate_command(["--cluster_sizes=13", "--seeds=0", "--duration=100", "--policies=any", output])
    content = (tmp_path / "结果.json").read_text()
    longer_than_a_files_name = f"{'x' * 200}/{'x' * 200}"
    for name in ("a b", "a-b", longer_than_a_files_name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(content)

    report_command([str(tmp_path)])

    assert (tmp_path / "report/report.md").read_text().count("## Simulated nodes: ") == 4
    names = {path.stem for path in (tmp_path / "report/figures").iterdir()}
    assert names == {"picture", "a-b", "a-b-2", "x" * page.LONGEST_NAME}
    labels = re.findall(r'aria-label="([^"]*)"', (tmp_path / "report/index.html").read_text())
    assert sorted(labels) == sorted(names)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["outcomes"], []),
        (["outcomes", 0, "nodes"], -1),
        (["outcomes", 0, "policy"], "x" * 10**6),
        (["outcomes", 0, "seeds"], []),
        (["outcomes", 0, "seeds", 0, "share"], "a text"),
        (["outcomes", 0, "seeds", 0, "share"], 10**400),
        (["outcomes", 0, "seeds", 0, "latency"], [1.0]),
        (["outcomes", 0, "seeds", 0, "latency", 1], None),
        (["scenario"], []),
        (["scenario", "layers"], "<b>"),
        (["scenario", "<script>"], 1),
    ],
)
def test_a_simulation_that_can_not_be_is_left_out(tmp_path, place, value):
    """Of two files, one has a value at one place of its JSON that no simulation leaves."""
    seed = {"throughput": 1.0, "share": float("nan"), "missed": 0, "failed": 0.0, "latency": [1, 2, float("nan")]}
    content = {"scenario": {"layers": 12}, "outcomes": [{"nodes": 3, "policy": "any", "seeds": [seed]}]}
    (tmp_path / "whole.json").write_text(json.dumps(content))
    *keys_of_part, last_key = place
    part = content
    for key in keys_of_part:
        part = part[key]
    part[last_key] = value
    (tmp_path / "damaged.json").write_text(json.dumps(content))

    sections, complaints = simulations(read_files(tmp_path).simulations)

    assert [section.title for section in sections] == ["Simulated nodes: whole"]
    (complaint,) = complaints
    assert complaint.startswith("damaged.json ")
    assert len(complaint) < LONGEST_COMPLAINT


# --- Classes and corruptions --------------------------------------------------------------------------------


def test_of_many_classes_a_report_shows_the_worst(tmp_path):
    # Of 10 images of a class 0 to 8 are right, so that at most 80 percent of a class are.
    right = [index % 9 for index in range(60)]
    names = [f"bird {index}" for index in range(60)]
    found = own("baseline")
    counts = ByClassCounts([10] * 60, [OrderCounts("sequential", {}, 1, right, confused=[])])
    data = replace(found.data, classes=names)
    replace(found, data=data, measures=(counts,)).save(tmp_path / "baseline/0.json")

    rows = table(report_of(tmp_path), "Accuracy of each class")
    assert len(rows) == 50
    shown = {row[0][0] for row in rows}
    best = {name for name, count in zip(names, right) if count == 8}
    assert not best & shown


def test_the_accuracy_of_each_class_is_the_mean_over_seeds(tmp_path):
    for seed in (0, 1):
        found = own("baseline", seed)
        # Of 20 jays none is right with seed 0, and half of them with seed 1.
        found.measure(ByClassCounts).orders[0].right[2] = 10 * seed
        found.save(tmp_path / f"{seed}.json")
    assert table(report_of(tmp_path), "Accuracy of each class") == [
        [("jay",), ("20",), ("25.00",)],
        [("wren",), ("50",), ("50.00",)],
        [("tit",), ("30",), ("50.00",)],
    ]


def test_skewed_classes_have_means_over_classes(tmp_path):
    for seed, balanced in ((0, 0.4), (1, 0.6)):
        found = own("baseline", seed)
        counts = found.measure(ByClassCounts)
        with_means = replace(counts.orders[0], balanced_accuracy=balanced, macro_f1=0.3)
        replace(found, measures=(replace(counts, orders=[with_means]),)).save(tmp_path / f"{seed}.json")
    made = report_of(tmp_path)
    # Of 100 images in classes of 50, 30 and 20, half of each class are right.
    assert table(made, "Accuracy of each class") == [
        [("baseline, sequential",), ("50.00",), ("50.00",), ("30.00",)],
    ]
    assert len(table(made, "Accuracy of each class", at=1)) == 3


def test_confusions_of_several_methods_are_folded(tmp_path):
    counts = ByClassCounts([10] * 60, [OrderCounts("sequential", {}, 1, [9] * 60, confused=[(0, 1, 1)])])

    def pictures_after_saving(method):
        """The section on classes and its pictures, with the results of another method."""
        found = own(method)
        data = replace(found.data, classes=None)
        replace(found, data=data, measures=(counts,)).save(tmp_path / f"{method}.json")
        section = section_titled(report_of(tmp_path), "Accuracy of each class")
        return section, [part for part in section.parts if isinstance(part, page.Picture)]

    _, pictures = pictures_after_saving("baseline")
    assert [picture.folded for picture in pictures] == [False]
    section, pictures = pictures_after_saving("layershuffle")
    assert [picture.folded for picture in pictures] == [True, True]
    # So many classes have bars for the mistakes, and no matrix with rows.
    assert "row" not in pictures[0].caption

    page.write("title", [section], tmp_path / "report")
    text = (tmp_path / "report/index.html").read_text()
    for picture in pictures:
        assert f"<summary>{picture.caption}</summary>" in text
        assert f"<figcaption>{picture.caption}" not in text


def corrupted(names, right, orders=("sequential",), **changes):
    """Of 100 images of each corruption and severity so many are right in each order, 10 more in each next order.

    Further arguments are those of ``own``.
    """
    corruptions = []
    for name in names:
        corruptions += [Corruption(name, severity, 100) for severity in range(1, 6)]
    counts = []
    for place, protocol in enumerate(orders):
        right_in_order = [right + 10 * place] * len(corruptions)
        counts.append(OrdersOnCorruptions(protocol, {}, 1, right_in_order))
    return replace(own(**changes), measures=(ByCorruptionCounts(corruptions, counts),))


def test_errors_on_corruptions_are_means_over_seeds_beside_those_of_other_methods(tmp_path):
    orders = ("sequential", "backwards")
    corrupted(["fog", "snow"], 20, orders, method="baseline", seed=0).save(tmp_path / "0.json")
    corrupted(["fog", "snow"], 30, orders, method="baseline", seed=1).save(tmp_path / "1.json")
    corrupted(["fog", "snow"], 50, method="layershuffle").save(tmp_path / "2.json")
    # On other corruptions, the mean over the seeds would be one over other images.
    corrupted(["frost"], 90, method="layershuffle", seed=1).save(tmp_path / "3.json")

    made = report_of(tmp_path)
    section = section_titled(made, "Error on each corruption")
    rows = table(made, "Error on each corruption")
    # The baseline's errors are 80 and 70 percent in sequence, 70 and 60 backwards.
    assert rows == [[(name,), ("75.00", "backwards 65.00"), ("50.00",)] for name in ("fog", "snow", "mean")]
    assert section.text == ["Left out: 1 evaluation on other corruptions than the first one's."]
    errors, picture = section.parts
    assert "mCE" not in errors.caption
    assert picture.data.rows[-1] == ["backwards", "baseline", "mean", "65.00"]

    sequential, backwards = picture.draw().axes
    assert [sequential.get_title(), backwards.get_title()] == ["sequential", "backwards"]
    # Each method has three bars: fog, snow and their mean. LayerShuffle didn't run backwards.
    assert [bar.get_width() for bar in sequential.patches] == pytest.approx([75] * 3 + [50] * 3)
    assert [bar.get_width() for bar in backwards.patches] == pytest.approx([65] * 3 + [math.nan] * 3, nan_ok=True)
    assert not any(section.title == "Other orders" for section in made)


def test_the_mean_corruption_error_has_a_row_but_no_bar(tmp_path):
    found = corrupted(ALEXNET, 40, method="baseline")
    found.save(tmp_path / "0.json")
    errors, picture = section_titled(report_of(tmp_path), "Error on each corruption").parts
    # It is the mean of the errors, here 0.6 on each corruption, in proportion to those of AlexNet.
    expected = 100 * statistics.mean(0.6 / of_alexnet for of_alexnet in ALEXNET.values())
    assert errors.texts()[-2:] == [["mean", "60.00"], ["mCE", f"{expected:.2f}"]]
    assert "AlexNet" in errors.caption

    (of_report,) = picture.draw().axes
    assert [label.get_text() for label in of_report.get_yticklabels()] == [*ALEXNET, "mean"]
    (of_model,) = found.measures[0].figure(found).axes
    assert len(of_model.patches) == len(ALEXNET) + 1  # and one for their mean


# --- Captions -----------------------------------------------------------------------------------------------


def test_an_interval_that_tells_nothing_is_explained_where_it_stands(tmp_path):
    results(arbitrary=(0.1, 0.7)).save(tmp_path / "wide.json")
    made = report_of(tmp_path)
    fixed_orders = table(made, "Table 1")[2]
    assert fixed_orders[1][0] == "40.00 ± n/a"
    assert tables.TOO_WIDE in section_titled(made, "Table 1").parts[0].caption
    arbitrary_order = section_titled(made, "Summary").parts[0].data.rows[1]
    assert arbitrary_order[3] == "n/a"

    results(arbitrary=(0.6, 0.7)).save(tmp_path / "wide.json")
    table_1 = section_titled(report_of(tmp_path), "Table 1").parts[0]
    assert ("± n/a" in table_1.texts()[2][1]) == (tables.TOO_WIDE in table_1.caption)


def test_captions_say_what_the_numbers_are(tmp_path):
    def captions():
        """The first sentence of the first caption in each of three sections."""
        made = report_of(tmp_path)
        whole = [section_titled(made, title).parts[0].caption for title in ("Sequential and", "Merged", "Every")]
        return [caption.split(".")[0] for caption in whole]

    def small_results(method, data):
        return results(method, name="vit_small_patch16_224", data=data)

    for method in ("baseline", "baseline-merged"):
        with_several_labels(small_results(method, "scenes")).save(tmp_path / f"scenes-{method}.json")
    assert captions() == ["Mean average precision in percent", "mAP in percent", "mAP in percent, by protocol"]

    for method in ("baseline", "baseline-merged"):
        small_results(method, "birds").save(tmp_path / f"birds-{method}.json")
    assert captions()[:2] == [
        "Top-1 accuracy, or mean average precision where images have several labels, in percent",
        "Top-1, or mAP where images have several labels, in percent",
    ]

    for method in ("baseline", "baseline-merged"):
        (tmp_path / f"scenes-{method}.json").unlink()
    assert captions() == ["Top-1 accuracy in percent", "Top-1 in percent", "Top-1 in percent, by protocol"]
