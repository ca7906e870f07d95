"""How alike the activations after every two layers are."""

from layershuffle.api.similarity import similarity
from layershuffle.commands.results_files import leave
from layershuffle.commands.study_options import parse_study, study_parser
from layershuffle.results import Results


def similarity_command(args: list[str] | None = None) -> Results:
    """Measure as ``args`` say, by default those of the process; saves the matrix and its heat map."""
    parser = study_parser(
        "similarity",
        "Cosine similarity between the activations after every two layers, averaged over tokens and images.",
    )
    command = parse_study(parser, args, "similarity")
    results = similarity(**command.arguments)
    leave(results, command.output)
    return results
