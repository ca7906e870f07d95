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


def score(protocol, top1, **variant):
    order = None if variant.get("reading") == "per batch" else "0 1"
    return Score(protocol, variant, order, 50_000, top1, 1.0, 0.5, None)


def results(method="layershuffle", seed=0, sequential=0.75, arbitrary=(0.6, 0.7), name=VIT, data="imagenet", **changes):
    scores = [score("sequential", sequential), score("arbitrary", arbitrary[0], reading="per batch")]
    scores += [score("arbitrary", value, reading="fixed") for value in arbitrary]
    for kept in (1, 2):
        for sequence in ("original", "random"):
            for value in (0.1 * kept, 0.2 * kept):
                scores.append(score("pruned", value, kept=kept, strategy="random", sequence=sequence))
    model = ModelInfo(
        name="best",
        method=method,
        seed=seed,
        sha256=f"{seed}" * 64,
        source="best.ckpt",
        config={"name": name, "num_classes": 1000},
    )
    protocols = ["sequential", "arbitrary", "pruned"]
    settings = EvaluationInfo(protocols=protocols, random_orders=2, seed=0, options={"keep": [1, 2]})
    environment = Environment(
        device="CPU", precision="32-true", torch="2", timm="1", created="2026-01-01T00:00:00+00:00"
    )
    info = DataInfo(name=data, images=100, split="test")
    return replace(Results(model, info, settings, environment, scores), **changes)


def collect(source):
    """The setups of what lies in a file or folder, and a sentence for each file that was left out."""
    return collecting.collect(read_files(source))


def table(found, title, at=0):
    """A table of the report as texts, with its notes."""
    section = next(s for s in found if s.title.startswith(title))
    return [[(cell.text, *cell.notes) for cell in row] for row in section.parts[at].cells()]


