"""What a layer does at each position."""

from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import Subset

from layershuffle.commands.studying import Study, study_parser
from layershuffle.errors import UserError
from layershuffle.evaluation.activations import contribution, project, shuffled_runs
from layershuffle.results.record import Results


def analyse_command(args: list[str] | None = None) -> Results:
    """Analyse as ``args`` say, by default those of the process; saves what was found and its picture.

    One model's half of figure 4 of arXiv 2407.04513.
    """
    parser = study_parser(
        "layershuffle analyse",
        "Run each image in a random order of its own and look at the layers: their outputs (representations: UMAP of "
        "one layer's, by the position it held) or how much each changes the class token (contributions).",
    )
    studies = ["representations", "contributions"]
    parser.add_argument("--study", choices=studies, default=studies[0], help="what to look at")
    parser.add_argument("--layer", type=int | None, help="of the representations (default: the middle)")
    parser.add_argument("--images", type=int, default=1000, help="how many of the images, the first ones")
    study = Study(parser, args, "analysis")
    config, model = study.config, study.model
    layer = model.depth // 2 if config.layer is None else config.layer
    if not 0 <= layer < model.depth:
        raise UserError(f"there is no layer {layer}: the model has layers 0 to {model.depth - 1}")
    if config.images < 3:
        raise UserError("--images is 3 or more")
    if model.order.whole_layers is None:
        raise UserError("only models whose steps are whole layers can be analysed")
    data: Any = study.batches.dataset
    images = Subset(data, range(min(config.images, len(data))))
    found: dict[str, Any] = {"orders": []}
    changes, positions, outputs = [], [], []
    with study.progress(f"analysing {study.record['name']}", len(images), "images") as (bar, task):
        for order, states in shuffled_runs(model, study.preprocess, images, study.fabric, config.seed):
            found["orders"].append(str(order))
            if config.study == "contributions":
                changes.append([float(f"{contribution(*pair):.5g}") for pair in pairwise(states)])
            else:
                positions.append(max(index for index, step in enumerate(order) if step[0].layer == layer))
                outputs.append(states[positions[-1] + 1].flatten().cpu())
            bar.advance(task)
    if config.study == "contributions":
        found["changes"] = changes
    else:
        plane = project(torch.stack(outputs), config.seed).tolist()
        found |= {"layer": layer, "positions": positions}
        found["plane"] = [[round(value, 3) for value in point] for point in plane]
    return study.report([], {"study": config.study, "images": len(images)}, {config.study: found})
