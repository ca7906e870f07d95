"""What a layer does at each position."""

import torch

from layershuffle.commands.parser import Parser
from layershuffle.commands.studying import Study, study_parser
from layershuffle.data.sets import split_images
from layershuffle.errors import UserError
from layershuffle.evaluation.activations import contributions, project, shuffled_runs
from layershuffle.results import EvaluationInfo, Measure, Results
from layershuffle.results.measures import Contributions, Representations


def analyse_parser() -> Parser:
    """The options of ``layershuffle analyse``."""
    parser = study_parser(
        "layershuffle analyse",
        "Run random images, each in a random order of its own, and look at the layers: their outputs (representations: "
        "UMAP of one layer's, by the position it held) or how much each changes what the model classifies by, the "
        "class token or else the mean of the patch tokens (contributions).",
    )
    studies = ["representations", "contributions"]
    parser.add_argument("--study", choices=studies, default=studies[0], help="what to look at")
    parser.add_argument("--layer", type=int | None, help="of the representations (default: the middle one)")
    parser.add_argument("--images", type=int, default=1000, help="how many of the images; the seed decides which ones")
    return parser


def analyse_command(args: list[str] | None = None) -> Results:
    """Analyse as ``args`` say, by default those of the process; saves what was found and its picture.

    One model's half of figure 4 of arXiv 2407.04513.
    """
    study = Study(analyse_parser(), args, "analysis")
    config, model = study.config, study.model
    layers = sorted(model.order.layers)
    layer = layers[len(layers) // 2] if config.layer is None else config.layer
    if layer not in layers:
        raise UserError(f"the model doesn't run a layer {layer}: choose from {' '.join(map(str, layers))}")
    if config.images < 3:
        raise UserError("--images is 3 or more")
    images, _ = split_images(study.batches.dataset, config.images, config.seed)
    orders: list[str] = []
    added: list[list[float]] = []
    before: list[list[float]] = []
    positions: list[int] = []
    outputs = []
    with study.progress(f"analysing {study.record['name']}", len(images), "images") as (bar, task):
        for order, states in shuffled_runs(model, study.preprocess, images, study.fabric, config.seed):
            orders.append(str(order))
            if config.study == "contributions":
                norms = contributions([model.backbone.summarise(tokens) for tokens in states])
                for rows, values in zip((added, before), norms):
                    rows.append([float(f"{value:.5g}") for value in values])
            else:
                visits = [position for position, step in enumerate(order) if layer in {unit.layer for unit in step}]
                positions += visits
                outputs += [states[position + 1].flatten().cpu() for position in visits]
            bar.advance(task)
    measure: Measure
    if config.study == "contributions":
        measure = Contributions(orders, model.backbone.summary, added, before)
    else:
        plane = project(torch.stack(outputs), config.seed).tolist()
        measure = Representations(orders, layer, positions, [(round(x, 3), round(y, 3)) for x, y in plane])
    used = EvaluationInfo(order=str(model.order), options={"study": config.study, "images": len(images)})
    return study.report([], used, [measure])
