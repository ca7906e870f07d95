"""Finds which layers of a model to keep, and in which order; exports what is left, and trains it further."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import yaml

from layershuffle.api.arguments import check_at_least
from layershuffle.api.compose import compose
from layershuffle.api.data import DataLike
from layershuffle.api.depth import seconds_by_depth
from layershuffle.api.export import ExportedModel, export
from layershuffle.api.grouping import check_groups, group_layers, milliseconds_when_merged
from layershuffle.api.search import losses_on, warn_of_few_images
from layershuffle.api.study import ModelLike, Study, as_loaded, start_study
from layershuffle.api.study_options import StudyOptions
from layershuffle.api.train import TrainedRun, as_options, fit
from layershuffle.checkpoints.export import check_new
from layershuffle.checkpoints.exported import REFINE_FILE
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.choices import Split
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.evaluation.search import climb, scores_all, thin
from layershuffle.files import write_whole
from layershuffle.models.create import ARGUMENTS
from layershuffle.orders.named import first
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results import EvaluationInfo, Measure, Results
from layershuffle.results.measures import Grouping, Pruning


@dataclass(frozen=True)
class PrunedModel:
    """Which layers of a model to keep.

    Attributes:
        order: the layers to keep, in the order in which they do best.
        results: the scores of the best choices of each number of layers, on images that were not searched on.
        tried_all: whether every choice of layers was tried; otherwise it was a beam search.
        loaded: the model that was pruned.
        data: the data set.
    """

    order: Order
    results: Results
    tried_all: bool
    loaded: LoadedModel
    data: ImageData

    @property
    def images(self) -> int:
        """How many images were searched on."""
        measure = self.results.measure(Pruning)
        assert measure is not None
        return measure.images

    @property
    def is_refinable(self) -> bool:
        """Whether what is kept can be trained further when it is exported."""
        return self.order.whole_layers is not None and not self.loaded.model.encoding

    def export(self, folder: str | Path) -> ExportedModel:
        """Write the layers that are kept to a new folder, with their scores, and a config that trains them further.

        There is no such config for a model that encodes positions: training would start without the encoding, which
        its layers expect. Nor is there one for layers that are merged.

        Raises:
            UserError: if the model can't be exported, or the folder is there already.
        """
        exported = export(self.loaded, folder, order=self.order, results=[self.results], data=self.data)
        if self.is_refinable:
            _write_refine_config(exported.folder, self.data)
        return exported


def prune(
    model: ModelLike,
    data: DataLike = None,
    *,
    keep: int | None = None,
    milliseconds: float | None = None,
    steps: int | None = None,
    beam: int = 8,
    rounds: int = 20,
    fraction: float = 0.5,
    timings: bool = True,
    repeats: int = 5,
    split: Split = "val",
    **options: Unpack[StudyOptions],
) -> PrunedModel:
    """Find which layers to keep, and in which order, by the loss on one part of the validation images.

    What was found is scored on the other part. Test images are never used.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        data: a data set, or the name of its config, such as "glyphs"; by default the one the model was trained on.
        keep: how many layers to keep.
        milliseconds: in place of ``keep``, keep as many layers as run in this time per image, as measured here.
        steps: in how many steps the layers that are kept may run at most. They are then grouped into as many, by the
            loss too, and those of a group run side by side. By default, they run one after the other.
        beam: with too many choices to try all, how many to pursue.
        rounds: the most exchanges of two layers that the search for their order makes.
        fraction: the share of the images that the search uses; the others score its result.
        timings: whether to measure how long each number of layers takes. Without it, accuracies are all that is found.
        repeats: how often to measure the time of each number of layers; the shortest time counts.
        split: must be "val"; it is an argument so that asking for "test" is an error.
        options: ``seed``, ``accelerator``, ``precision``, ``compile`` and ``batch_size``, see ``StudyOptions``.

    Raises:
        UserError: if there is no such model or data set, or so many layers can't be kept.
    """
    _check(keep, milliseconds, steps, timings)
    check_at_least(1, beam=beam, repeats=repeats)
    check_at_least(0, rounds=rounds)
    study = start_study(model, data, split=split, **options)
    _refuse_test_images(study, split)
    if steps is not None:
        check_groups(study, steps, keep)

    # How many layers to keep. If the model doesn't have as many, ``first`` raises a UserError, before the long search.
    base_order = study.model.order
    count, times = _how_many(study, keep, milliseconds, repeats)
    first(count, len(base_order))

    # The images that choose must not be those that tell how good the choice is: the best of many choices does better
    # on the former by chance.
    searched, reported = study.data.parts("val", fraction, study.seed)
    images = len(searched.dataset)  # type: ignore[arg-type]
    warn_of_few_images(images, study.data.num_classes, split)
    losses = losses_on(study, searched, "choosing")

    # Which ones, in their original sequence: the best choice of each number down to ``count``. Then exchanges of two
    # layers look for a better sequence of the last choice. Each exchange lowers the loss, so the last one is the best.
    thinned = [order for order, _ in thin(base_order, losses, count, beam)]
    climbed = list(climb(thinned[-1], losses, rounds))
    order, _ = climbed[-1]
    to_score = _trials(base_order, thinned, order)

    # The results tell the time beside the accuracy, of those numbers of layers that are shown.
    if timings and not times:
        times = _milliseconds(study, repeats, fewest=count)
    measures: list[Measure] = [Pruning(images, times, str(order))]

    # In which groups they run, down to ``steps`` of them.
    if steps is not None:
        grouped = group_layers(study, order, losses, steps, rounds)
        # Each has one step fewer than the one before it, and the first has as many steps as there are layers.
        for fewer, groups in enumerate(grouped):
            to_score.append(Trial("grouping", groups, {"steps": count - fewer}))
        order = grouped[-1]
        times_when_merged = milliseconds_when_merged(study, grouped, repeats) if timings else {}
        measures.append(Grouping(times_when_merged, str(order)))

    scores = study.score(to_score, reported)
    used = {
        "keep": keep,
        "milliseconds": milliseconds,
        "steps": steps,
        "beam": beam,
        "rounds": rounds,
        "fraction": fraction,
        "repeats": repeats if timings else None,
    }
    results = study.results(scores, EvaluationInfo(options=used), measures)
    return PrunedModel(order, results, scores_all(base_order, count), study.loaded, study.data)


def _check(keep: int | None, milliseconds: float | None, steps: int | None, timings: bool) -> None:
    """Raise a UserError unless it is said in one way how much to keep; the arguments are those of ``prune``."""
    if (keep is None) == (milliseconds is None):
        raise UserError("say how much to keep: either a number of layers, or milliseconds per image")
    if milliseconds is not None and not timings:
        raise UserError("milliseconds is a budget of time, so timings can't be false: name a number of layers to keep")
    if steps is not None:
        check_at_least(1, steps=steps)


def _trials(base_order: Order, thinned: Sequence[Order], chosen: Order) -> list[Trial]:
    """What is scored at the end: all layers, the best choice of each number, and the last one in a better sequence.

    Args:
        base_order: the model's base order.
        thinned: the best choice of each number of layers, all in original sequence, the most layers first.
        chosen: the last of them, in the sequence in which it does best.
    """
    to_score = [Trial("sequential", base_order)]
    to_score += [Trial("prune", shorter, {"kept": len(shorter)}) for shorter in thinned]
    if chosen != thinned[-1]:
        to_score.append(Trial("prune", chosen, {"kept": len(chosen), "sequence": "found"}))
    return to_score


def refine(
    folder: str | PathLike[str], *, epochs: int, accelerator: str = "auto", options: dict[str, Any] | None = None
) -> TrainedRun:
    """Train a pruned and exported model further, in its base order, on the data that it was trained on.

    Args:
        folder: where ``PrunedModel.export`` wrote the model, or what it returned.
        epochs: for how many epochs to train.
        accelerator: Lightning's name of the device to train on.
        options: any other options of ``layershuffle train`` by name.

    Raises:
        UserError: if the folder has no config for this, or the training fails.
    """
    return fit(compose([*refine_options(folder, epochs, accelerator), *as_options(options or {})]))


def refine_options(folder: str | PathLike[str], epochs: int, accelerator: str) -> list[str]:
    """The arguments of ``layershuffle train`` that train a pruned and exported model further."""
    path = Path(folder) / REFINE_FILE
    return [str(path), f"--trainer.accelerator={accelerator}", f"--trainer.max_epochs={epochs}"]


def check_export(model: ModelLike, folder: str | Path, is_refined: bool) -> None:
    """Raise a UserError, before the search begins, if what it finds can't be exported or refined.

    Args:
        model: the model that will be pruned.
        folder: the folder that it will be exported to.
        is_refined: whether it will be trained further.
    """
    check_new(Path(folder))
    loaded = as_loaded(model)
    if loaded.info.method is None:
        raise UserError(f"{loaded.info.source} is not a checkpoint of layershuffle train, so it can't be exported")
    if loaded.order.whole_layers is None:
        raise UserError("exports have whole layers, one after the other, and the model's base order runs others")
    if is_refined and loaded.model.encoding:
        raise UserError(
            "refining starts from the backbone alone, without the position encoding that this model's layers expect"
        )


def _refuse_test_images(study: Study, split: Split) -> None:
    """Raise a UserError if the search would see test images."""
    # A data set without validation images of its own validates by its test images.
    if split == "test" or study.data.sets["val"] is study.data.sets["test"]:
        raise UserError(
            "the layers to keep are not chosen by test images: use the split val, and where a data set has no "
            "validation images of its own, hold out some of its training images (data.val_fraction 0.1)"
        )


def _how_many(study: Study, keep: int | None, milliseconds: float | None, repeats: int) -> tuple[int, dict[int, float]]:
    """How many layers to keep, and the times of all numbers of layers if they decide it; see ``prune``."""
    if keep is not None:
        return keep, {}
    assert milliseconds is not None, "one of keep and milliseconds is given"
    times = _milliseconds(study, repeats)
    return _most_within(milliseconds, times), times


def _milliseconds(study: Study, repeats: int, fewest: int = 1) -> dict[int, float]:
    """The time per image, in ms, by how many steps of the model's base order run, from ``fewest`` on."""
    times = seconds_by_depth(study, repeats, fewest)
    # More digits would be noise.
    return {kept: float(f"{1000 * seconds:.4g}") for kept, seconds in times.items()}


def _most_within(milliseconds: float, times: dict[int, float]) -> int:
    """The most layers that run within this time per image."""
    quick_enough = [kept for kept, time in times.items() if time <= milliseconds]
    if not quick_enough:
        raise UserError(f"one layer already takes {times[1]:.3g} ms per image: allow more")
    return max(quick_enough)


def _write_refine_config(folder: Path, data: ImageData) -> None:
    """Write the config that trains the model in ``folder`` further on ``data``.

    The path of the weights is that of ``folder`` now, so that the config has to be edited if the folder moves.
    """
    exported = load(str(folder)).model.config
    described = data.config()
    config = {
        "model": {
            "name": exported["name"],
            "timm_args": {name: value for name, value in exported.items() if name not in ARGUMENTS},
            "head": exported["head"],
            "sampler": "Sequential",
            "pretrained": str(folder / "model.safetensors"),
        },
        "data": {"class_path": described.name, "init_args": described.args},
    }
    comment = "# Trains the model in this folder further, in its base order."
    write_whole(folder / REFINE_FILE, f"{comment}\n{yaml.safe_dump(config, sort_keys=False)}")