def test_table_1_is_the_mean_over_seeds_beside_the_papers(tmp_path):
    accuracies = [0.75, 0.76, 0.80]
    for seed, value in enumerate(accuracies):
        results(seed=seed, sequential=value).save(tmp_path / f"{seed}/results.json")
    results("baseline", sequential=0.8261).save(tmp_path / "b/results.json")
    setups, complaints = collect(tmp_path)
    assert not complaints
    rows = table(sections(setups, []), "Table 1")
    mean = 100 * statistics.mean(accuracies)
    estimates = {m: estimate(setups[0].scores_by_seed(m, "sequential")) for m in ("baseline", "layershuffle")}
    assert rows[0][0] == ("sequential",)  # the only backbone is named once, at the top
    assert rows[0][1] == (tables.percent(estimates["baseline"]), "paper 82.61 (0.08)", "+0.00")
    assert rows[0][2] == (tables.percent(estimates["layershuffle"]), "paper 75.22 (0.28)", f"{mean - 75.22:+.2f}")
    assert estimates["layershuffle"].models == 3
    assert rows[1][1] == ("60.00", "paper 0.13 (0.03)", "+59.87")
    assert rows[2][1][1:] == ("paper 0.13 (0.03)", "+64.87")  # one seed says nothing of its spread
    assert rows[1][2][-1].endswith("✱")
    summary = next(s for s in sections(setups, []) if s.title == "Summary")
    assert "baseline, which has one seed" in " ".join(summary.text)
    theirs = table(sections(setups, []), "Table 1", at=1)
    assert [row[:2] for row in theirs] == [
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
    for seed, value in enumerate(accuracies):
        found = results(seed=seed, sequential=value)
        replace(found, scores=[replace(s, images=images) for s in found.scores]).save(tmp_path / f"{seed}.json")
    cell = table(sections(*collect(tmp_path)), "Table 1")[0][1]
    assert cell[-1].endswith("✱") == marked


def test_only_the_papers_own_weights_are_set_beside_the_paper(tmp_path):
    names = [VIT, "deit_base_distilled_patch16_224.fb_in1k", "deit_base_distilled_patch16_224"]
    others = ["vit_base_patch16_224.mae", "vit_base_patch16_224.dino", "vit_base_patch16_224"]
    for name in names + others:
        results(name=name).save(tmp_path / f"{name}.json")
    setups, _ = collect(tmp_path)
    assert {setup.backbone for setup in setups} == {"ViT-B/16", "DeiT-B", *others}


def test_the_authors_checkpoints_are_set_beside_the_paper_unless_they_have_another_shape(tmp_path):
    """Their config has the shape in numbers, also where it is the usual one."""
    config = load_reference(*paths("ShufflingViTForImageClassification")).config
    whole = config | {"img_size": 224, "patch_size": 16, "embed_dim": 768, "depth": 12}
    for name, each in {"whole": whole, "small": config}.items():
        found = results()
        replace(found, model=replace(found.model, config=each)).save(tmp_path / f"{name}.json")
    small, whole = sorted((setup.backbone for setup in collect(tmp_path)[0]), key=len, reverse=True)
    assert whole == "ViT-B/16"
    assert small.startswith(f"ViT-B/16 ({config['depth']} layers, width {config['embed_dim']}")


def test_all_standard_deviations_are_of_samples(tmp_path):
    changes = [[0.1, 0.3], [0.2, 0.4], [0.6, 0.5]]
    measure = Contributions(["0 1"] * 3 + ["1 0"], changes=[*changes, [0.7, 0.8]])
    found = results()
    replace(found, scores=[], measures=(measure,), evaluation=EvaluationInfo()).save(tmp_path / "a.json")
    section = next(s for s in sections(*collect(tmp_path)) if s.title.startswith("What layers change"))
    rows = [[cell.text for cell in row] for row in section.parts[0].data.cells()]
    assert rows[0][-3:] == ["0.3", f"{statistics.stdev([0.1, 0.2, 0.6]):.4g}", "3"]
    assert ["0.8", "", "1"] in [row[-3:] for row in rows]


def test_the_papers_figures():
    assert len(paper.TABLE_1) == 2 * 2 * 2 * 4
    assert paper.TABLE_1["DeiT-B", "CIFAR-100", "arbitrary", "layershuffle-predict"] == (58.77, 1.18)
    assert paper.TABLE_1["ViT-B/16", "ImageNet-1k", "sequential", "baseline"] == (82.61, 0.08)


def test_curves_are_means_of_draws_then_over_seeds(tmp_path):
    for seed in (0, 1):
        found = results(seed=seed)
        scores = [replace(s, top1=s.top1 + 0.02 * seed) if s.protocol == "pruned" else s for s in found.scores]
        replace(found, scores=scores).save(tmp_path / f"{seed}.json")
    report_command([str(tmp_path)])
    (data,) = (tmp_path / "report/data").glob("pruning-*")
    rows = list(csv.reader(data.open()))
    assert rows[0] == ["sequence", "method", "layers kept", "mean", "std", "seeds"]
    assert rows[1] == ["in original sequence", "layershuffle", "1", "16.00", "1.41", "2"]
    assert rows[4] == ["in random sequence", "layershuffle", "2", "31.00", "1.41", "2"]
    assert (tmp_path / "report/figures" / f"{data.stem}.png").stat().st_size > 10_000
    page = (tmp_path / "report/report.md").read_text()
    assert f"](figures/{data.stem}.png)" in page
    assert "reduced-depth" not in page


@pytest.mark.parametrize("kind", ["", "-predict", "-merged"])
def test_a_reduced_depth_counts_at_its_own_depth(tmp_path, kind):
    found = results(f"reduced-depth-2{kind}")
    first = [replace(s, variant=s.variant | {"strategy": "first"}) for s in found.scores if s.protocol == "pruned"]
    replace(found, scores=found.scores + first).save(tmp_path / "a.json")
    results().save(tmp_path / "b.json")
    section = next(s for s in sections(collect(tmp_path)[0], []) if s.title.startswith("Fewer layers"))
    reduced = [[c.text for c in row] for row in section.parts[0].data.cells() if "reduced" in row[1].text]
    assert reduced == [
        ["in original sequence", f"reduced-depth{kind}", "2", "30.00", "", "1"],
        ["in random sequence", f"reduced-depth{kind}", "2", "30.00", "", "1"],
    ]


def test_what_is_missing_or_wrong_is_said_and_the_rest_is_made(tmp_path, capsys):
    results(seed=0).save(tmp_path / "0/results.json")
    results("baseline", seed=1).save(tmp_path / "1/results.json")
    (tmp_path / "0/results.json.copy").touch()
    whole = (tmp_path / "0/results.json").read_text()
    (tmp_path / "cut.json").write_text(whole[: len(whole) // 2])
    (tmp_path / "old.json").write_text(whole.replace('"layershuffle_results": 2', '"layershuffle_results": 1'))
    (tmp_path / "cell.json").write_text("{}")
    results("layershuffle-predict", sequential=0.5).save(tmp_path / "one.json")
    results("layershuffle-predict", sequential=0.6).save(tmp_path / "other.json")
    results(seed=0).save(tmp_path / "again.json")
    report_command([str(tmp_path)])
    said = capsys.readouterr().err
    for value in ("cut.json", "old.json", "one.json", "other.json", "layershuffle-predict, seed 0"):
        assert value in said
    assert said.count("warning:") == 3
    rows = table(sections(*collect(tmp_path)), "Missing")
    assert rows == [[("baseline, seed 0",)], [("layershuffle, seed 1",)]]
    one_seed = estimate([results().of("sequential")])
    assert table(sections(*collect(tmp_path)), "Table 1")[0][2][0] == tables.percent(one_seed)


def test_files_of_one_model_agree_unless_they_score_the_same_order_otherwise(tmp_path):
    def file(name, *scored):
        scores = [Score("given", {"order": order}, order, 10, top1, 0.9, 1.5, None) for order, top1 in scored]
        config = {"name": "vit_tiny_patch16_224", "num_classes": 10}
        model = ModelInfo(name="best", method="baseline", seed=0, config=config)
        data = DataInfo(name="Digits", images=10, split="test")
        Results(model, data, EvaluationInfo(protocols=["given"]), Environment(), scores).save(tmp_path / name)

    file("a.json", ("0 1", 0.5))
    file("b.json", ("1 0", 0.6))
    file("c.json", ("0 1", 0.5), ("1 0", 0.6))
    file("again.json", ("0 1", 0.5))
    (setup,), complaints = collect(tmp_path)
    assert [list(run.files) for run in setup.runs_of("baseline")] == [["a.json", "b.json", "c.json"]]
    assert not complaints
    file("d.json", ("1 0", 0.7), ("0", 0.1))
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
    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.links = [], [], []

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
    assert parsed.tags.count("svg") == 2
    assert len(set(parsed.ids)) == len(parsed.ids)
    assert all(link.startswith("#") for link in parsed.links)
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)


def test_names_of_files_and_protocols_stay_text(tmp_path):
    """What a stranger calls a file, a method, a class or a protocol never becomes a part of the page."""
    evil = '"><script>alert(1)</script>|x'
    found = own(evil)
    scores = [*found.scores, Score(evil, {evil: 1}, "0 1", 100, 0.5, 1.0, 0.5, None)]
    named = replace(found.data, name=evil, classes=[evil, "tit", "jay"])
    name = '"><script>alert(1)<|script>.json'
    replace(found, scores=scores, data=named).save(tmp_path / name)
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
    table = page.Table("", [], [])
    assert page.Picture(page.slug("A/b", "<c>"), "", Figure, table).name == "a-b-c"
    with pytest.raises(ValueError, match="slug"):
        page.Picture('a" onload="b', "", Figure, table)


def test_results_of_one_model_in_several_files(tmp_path):
    found = results()
    landscape = [score("landscape", 0.1 * kept, kept=kept) for kept in (1, 1, 2)]
    found.save(tmp_path / "results.json")
    replace(found, scores=landscape, evaluation=EvaluationInfo(protocols=["landscape"])).save(
        tmp_path / "landscape.json"
    )
    (setup,) = collect(tmp_path)[0]
    (run,) = setup.runs_of("layershuffle")
    assert list(run.files) == ["landscape.json", "results.json"]
    assert len(run.scores("landscape", kept=1)) == 2
    made = next(s for s in sections([setup], []) if s.title.startswith("How"))
    assert len(made.parts[0].rows) == 2
    assert json.loads((tmp_path / "landscape.json").read_text())["scores"][0]["top1"] == [0.1, 0.1]


def test_studies_have_a_picture_each_and_no_part_in_the_tables(tmp_path):
    found = results("baseline")
    swaps = [score("swap-matrix", 0.5, one=one, other=other) for one in range(2) for other in range(one, 2)]
    replace(found, scores=[*found.scores, *swaps], evaluation=EvaluationInfo(protocols=["swap-matrix"])).save(
        tmp_path / "a.json"
    )
    measure = Search("greedy", 9, trace=[SearchStep("0", 2.0)])
    validation = replace(found.data, split="val")
    searched = replace(found, measures=(measure,), evaluation=EvaluationInfo(), data=validation)
    replace(searched, scores=[score("sequential", 0.01), score("search", 0.25)]).save(tmp_path / "b.json")
    made = sections(*collect(tmp_path))
    others = next(s for s in made if s.title.startswith("Other orders"))
    assert [part.name for part in others.parts] == ["swap-matrix-a", "search-b"]
    assert [[c.text for c in row] for row in others.parts[0].data.cells()][1] == [
        "swap-matrix",
        "one=0 other=1",
        "0 1",
        "50.00",
    ]
    assert "(val)" in others.parts[1].caption
    every = table(made, "Every score")
    assert not any("swap-matrix" in row[0][0] or "search" in row[0][0] for row in every)
    of_a = estimate([found.of("sequential")])
    # What a search says of its images doesn't count.
    assert table(made, "Table 1")[0][1][0] == tables.percent(of_a)


def test_a_models_files_count_once(tmp_path):
    one, other = results("baseline", seed=0), results("baseline", seed=1, sequential=0.85)
    for name, found in {"a": one, "b": one, "c": other}.items():
        named = replace(
            found,
            model=replace(found.model, sha256=str(found.model.seed)),
            evaluation=EvaluationInfo(protocols=[name]),
        )
        named.save(tmp_path / f"{name}.json")
    rows = table(sections(*collect(tmp_path)), "Every score")
    assert rows[0][1][0] == tables.percent(estimate([one.of("sequential"), other.of("sequential")]))


def own(method, seed=0, sequential=0.75, arbitrary=(0.6, 0.7), images=(50, 30, 20)):
    """Results on data and with a model of the user's own."""
    found = results(method, seed, sequential, arbitrary, name="vit_small_patch16_224", data="birds")
    right = [count // 2 for count in images]
    counts = OrderCounts("sequential", {}, 1, right, [(0, 1, 25)])
    return replace(
        found,
        model=replace(found.model, config={"name": "vit_small_patch16_224", "num_classes": 3}),
        data=replace(found.data, classes=["wren", "tit", "jay"]),
        measures=(ByClassCounts(list(images), [counts]),),
    )


def test_a_report_on_own_data_is_about_that_and_not_about_the_paper(tmp_path):
    for seed in (0, 1):
        own("baseline", seed, 0.8, (0.3, 0.32)).save(tmp_path / f"birds/baseline/{seed}.json")
        own("layershuffle", seed, 0.7, (0.6, 0.62)).save(tmp_path / f"birds/layershuffle/{seed}.json")
    report_command([str(tmp_path)])
    page = (tmp_path / "report/index.html").read_text()
    text = (tmp_path / "report/report.md").read_text()
    for word in ("paper", "Table 1", "igure 1", "igures 4", "layershuffle-predict", "missing", "Missing"):
        assert word not in text.replace("figures/", "")
        assert word not in re.sub("<style>.*?</style>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    assert text.startswith(f"# {tmp_path.name}\n")
    assert text.count("vit_small_patch16_224") == 1
    assert page.count("vit_small_patch16_224") == 1


def test_a_report_is_written_from_python_and_each_file_read_once(tmp_path, monkeypatch):
    results().save(tmp_path / "a.json")
    (tmp_path / "other.json").write_text('{"scenario": 1}')
    read = []

    def counting(path, **options):
        read.append(Path(path).name)
        return read_json(path, **options)

    for module in (collecting, record):
        monkeypatch.setattr(module, "read_json", counting)
    page_path = layershuffle.write_report(tmp_path, tmp_path / "page", title="My <models>")
    assert page_path == tmp_path / "page/index.html"
    assert "My &lt;models&gt;" in page_path.read_text()
    assert (tmp_path / "page/report.md").is_file()
    assert sorted(read) == ["a.json", "other.json"]


@pytest.mark.parametrize(("layers", "text"), [(1, "(1 layer)"), (2, "(2 layers)")])
def test_the_title_of_a_backbone_counts_its_layers(tmp_path, layers, text):
    config = {"name": "vit_tiny_patch16_224", "num_classes": 1000, "depth": layers}
    found = results()
    replace(found, model=replace(found.model, config=config)).save(tmp_path / "a.json")
    (setup,), _ = collect(tmp_path)
    assert setup.backbone.endswith(text)


def test_a_simulation_has_a_section(tmp_path, capsys):
    output = ["--output", str(tmp_path / "nodes.json")]
    simulate_command(["--cluster_sizes=13", "--seeds=0", "--duration=100", "--policies", "any", "chain", *output])
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("13 chain")]
    (tmp_path / "half.json").write_text((tmp_path / "nodes.json").read_text()[:99])
    report_command([str(tmp_path)])
    text = (tmp_path / "report/report.md").read_text()
    assert text.count("## Simulated nodes: nodes") == 1
    assert row.split() in [line.replace("|", " ").split() for line in text.splitlines()]
    assert (tmp_path / "report/figures/nodes.png").stat().st_size > 10_000
    report_command([str(tmp_path / "nodes.json"), "--folder", str(tmp_path / "alone")])
    assert "## Simulated nodes: nodes" in (tmp_path / "alone/report.md").read_text()


def test_pictures_of_one_name_and_names_without_latin_letters_have_files_of_their_own(tmp_path):
    simulate_command(
        ["--cluster_sizes=13", "--seeds=0", "--duration=100", "--policies=any", f"--output={tmp_path}/结果.json"]
    )
    content = (tmp_path / "结果.json").read_text()
    for name in ("a b", "a-b", f"{'x' * 200}/{'x' * 200}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(content)
    report_command([str(tmp_path)])
    assert (tmp_path / "report/report.md").read_text().count("## Simulated nodes: ") == 4
    names = {path.stem for path in (tmp_path / "report/figures").iterdir()}
    assert names == {"picture", "a-b", "a-b-2", "x" * 100}
    page_ids = re.findall(r'aria-label="([^"]*)"', (tmp_path / "report/index.html").read_text())
    assert sorted(page_ids) == sorted(names)


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
    seed = {"throughput": 1.0, "share": float("nan"), "missed": 0, "failed": 0.0, "latency": [1, 2, float("nan")]}
    content = {"scenario": {"layers": 12}, "outcomes": [{"nodes": 3, "policy": "any", "seeds": [seed]}]}
    (tmp_path / "whole.json").write_text(json.dumps(content))
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (tmp_path / "damaged.json").write_text(json.dumps(content))
    sections, complaints = simulations(read_files(tmp_path).simulations)
    assert [section.title for section in sections] == ["Simulated nodes: whole"]
    (complaint,) = complaints
    assert complaint.startswith("damaged.json ")
    assert len(complaint) < 500


def test_pipes_links_and_folders_with_names_of_results_files_are_left_out(tmp_path):
    results().save(tmp_path / "whole.json")
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "link.json").symlink_to("nowhere")
    (tmp_path / "circle.json").symlink_to("circle.json")
    (tmp_path / "zeros.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "numbers.json").write_text(
        (tmp_path / "whole.json").read_text().replace('"top1": [', f'"top1": [{10**400}, ', 1)
    )
    setups, complaints = collect(tmp_path)
    assert len(setups) == 1
    names = sorted(complaint.split()[0] for complaint in complaints)
    assert names == ["circle.json", "folder.json", "link.json", "numbers.json"]
    assert max(map(len, complaints)) < 500
    assert not read_files(tmp_path).simulations


def test_of_many_classes_a_report_shows_the_worst(tmp_path):
    classes = 60
    right = [index % 9 for index in range(classes)]
    measures = (ByClassCounts([10] * classes, [OrderCounts("sequential", {}, 1, right, [])]),)
    names = [f"bird {index}" for index in range(classes)]
    found = own("baseline")
    replace(found, data=replace(found.data, classes=names), measures=measures).save(tmp_path / "baseline/0.json")
    rows = table(sections(*collect(tmp_path)), "Accuracy of each class")
    assert len(rows) == 50
    assert not {names[index] for index in range(classes) if right[index] == 8} & {row[0][0] for row in rows}


def test_the_summary_has_the_numbers_of_the_tables(tmp_path):
    for seed in (0, 1):
        own("baseline", seed, 0.8, (0.3, 0.32)).save(tmp_path / f"baseline/{seed}.json")
        own("layershuffle", seed, 0.7, (0.6, 0.62)).save(tmp_path / f"layershuffle/{seed}.json")
    (setup,), _ = collect(tmp_path)
    summary = sections([setup], [])[0]
    expected = []
    for order, protocol, variant in (
        ("sequential", "sequential", {}),
        ("arbitrary", "arbitrary", {"reading": "fixed"}),
    ):
        for method in ("baseline", "layershuffle"):
            accuracy = tables.percent(estimate(setup.scores_by_seed(method, protocol, **variant)))
            expected.append([f"{order} order", method, accuracy])
    *bars, chance, most_frequent = [[cell.text for cell in row] for row in summary.parts[0].data.cells()]
    assert [[order, method, f"{mean} ± {half}"] for order, method, mean, half, _ in bars] == expected
    assert chance[1:3] == ["chance", "33.33"]
    assert most_frequent[1:3] == ["most frequent class", "50.00"]
    about, interval = summary.text
    assert interval.startswith(tables.SEVERAL_SEEDS)
    assert about.endswith("100 test images in 3 classes, 2 methods each with 2 seeds.")


def test_arbitrary_order_is_read_as_most_methods_have_it(tmp_path):
    own("baseline").save(tmp_path / "baseline.json")
    other = own("layershuffle")
    per_batch = [score for score in other.scores if score.variant.get("reading") != "fixed"]
    replace(other, scores=per_batch).save(tmp_path / "layershuffle.json")
    (setup,), _ = collect(tmp_path)
    arbitrary = [bar for bar in accuracies(setup) if bar.order == "arbitrary order"]
    assert [bar.accuracy.mean for bar in arbitrary] == [0.6, 0.6]


def test_several_setups_are_told_apart_by_what_differs(tmp_path):
    own("baseline").save(tmp_path / "a.json")
    other = own("baseline")
    replace(other, data=replace(other.data, name="fish")).save(tmp_path / "b.json")
    setups, _ = collect(tmp_path)
    assert {setup.name for setup in setups} == {"birds", "fish"}
    rows = table(sections(setups, []), "Sequential")
    assert [row[0][1:] for row in rows] == [("birds",), (), (), ("fish",), (), ()]


def test_an_experiment_gives_its_report_a_title_and_what_is_missing(tmp_path, capsys):
    own("baseline").save(tmp_path / "birds/baseline/seed0/results.json")
    own("layershuffle").save(tmp_path / "birds/layershuffle/seed0/results.json")
    experiment = Experiment(
        {
            "birds": Setup(
                train=Settings(),
                methods={"baseline": Settings(), "layershuffle": Settings()},
                evaluations={"results": Evaluation(), "landscape": Evaluation(methods=["baseline"])},
            )
        },
        seeds=[0, 1],
    )
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
    some = Manifest("Birds", results_of(list_runs(experiment, seeds=[0])))
    manifest.write(tmp_path, some)
    assert manifest.read(tmp_path) == some
    assert some.missing(tmp_path) == ["birds/baseline/seed0/landscape.json"]
    (tmp_path / manifest.NAME).write_text("[]")
    with pytest.raises(UserError, match="is not the list of an experiment's results"):
        manifest.read(tmp_path)


def test_the_accuracy_of_each_class_is_the_mean_over_seeds(tmp_path):
    for seed in (0, 1):
        found = own("baseline", seed)
        found.measure(ByClassCounts).orders[0].right[2] = 10 * seed
        found.save(tmp_path / f"{seed}.json")
    rows = table(sections(*collect(tmp_path)), "Accuracy of each class")
    assert rows == [
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
    found = sections(*collect(tmp_path))
    rows = table(found, "Accuracy of each class")
    # Of 100 images in classes of 50, 30 and 20, half of each class are right.
    assert rows == [[("baseline, sequential",), ("50.00",), ("50.00",), ("30.00",)]]
    assert len(table(found, "Accuracy of each class", at=1)) == 3


def corrupted(names, right, orders=("sequential",), **changes):
    """Of 100 images of each corruption and severity so many are right in each order, 10 more in each next order."""
    corruptions = [Corruption(name, severity, 100) for name in names for severity in range(1, 6)]
    counts = []
    for more, protocol in enumerate(orders):
        of_order = [right + 10 * more] * len(corruptions)
        counts.append(OrdersOnCorruptions(protocol, {}, 1, of_order))
    return replace(own(**changes), measures=(ByCorruptionCounts(corruptions, counts),))


def test_errors_on_corruptions_are_means_over_seeds_beside_those_of_other_methods(tmp_path):
    orders = ("sequential", "backwards")
    corrupted(["fog", "snow"], 20, orders, method="baseline", seed=0).save(tmp_path / "0.json")
    corrupted(["fog", "snow"], 30, orders, method="baseline", seed=1).save(tmp_path / "1.json")
    corrupted(["fog", "snow"], 50, method="layershuffle").save(tmp_path / "2.json")
    # On other corruptions, the mean over the seeds would be one over other images.
    corrupted(["frost"], 90, method="layershuffle", seed=1).save(tmp_path / "3.json")
    found = sections(*collect(tmp_path))
    rows = table(found, "Error on each corruption")
    assert rows == [[(name,), ("75.00", "backwards 65.00"), ("50.00",)] for name in ("fog", "snow", "mean")]
    section = next(one for one in found if one.title == "Error on each corruption")
    assert section.text == ["Left out: 1 evaluation on other corruptions than the first one's."]
    assert "mCE" not in section.parts[0].caption
    assert section.parts[1].data.rows[-1] == ["backwards", "baseline", "mean", "65.00"]
    sequential, backwards = section.parts[1].draw().axes
    assert [axis.get_title() for axis in (sequential, backwards)] == list(orders)
    widths = [bar.get_width() for bar in sequential.patches]
    assert widths == pytest.approx([75] * 3 + [50] * 3)
    # LayerShuffle didn't run backwards.
    assert [bar.get_width() for bar in backwards.patches] == pytest.approx([65] * 3 + [math.nan] * 3, nan_ok=True)
    assert not any(one.title == "Other orders" for one in found)


def test_the_mean_corruption_error_has_a_row_but_no_bar(tmp_path):
    found = corrupted(ALEXNET, 40, method="baseline")
    found.save(tmp_path / "0.json")
    section = next(one for one in sections(*collect(tmp_path)) if one.title == "Error on each corruption")
    expected = 100 * statistics.mean(0.6 / of_alexnet for of_alexnet in ALEXNET.values())
    assert section.parts[0].texts()[-2:] == [["mean", "60.00"], ["mCE", f"{expected:.2f}"]]
    assert "AlexNet" in section.parts[0].caption
    (axis,) = section.parts[1].draw().axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [*ALEXNET, "mean"]
    (axis,) = found.measures[0].figure(found).axes
    assert len(axis.patches) == 16


def test_an_interval_that_tells_nothing_is_explained_where_it_stands(tmp_path):
    results(arbitrary=(0.1, 0.7)).save(tmp_path / "wide.json")
    found = sections(*collect(tmp_path))
    assert table(found, "Table 1")[2][1][0] == "40.00 ± n/a"
    caption = next(section for section in found if section.title.startswith("Table 1")).parts[0].caption
    assert tables.TOO_WIDE in caption
    summary = next(section for section in found if section.title == "Summary")
    assert summary.parts[0].data.rows[1][3] == "n/a"
    results(arbitrary=(0.6, 0.7)).save(tmp_path / "wide.json")
    narrow = next(section for section in sections(*collect(tmp_path)) if section.title.startswith("Table 1"))
    assert ("± n/a" in narrow.parts[0].texts()[2][1]) == (tables.TOO_WIDE in narrow.parts[0].caption)


def test_the_page_says_once_what_the_intervals_are(tmp_path):
    found = results("layershuffle-predict")
    positions = [replace(one, position_accuracy=0.5) for one in found.scores]
    replace(found, scores=positions).save(tmp_path / "0.json")
    setups, _ = collect(tmp_path)
    page.write("title", sections(setups, []), tmp_path / "report")
    assert (tmp_path / "report/index.html").read_text().count(tables.ONE_SEED) == 1
    assert (tmp_path / "report/report.md").read_text().count(tables.ONE_SEED) == 1


@pytest.mark.parametrize(
    ("protocol", "key", "title"), [("grouped", "steps", "side by side"), ("asynchronous", "in flight", "don't wait")]
)
def test_layers_at_a_time_have_curves_of_all_methods(tmp_path, protocol, key, title):
    for method, top1 in (("baseline", 0.25), ("layershuffle", 0.5)):
        scores = [score("sequential", 0.9)]
        for number in (1, 2):
            for layers in ("random", "random, half left out"):
                variant = {key: number, "layers": layers}
                scores += [score(protocol, top1, **variant), score(protocol, top1 - 0.1, **variant)]
        replace(own(method), scores=scores).save(tmp_path / f"{method}.json")
    section = next(one for one in sections(*collect(tmp_path)) if title in one.title)
    (picture,) = section.parts
    assert picture.data.rows[0] == ["random", "baseline", "1", "20.00", "", "1"]
    panels = picture.draw().axes
    assert len(panels) == 2
    assert panels[0].xaxis_inverted() == (protocol == "grouped")
    assert "deviation" not in picture.caption  # of one seed there is none


def test_confusions_of_several_methods_are_folded(tmp_path):
    counts = ByClassCounts([10] * 60, [OrderCounts("sequential", {}, 1, [9] * 60, [(0, 1, 1)])])
    for number, method in enumerate(("baseline", "layershuffle"), 1):
        found = own(method)
        data = replace(found.data, classes=None)
        replace(found, data=data, measures=(counts,)).save(tmp_path / f"{method}.json")
        section = next(one for one in sections(*collect(tmp_path)) if one.title == "Accuracy of each class")
        pictures = [part for part in section.parts if isinstance(part, page.Picture)]
        assert [picture.folded for picture in pictures] == [number > 1] * number
    assert "row" not in pictures[0].caption
    page.write("title", [section], tmp_path / "report")
    text = (tmp_path / "report/index.html").read_text()
    for picture in pictures:
        assert f"<summary>{picture.caption}</summary>" in text
        assert f"<figcaption>{picture.caption}" not in text


def test_captions_say_what_the_numbers_are(tmp_path):
    titles = ("Sequential and", "Merged", "Every")

    def captions():
        made = sections(*collect(tmp_path))
        found = [next(s for s in made if s.title.startswith(title)).parts[0].caption for title in titles]
        return [caption.split(".")[0] for caption in found]

    def save(data, change):
        for method in ("baseline", "baseline-merged"):
            found = results(method, name="vit_small_patch16_224", data=data)
            change(found).save(tmp_path / f"{data}-{method}.json")

    save("scenes", with_several_labels)
    assert captions() == ["Mean average precision in percent", "mAP in percent", "mAP in percent, by protocol"]
    save("birds", lambda found: found)
    assert captions()[:2] == [
        "Top-1 accuracy, or mean average precision where images have several labels, in percent",
        "Top-1, or mAP where images have several labels, in percent",
    ]
    (tmp_path / "scenes-baseline.json").unlink()
    (tmp_path / "scenes-baseline-merged.json").unlink()
    assert captions() == ["Top-1 accuracy in percent", "Top-1 in percent", "Top-1 in percent, by protocol"]
