"""What a layer does at each position (arXiv 2407.04513, figure 4)."""

from typing import Unpack

import torch
from torch import Tensor
from torch.utils.data import Dataset

from layershuffle.api.arguments import check_at_least, check_choice
from layershuffle.api.data import DataLike
from layershuffle.api.progress import progress_bar
from layershuffle.api.study import ModelLike, Study, start_study
from layershuffle.api.study_options import StudyOptions
from layershuffle.choices import Split, Subject
from layershuffle.data.sets import split_images
from layershuffle.errors import UserError
from layershuffle.evaluation import activations
from layershuffle.evaluation.activations import project, shuffled_runs
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import Contributions, Representations


def analyse(
    model: ModelLike,
    data: DataLike = None,
    *,
    study: Subject = "representations",
    layer: int | None = None,
    images: int = 1000,
    split: Split = "test",
    **options: Unpack[StudyOptions],
) -> Results:
    """Run random images, each in a random order of its own, and look at the layers.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        data: a data set, or the name of its config, such as "glyphs"; by default the one the model was trained on.
        study: "representations" projects the outputs of one layer to a plane by UMAP, to compare the positions at which
            the layer ran. "contributions" measures how much each layer changes what the model classifies by, which is
            the class token or else the mean of the patch tokens.
        layer: the layer of "representations"; by default the middle one.
        images: how many images to run; the seed decides which ones.
        split: which images of the data set to use.
        options: ``seed``, ``accelerator``, ``precision``, ``compile`` and ``batch_size``, see ``StudyOptions``.
            Each image runs by itself, so that ``batch_size`` makes no difference here.

    Returns:
        Results with the measure ``Representations`` or ``Contributions``.

    Raises:
        UserError: if there is no such model, data set or layer, or there are too few images.
    """
    check_choice("study", study, Subject)
    # UMAP has nothing to arrange of fewer points.
    check_at_least(3, images=images)
    subject = start_study(model, data, split=split, classifier=None, **options)
    # The layer is checked in both cases, so that a wrong one is never passed over in silence.
    chosen_layer = _choose_layer(layer, sorted(subject.model.order.layers))
    chosen_images, _ = split_images(subject.batches.dataset, images, subject.seed)
    measure: Representations | Contributions
    if study == "contributions":
        measure = _contributions(subject, chosen_images)
    else:
        measure = _representations(subject, chosen_images, chosen_layer)
    used = EvaluationInfo(order=str(subject.model.order), options={"study": study, "images": len(chosen_images)})
    return subject.results([], used, [measure])


def _choose_layer(layer: int | None, layers: list[int]) -> int:
    """The layer to look at, one of the ``layers`` that the model runs."""
    if layer is None:
        return layers[len(layers) // 2]
    if layer not in layers:
        raise UserError(f"the model doesn't run a layer {layer}: choose from {' '.join(map(str, layers))}")
    return layer


def _contributions(study: Study, images: Dataset) -> Contributions:
    """How much each step changes what the model classifies by, in random orders."""
    backbone = study.model.backbone
    # Each image runs in a random order of its own, which is kept beside what was measured in it.
    orders: list[str] = []
    added: list[list[float]] = []
    before: list[list[float]] = []
    count = len(images)  # type: ignore[arg-type]
    with progress_bar(f"analysing {study.loaded.info.name}", count, "image") as advance:
        for order, states in shuffled_runs(study.model, study.preprocess, images, study.fabric, study.seed):
            tokens = [backbone.summarise(state) for state in states]
            changes, norms = activations.contributions(tokens)
            orders.append(str(order))
            added.append([_rounded(value) for value in changes])
            before.append([_rounded(value) for value in norms])
            advance()
    return Contributions(orders, backbone.summary, added, before)


def _rounded(value: float) -> float:
    """The number with five digits, for more of them would only make the file longer."""
    return float(f"{value:.5g}")


def _representations(study: Study, images: Dataset, layer: int) -> Representations:
    """The outputs of a layer in a plane, in random orders."""
    orders: list[str] = []
    positions: list[int] = []
    outputs: list[Tensor] = []
    count = len(images)  # type: ignore[arg-type]
    with progress_bar(f"analysing {study.loaded.info.name}", count, "image") as advance:
        for order, states in shuffled_runs(study.model, study.preprocess, images, study.fabric, study.seed):
            orders.append(str(order))
            # A step may have several layers in parallel, and a layer may run twice, as its two halves.
            for position, step in enumerate(order):
                if layer in {unit.layer for unit in step.units}:
                    positions.append(position)
                    # states[0] is what the first step takes, so that a step's output has the next index.
                    outputs.append(states[position + 1].flatten().cpu())
            advance()
    # UMAP has no units, and more digits would only make the file longer.
    plane = project(torch.stack(outputs), study.seed).tolist()
    points = [(round(x, 3), round(y, 3)) for x, y in plane]
    return Representations(orders, layer, positions, points)
