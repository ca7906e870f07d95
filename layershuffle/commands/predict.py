"""Classifies pictures: names the likeliest classes of each, in one order or in many."""

import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.commands.parser import Parser
from layershuffle.data.decoding import UNDECODABLE, open_image, why_left_out
from layershuffle.data.folders import describe_left_out
from layershuffle.errors import UserError
from layershuffle.evaluation.device import make_fabric
from layershuffle.evaluation.scoring import outputs
from layershuffle.files import write_whole
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import trials


class Pictures(Dataset):
    """The model's input [channels, size, size] for each of ``paths``, or a sentence that says why there is none."""

    def __init__(self, paths: Sequence[str], loaded: LoadedModel) -> None:
        self.paths, self.loaded = paths, loaded

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor | str]:
        path = self.paths[index]
        try:
            return path, self.loaded.preprocess([open_image(path)])[0]
        except UNDECODABLE as error:
            return path, str(error)


def predict_command(args: list[str] | None = None) -> list[dict[str, Any]]:
    """Classify as ``args`` say, by default those of the process; prints a line for each picture and returns all."""
    parser = Parser(
        prog="layershuffle predict",
        description="Name the likeliest classes of pictures. They are preprocessed as in the model's training.",
    )
    parser.add_argument(
        "checkpoint",
        help="a checkpoint, a folder of layershuffle export or with one of the LayerShuffle authors' checkpoints, or "
        "the name of a timm model",
    )
    parser.add_argument("pictures", nargs="+", help="files, and folders in which all pictures are classified")
    parser.add_argument("--top", type=PositiveInt, default=5, help="how many classes to name")
    parser.add_argument("--order", type=str | None, help="the order of the layers (default: the model's own)")
    parser.add_argument(
        "--orders",
        type=PositiveInt | None,
        help="how many random orders to run; the probabilities are their means, and for each class it is said in how "
        "many of them it was the likeliest",
    )
    parser.add_argument("--seed", type=int, default=0, help="decides the random orders")
    parser.add_argument("--output", type=Path, nargs="+", default=[], help="files to write, .csv or .json")
    parser.add_argument("--pretrained", type=str | None, help="weights for a timm model, if not to be fetched")
    parser.add_argument("--accelerator", choices=["auto", "cpu", "gpu", "mps"], default="auto", help="where to run")
    parser.add_argument("--batch_size", type=PositiveInt, default=64, help="pictures that are classified together")
    config = parser.parse_args(args)
    if config.order is not None and config.orders:
        raise UserError("--order names one order and --orders draws many: give one of the two")
    if wrong := [path for path in config.output if path.suffix not in (".csv", ".json")]:
        raise UserError(f"--output {wrong[0]} is not the name of a file that ends in .csv or .json")
    paths, left_out = find_pictures(config.pictures)
    loaded = load(config.checkpoint, config.pretrained)
    orders = _orders(loaded, config.order, config.orders, config.seed)
    for line in describe_left_out(left_out):
        print(line, file=sys.stderr)
    found, broken = _predict(loaded, paths, orders, config)
    for path, why in broken.items():
        print(f"{path} can't be read as an image ({why})", file=sys.stderr)
    for path in config.output:
        asked = {"model": loaded.record, "orders": [str(order) for order in orders]}
        content = asked | {"pictures": found, "unreadable": [{"picture": p, "why": why} for p, why in broken.items()]}
        write_whole(path, json.dumps(content, indent=1) + "\n" if path.suffix == ".json" else _csv(found))
        print(f"predictions: {path}", file=sys.stderr)
    for picture in found:
        print(f"{picture['picture']}: {_line(picture['classes'], len(orders))}")
    if not found:
        raise UserError("no picture could be read")
    return found


def find_pictures(named: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The files to classify, and those of the folders in ``named`` that are left out, each with the reason.

    Raises UserError if one of ``named`` doesn't exist, or if there is nothing to classify.
    """
    paths: list[str] = []
    left_out: list[tuple[str, str]] = []
    for name in named:
        if not os.path.exists(name):
            raise UserError(f"there is no file or folder {name}")
        if not os.path.isdir(name):
            paths.append(name)
        for folder, _, files in sorted(os.walk(name, followlinks=True)):
            for path in (os.path.join(folder, file) for file in sorted(files)):
                if why := why_left_out(path, name):
                    left_out.append((path, why))
                else:
                    paths.append(path)
    if not paths:
        raise UserError(f"there is no picture in {', '.join(named)}")
    return list(dict.fromkeys(paths)), left_out


def _orders(loaded: LoadedModel, order: str | None, draws: int | None, seed: int) -> list[Order]:
    """The orders to run: one, or the random ones that ``layershuffle evaluate`` draws with the same seed.

    None, if each picture chooses its own.
    """
    model = loaded.model
    if draws:
        drawn = trials(["arbitrary"], model.order, draws, seed)
        return [trial.order for trial in drawn if isinstance(trial.order, Order)]
    if order is None and model.choice:
        return []
    return [model.order if order is None else loaded.check(order)]


@torch.inference_mode()
def _predict(
    loaded: LoadedModel, paths: list[str], orders: list[Order], config: Any
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What the pictures show, and why the others could not be read, by path."""
    fabric = make_fabric(config.accelerator, "32-true", loaded.model)
    model = loaded.model.to(fabric.device)
    workers = min(len(os.sched_getaffinity(0)), 16) if len(paths) > config.batch_size else 0
    loader = DataLoader(Pictures(paths, loaded), config.batch_size, num_workers=workers, collate_fn=list)
    console = Console(stderr=True)
    found: list[dict[str, Any]] = []
    broken: dict[str, str] = {}
    # auto_refresh would start a thread, which must not run while the workers are forked.
    silent = not console.is_terminal  # where rich would leave an empty line
    for batch in track(loader, "classifying", console=console, transient=True, auto_refresh=False, disable=silent):
        broken |= {path: image for path, image in batch if isinstance(image, str)}
        readable = {path: image for path, image in batch if isinstance(image, Tensor)}
        if not readable:
            continue
        images = torch.stack([*readable.values()]).to(fabric.device)
        logits = {order: output.logits for order, output in outputs(model, images, orders)}
        each = torch.stack([logits[order] for order in orders] or [model(images).logits]).softmax(dim=-1)
        likeliest = torch.zeros_like(each).scatter_(-1, each.argmax(dim=-1, keepdim=True), 1).mean(dim=0)
        for path, probabilities, first in zip(readable, each.mean(dim=0), likeliest):
            best = probabilities.argsort(descending=True)[: config.top].tolist()
            classes = [
                {
                    "class": loaded.classes[label],
                    "probability": round(float(probabilities[label]), 6),
                    "first": round(float(first[label]), 6),
                }
                for label in best
            ]
            found.append({"picture": path, "classes": classes})
    return found, broken


def _line(classes: list[dict[str, Any]], orders: int) -> str:
    def agree(first: float) -> str:
        return f" (first in {round(first * orders)} of {orders} orders)" if orders > 1 and first else ""

    return "; ".join(f"{found['probability']:.1%} {found['class']}{agree(found['first'])}" for found in classes)


def _csv(found: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["picture", "rank", "class", "probability", "first"])
    for picture in found:
        for rank, row in enumerate(picture["classes"], 1):
            writer.writerow([picture["picture"], rank, *row.values()])
    return text.getvalue()
