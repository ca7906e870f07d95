"""How alike the activations after every two layers are."""

from layershuffle.commands.studying import Study, study_parser
from layershuffle.evaluation.activations import cosine_similarities
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import Cosine


def similarity_command(args: list[str] | None = None) -> Results:
    """Measure as ``args`` say, by default those of the process; saves the matrix and its heat map."""
    description = "Cosine similarity between the activations after every two layers, averaged over tokens and images."
    study = Study(study_parser("layershuffle similarity", description), args, "similarity")
    model, preprocess, batches = study.model, study.preprocess, study.batches
    with study.progress("comparing activations", len(batches), "batches") as (bar, task):
        matrix = cosine_similarities(model, preprocess, batches, study.fabric, lambda: bar.advance(task))
    cosine = [[round(value, 6) for value in row] for row in matrix.tolist()]
    return study.report([], EvaluationInfo(order=str(model.order)), [Cosine(cosine)])
