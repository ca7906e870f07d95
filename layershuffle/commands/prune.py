"""Finds which layers of a model to keep, and in which order, by validation images."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from layershuffle.checkpoints.export import check_new
from layershuffle.checkpoints.loading import load
from layershuffle.commands.export import export_command
from layershuffle.commands.studying import Study, study_parser
from layershuffle.commands.train import train_command
from layershuffle.errors import UserError
from layershuffle.evaluation.activations import seconds_per_image
from layershuffle.evaluation.search import climb, scores_all, thin
from layershuffle.files import write_whole
from layershuffle.models.create import ARGUMENTS
from layershuffle.orders.named import first
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import Pruning

REFINE = "refine.yaml"
"""A config of ``layershuffle train``, beside an export, that goes on training its model."""


def prune_command(args: list[str] | None = None) -> Results:
    """Prune as ``args`` say, by default those of the process; prints and saves what was found and how it does."""
    description = (
        "Find which layers to keep, and in which order, by the loss on one part of the validation images, and score "
        "what was found on the other. Test images are never used."
    )
    parser = study_parser("layershuffle prune", description, split="val")
    parser.add_argument("--keep", type=int | None, help="how many layers to keep")
    parser.add_argument(
        "--milliseconds", type=float | None, help="keep as many as run in this time per image, measured"
    )
    parser.add_argument("--beam", type=int, default=8, help="with too many choices to score all: how many to pursue")
    parser.add_argument("--rounds", type=int, default=20, help="at most so many exchanges of two layers; 0: none")
    parser.add_argument("--fraction", type=float, default=0.5, help="the part of the images to search on")
    parser.add_argument("--repeats", type=int, default=20, help="how often each depth is timed; the shortest counts")
    parser.add_argument("--export", type=str | None, help="a new folder for the pruned model")
    parser.add_argument("--refine", type=int, default=0, help="train the exported model for so many epochs")
    study = Study(parser, args, "prune")
    config, own = study.config, study.model.order
    if (config.keep is None) == (config.milliseconds is None):
        raise UserError("say how much to keep: either --keep, a number of layers, or --milliseconds per image")
    if config.split == "test" or study.data.sets["val"] is study.data.sets["test"]:
        raise UserError(
            "the layers to keep are not chosen by test images: use --split val, and where a data set has no validation "
            "images of its own, hold out some of its training images with --data.val_fraction 0.1"
        )
    if min(config.beam, config.repeats) < 1 or config.rounds < 0:
        raise UserError("--beam and --repeats are 1 or more, and --rounds is 0 or more")
    if config.refine and not config.export:
        raise UserError("--refine trains the exported model: name a new folder for it with --export")
    if config.export:
        _check_export(study)
    searched, reported = study.data.parts("val", config.fraction, config.seed)
    times = _milliseconds(study)
    keep = config.keep
    if keep is None:
        keep = max((k for k, time in times.items() if time <= config.milliseconds), default=0)
        if not keep:
            raise UserError(f"one layer already takes {times[1]:.3g} ms per image: allow more --milliseconds")
    first(keep, len(own))  # raises a UserError if there aren't as many

    def losses(orders: Sequence[Order]) -> list[float]:
        scores = study.score(
            [Trial("prune", order) for order in orders], searched, f"searching among {len(orders)} orders of"
        )
        return [math.inf if score.loss is None else score.loss for score in scores]

    best = list(thin(own, losses, keep, config.beam))
    *_, (order, _) = climb(best[-1][0], losses, config.rounds)
    to_score = [Trial("prune", found, {"kept": len(found)}) for found, _ in best]
    if order != best[-1][0]:
        to_score.append(Trial("prune", order, {"kept": keep, "sequence": "found"}))
    measure = Pruning(len(searched.dataset), times, str(order))  # type: ignore[arg-type]
    used = {name: config[name] for name in ("keep", "milliseconds", "beam", "rounds", "fraction", "repeats")}
    scores = study.score([Trial("sequential", own), *to_score], reported)
    results = study.report(scores, EvaluationInfo(options=used), [measure])
    how = "all choices of layers" if scores_all(own, keep) else f"a beam search of width {config.beam}"
    print(f"chosen: {order} (by {how}, then exchanges, on {measure.images} validation images)")
    if config.export:
        _export(study, order)
    else:
        print(f'export it with: layershuffle export {config.checkpoint} FOLDER --order "{order}"')
    return results


def _milliseconds(study: Study) -> dict[int, float]:
    """The time per image, in ms, by how many steps of the model's base order run; their number decides, not which."""
    own, device = study.model.order, study.fabric.device
    model = study.model.to(device).eval()
    images = study.preprocess.to(device)(next(iter(study.batches))[0].to(device))
    depths = range(1, len(own) + 1)
    orders = [first(k, len(own)).over(own) for k in depths]
    with torch.inference_mode(), study.fabric.autocast():
        times = seconds_per_image(model, images, orders, study.config.repeats)
    return {k: float(f"{1000 * time:.4g}") for k, time in zip(depths, times)}


def _check_export(study: Study) -> None:
    """Raise a UserError before the search begins if its outcome can't be exported or refined as asked for."""
    check_new(Path(study.config.export))
    if "method" not in study.record:
        raise UserError(f"{study.config.checkpoint} is not a checkpoint of layershuffle train, so it can't be exported")
    if study.model.order.whole_layers is None:
        raise UserError("--export writes whole layers, one after the other, and the model's base order runs others")
    if study.config.refine and study.model.encoding:
        raise UserError(
            "--refine starts from the backbone alone, without the position encoding that this model's layers expect: "
            "leave it out"
        )


def _export(study: Study, order: Order) -> None:
    """Export the model in ``order`` with its score, beside it a config that trains it further; train if asked to."""
    config = study.config
    data = study.data.config()
    folder = Path(config.export)
    named = [f"--data={data.name}"]
    named += [f"--data.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in data.args.items()]
    export_command([config.checkpoint, config.export, f"--order={order}", f"--results={study.output}", *named])
    if study.model.encoding:
        return
    exported = load(config.export).model.config
    timm_args = {k: v for k, v in exported.items() if k not in ARGUMENTS}
    model = {"name": exported["name"], "timm_args": timm_args, "head": exported["head"], "sampler": "Sequential"}
    model["pretrained"] = str(folder / "model.safetensors")
    refine = {"model": model, "data": {"class_path": data.name, "init_args": data.args}}
    path = folder / REFINE
    write_whole(
        path,
        f"# Trains the model in this folder further, in its base order.\n{yaml.safe_dump(refine, sort_keys=False)}",
    )
    command = [str(path), f"--trainer.accelerator={config.accelerator}", f"--trainer.max_epochs={config.refine or 1}"]
    if not config.refine:
        print(f"refine it with: layershuffle train {' '.join(command)}")
        return
    best = train_command(command).best
    print(f"refined: {best}; export it with: layershuffle export {best} FOLDER")
