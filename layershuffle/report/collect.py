"""Gathers the results files below a folder into setups: a backbone on a data set, with its methods and seeds."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from layershuffle.errors import UserError
from layershuffle.files import read_beginning, read_json
from layershuffle.plurals import form
from layershuffle.report import paper
from layershuffle.report.setups import Run, SetupResults
from layershuffle.results import Results

SHAPE: dict[str, Callable[[Any], str]] = {
    "depth": lambda layers: f"{layers} {form(layers, 'layer')}",
    "embed_dim": lambda width: f"width {width}",
    "patch_size": lambda pixels: f"patches of {pixels}",
    "img_size": lambda pixels: f"images of {pixels}",
}
"""What a title says of a backbone whose shape isn't timm's, or isn't the paper's, by arguments of ``create_model``."""


@dataclass(frozen=True)
class Files:
    """What the JSON files of a report hold, by their paths from its folder; a file itself stands by its name.

    Attributes:
        results: those of evaluations and studies.
        simulations: what the files of ``layershuffle simulate`` hold, not yet checked.
        complaints: a sentence for every file that can't be read.
    """

    results: dict[str, Results] = field(default_factory=dict)
    simulations: dict[str, dict[str, Any]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)


def read_files(source: Path) -> Files:
    """Read every JSON file of a report once: that at ``source``, or all below this folder.

    Raises:
        UserError: if there is no such file or folder.
    """
    if not source.exists():
        raise UserError(f"there is no file or folder {source}: name a results file, or a folder that holds some")
    files = Files()
    for name, path in _json_files(source).items():
        try:
            # Any JSON file may lie there, and be large: its beginning tells whether it is a results file.
            if _claims_to_be_results(path):
                files.results[name] = Results.load(path)
                continue
        except OSError as error:
            files.complaints.append(f"{name} can't be read: {error.strerror}; it was left out")
            continue
        except UserError as error:
            files.complaints.append(f"{str(error).replace(str(path), name)}; it was left out")
            continue
        simulation = _simulation_in(path)
        if simulation is not None:
            files.simulations[name] = simulation
    return files


def _json_files(source: Path) -> dict[str, Path]:
    """The JSON files below a folder, by their path from there; of a file itself, that file by its name."""
    if source.is_file():
        return {source.name: source}
    files = {}
    for path in sorted(source.rglob("*.json")):
        # A process that is writing a results file gives it such a name until it is whole.
        if not path.name.startswith("."):
            files[str(path.relative_to(source))] = path
    return files


def _claims_to_be_results(path: Path) -> bool:
    """Whether a JSON file begins like a results file, so that a damaged one is reported and others are passed over."""
    return b'"layershuffle_results"' in read_beginning(path, 200)


def _simulation_in(path: Path) -> dict[str, Any] | None:
    """The content of a file of ``layershuffle simulate``; None for any other file, which a report passes over."""
    try:
        content = read_json(path)
    except UserError:
        return None
    if not isinstance(content, dict) or not {"scenario", "outcomes"} <= content.keys():
        return None
    return content


def collect(files: Files) -> tuple[list[SetupResults], list[str]]:
    """Gather results into setups.

    Models are compared on test images, so that results of others are left out. If two files disagree about the same
    run, both are left out.

    Returns:
        The setups, and a sentence for every file that was left out.
    """
    complaints = list(files.complaints)
    on_test_images: dict[str, Results] = {}
    for name, results in files.results.items():
        # Models are chosen by validation images, so that scores on these would look too good beside the others.
        if results.data.split == "test" or results.evaluation.is_study:
            on_test_images[name] = results
        else:
            complaints.append(f"{name} is of the {results.data.split} images; it was left out")

    setups: dict[tuple[str, str], SetupResults] = {}
    for name, results in _agreeing(on_test_images, complaints).items():
        backbone = _backbone(results)
        data = paper.DATA.get(results.data.name, results.data.name)
        setup = setups.setdefault((backbone, data), SetupResults(backbone, data))
        # A study is about one model and is shown by itself; all other files of a model are put together.
        if results.evaluation.is_study:
            setup.studies[name] = results
            continue
        # A model that wasn't trained here, such as timm's, has no seed: it counts as the one of seed 0.
        method = results.label
        seed = results.model.seed or 0
        run = setup.runs.setdefault((method, seed), Run(method, seed))
        run.files[name] = results
    return _named(list(setups.values())), complaints


def _agreeing(files: dict[str, Results], complaints: list[str]) -> dict[str, Results]:
    """The files without repetitions, and without those that disagree about the same run.

    Two files are about the same run if they have the same model, data and settings. They may hold different protocols,
    which are put together, but for what both hold they must have the same values.

    Args:
        files: the results by the names of their files.
        complaints: a sentence is added here for each disagreement.
    """
    # The files of each run, of several with the same content only the first.
    by_run: dict[str, list[str]] = {}
    disagreeing: set[str] = set()
    for name, results in files.items():
        # Each file is compared with all earlier ones of the same run.
        earlier = by_run.setdefault(_run_key(results), [])
        content = _content_by_key(results)
        is_repetition = False
        for other in earlier:
            other_content = _content_by_key(files[other])
            if other_content == content:
                is_repetition = True
            in_both = other_content.keys() & content.keys()
            if any(other_content[key] != content[key] for key in in_both):
                run = f"{results.label}, seed {results.model.seed}, on {results.data.name}"
                complaints.append(
                    f"{other} and {name} disagree about {run}; both were left out: move one of them elsewhere, or "
                    "train one with another --model.label"
                )
                disagreeing |= {other, name}
        if not is_repetition:
            earlier.append(name)

    agreeing = {}
    for names in by_run.values():
        for name in names:
            if name not in disagreeing:
                agreeing[name] = files[name]
    return agreeing


def _run_key(results: Results) -> str:
    """A key that is the same for files about the same model, data and settings."""
    # The checkpoint's checksum is no part of it: two trainings of one method and seed are the same run, and must agree.
    model = results.model
    about = [model.config, results.label, model.seed, results.data.name, results.data.images]
    return json.dumps([*about, results.evaluation.to_json()], sort_keys=True)


def _content_by_key(results: Results) -> dict[str, Any]:
    """Every score and measure, by what was scored or measured."""
    # Lists of scores, because a random order may have been drawn more than once.
    content: dict[str, Any] = {}
    for score in results.scores:
        key = json.dumps([score.protocol, score.variant, score.order], sort_keys=True)
        content.setdefault(key, []).append(score)
    for measure in results.measures:
        content[measure.name] = measure
    return content


def _backbone(results: Results) -> str:
    """The paper's name of the backbone or timm's, with what differs from its usual shape."""
    config = results.model.config
    name = paper.BACKBONES.get(results.model.backbone)
    # A config names a shape only where it isn't timm's, but for the paper's backbones it may repeat the usual one, of
    # which nothing needs to be said.
    usual = paper.SHAPE if name else {}
    changes = []
    for key, in_words in SHAPE.items():
        if key in config and config[key] != usual.get(key):
            changes.append(in_words(config[key]))
    name = name or results.model.backbone
    return f"{name} ({', '.join(changes)})" if changes else name


def _named(setups: list[SetupResults]) -> list[SetupResults]:
    """The setups with names that say no more than what tells them apart."""
    backbones = {setup.backbone for setup in setups}
    data_sets = {setup.data for setup in setups}
    named = []
    for setup in setups:
        parts = []
        if len(backbones) > 1:
            parts.append(setup.backbone)
        if len(data_sets) > 1:
            parts.append(setup.data)
        named.append(replace(setup, name=", ".join(parts)))
    return named
