"""Finds an order on one part of the validation images and scores it on the other."""

import math
from collections.abc import Sequence

from layershuffle.commands.studying import Study, study_parser
from layershuffle.errors import UserError
from layershuffle.evaluation.search import climb, greedy, heavy_tail_exponents, well_trained_first
from layershuffle.orders.named import parse_order
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import Search, SearchStep


def search_command(args: list[str] | None = None) -> Results:
    """Search as ``args`` say, by default those of the process; prints and saves what was found and how it does."""
    description = "Find an order on one part of the validation images and score it on the other."
    parser = study_parser("layershuffle search", description, split="val")
    parser.add_argument(
        "--strategy",
        choices=["greedy", "climb", "well-trained"],
        default="greedy",
        help="append the best next layer, exchange two layers while that helps, or rank the layers by their spectra",
    )
    parser.add_argument("--start", type=str | None, help="climb: the order to begin with (default: own)")
    parser.add_argument("--rounds", type=int, default=20, help="climb: at most so many exchanges")
    parser.add_argument("--fraction", type=float, default=0.5, help="the part of the images to search on")
    study = Study(parser, args, "search")
    config, own = study.config, study.model.order
    if config.start and config.strategy != "climb":
        raise UserError(f"--start is where climb begins; {config.strategy} has no use for it")
    start = study.model.check(parse_order(config.start, own)) if config.start else own
    searched, reported = study.data.parts(config.split, config.fraction, study.config.seed)

    def losses(orders: Sequence[Order]) -> list[float]:
        scores = study.score([Trial("search", order) for order in orders], searched, f"{config.strategy}, searching")
        return [math.inf if score.loss is None else score.loss for score in scores]

    images = len(searched.dataset)  # type: ignore[arg-type]
    if config.strategy == "well-trained":
        exponents = heavy_tail_exponents(study.model)
        found = {"well-trained": well_trained_first(exponents, own)}
        measure = Search(config.strategy, images, exponents=[round(exponent, 4) for exponent in exponents])
    else:
        trace = list(greedy(own, losses) if config.strategy == "greedy" else climb(start, losses, config.rounds))
        steps = [SearchStep(str(order), loss if math.isfinite(loss) else None) for order, loss in trace]
        measure = Search(config.strategy, images, trace=steps)
        found = {config.strategy: trace[-1][0]}
        if config.strategy == "greedy":
            found["greedy, best length"] = min(trace, key=lambda step: step[1])[0]
        elif config.start:
            found["start"] = start
    to_score = [Trial("search", order, {"strategy": strategy}) for strategy, order in found.items()]
    scores = study.score([Trial("sequential", own), *to_score], reported)
    used = {name: config[name] for name in ("strategy", "start", "rounds", "fraction")}
    results = study.report(scores, EvaluationInfo(options=used), [measure])
    for strategy, order in found.items():
        print(f"{strategy}: {order}")
    return results
