"""Accuracy and time against the number of layers run, the same for all images or each image's own."""

from layershuffle.commands.studying import Study, study_parser
from layershuffle.errors import UserError
from layershuffle.evaluation.activations import seconds_per_image
from layershuffle.evaluation.early_exit import EarlyExit
from layershuffle.orders.named import first
from layershuffle.orders.protocols import trials
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import SecondsPerImage


def depth_command(args: list[str] | None = None) -> Results:
    """Draw the curve as ``args`` say, by default those of the process.

    Scores the ``pruned`` orders in original sequence, from one layer to all, and times each number of layers. The
    logits after the first layers also tell how early exit does, where each image stops once the classifier is sure.
    """
    parser = study_parser(
        "layershuffle depth",
        "Accuracy and time per image against the number of layers run: the first, evenly spaced and random ones, and "
        "as many of the first as each image needs (early exit).",
    )
    parser.add_argument("--draws", type=int, default=10, help="random subsets for each number of layers")
    parser.add_argument("--repeats", type=int, default=20, help="how often each depth is timed; the shortest counts")
    study = Study(parser, args, "depth")
    draws, repeats, own, device = study.config.draws, study.config.repeats, study.model.order, study.fabric.device
    if draws < 1 or repeats < 1:
        raise UserError("--draws and --repeats are 1 or more")
    depths = range(1, len(own) + 1)
    found = trials(["sequential", "pruned"], own, draws, study.config.seed, keep=tuple(depths))
    early_exit = EarlyExit(own, device)
    kept = [trial for trial in found if trial.variant.get("sequence", "original") == "original"]
    scores = study.score(kept, on_output=early_exit.add)
    images = study.preprocess.to(device)(next(iter(study.batches))[0].to(device))
    with study.fabric.autocast():
        times = seconds_per_image(study.model, images, [first(k, len(own)).over(own) for k in depths], repeats)
    measured = {k: float(f"{seconds:.4g}") for k, seconds in zip(depths, times)}
    measures = [SecondsPerImage(measured), early_exit.compute()]
    used = EvaluationInfo(random_orders=draws, options={"repeats": repeats})
    results = study.report(scores, used, measures)
    print("note: choose a threshold for early exit on other images than those whose accuracy you report (--split val)")
    return results
