"""How alike the activations after every two layers are."""

from layershuffle.api.data import DataLike
from layershuffle.api.progress import progress_bar
from layershuffle.api.study import BatchSize, ModelLike, start_study
from layershuffle.choices import Precision, Split
from layershuffle.evaluation.activations import cosine_similarities
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import Cosine


def similarity(
    model: ModelLike,
    data: DataLike = None,
    *,
    split: Split = "test",
    seed: int = 0,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    compile: bool = False,
    batch_size: BatchSize = None,
) -> Results:
    """Cosine similarity between the activations after every two layers, averaged over tokens and images.

    The layers run in the model's base order (arXiv 2407.09298).

    Args:
        model: a model, or what ``layershuffle.load`` takes.
        data: a data set, or the name of its config, such as "glyphs"; by default the one the model was trained on.
        split: which images of the data set to use.
        seed: decides everything random.
        accelerator: Lightning's name of the device to run on.
        precision: of the forward pass; "auto" measures which one is faster.
        compile: whether to compile the layers, which takes about a minute.
        batch_size: images per batch; "auto" takes the most that fit the GPU's memory.

    Returns:
        Results with the measure ``Cosine``.

    Raises:
        UserError: if there is no such model or data set.
    """
    study = start_study(
        model,
        data,
        split=split,
        seed=seed,
        accelerator=accelerator,
        precision=precision,
        compile=compile,
        batch_size=batch_size,
    )
    with progress_bar("comparing activations", len(study.batches), "batches") as advance:
        matrix = cosine_similarities(study.model, study.preprocess, study.batches, study.fabric, advance)
    rounded = [[round(value, 6) for value in row] for row in matrix.tolist()]
    used = EvaluationInfo(order=str(study.model.order))
    return study.results([], used, [Cosine(rounded)])
