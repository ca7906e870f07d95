"""How alike the activations after every two layers are."""

import layershuffle
from layershuffle.commands.study_options import parse_study, study_parser


def similarity_command(args: list[str] | None = None) -> "layershuffle.Results":
    """Measure as ``args`` say, by default those of the process; saves the matrix and its heat map."""
    parser = study_parser(
        "similarity",
        "Cosine similarity between the activations after every two layers, averaged over tokens and images.",
    )
    command = parse_study(parser, args, "similarity", needs_classifier=False)
    results = layershuffle.similarity(command.model, command.data, split=command.config.split, **command.options)
    command.leave(results)
    return results
