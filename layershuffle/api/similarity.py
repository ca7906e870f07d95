"""How alike the activations after every two layers are."""

from typing import Unpack

from layershuffle.api.data import DataLike
from layershuffle.api.progress import progress_bar
from layershuffle.api.study import ModelLike, start_study
from layershuffle.api.study_options import StudyOptions
from layershuffle.choices import Split
from layershuffle.evaluation.activations import cosine_similarities
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import Cosine


def similarity(
    model: ModelLike,
    data: DataLike = None,
    *,
    split: Split = "test",
    **options: Unpack[StudyOptions],
) -> Results:
    """Cosine similarity between the activations after every two layers, averaged over tokens and images.

    The layers run in the model's base order (arXiv 2407.09298).

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        data: a data set, or the name of its config, such as "glyphs"; by default the one the model was trained on.
        split: which images of the data set to use.
        options: ``seed``, ``accelerator``, ``precision``, ``compile`` and ``batch_size``, see ``StudyOptions``.

    Returns:
        Results with the measure ``Cosine``.

    Raises:
        UserError: if there is no such model or data set.
    """
    study = start_study(model, data, split=split, classifier=None, **options)
    with progress_bar("comparing activations", len(study.batches), "batch") as advance:
        matrix = cosine_similarities(study.model, study.preprocess, study.batches, study.fabric, advance)
    rounded = [_rounded(row) for row in matrix.tolist()]
    used = EvaluationInfo(order=str(study.model.order))
    return study.results([], used, [Cosine(rounded)])


def _rounded(row: list[float]) -> list[float]:
    """The numbers with six decimals, for more of them would only make the file longer."""
    return [round(value, 6) for value in row]
