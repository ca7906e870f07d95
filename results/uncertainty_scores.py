"""Asks how well a model's uncertainty tells its errors, with one order, many orders, and what else costs as much.

    python results/uncertainty_scores.py experiments/width/emoji/*/seed*/best.ckpt --folder results/uncertainty/emoji

Writes a JSON file for each checkpoint, of which results/uncertainty.py makes the table and the picture. Half of the
forward passes are on test pictures as they are, the others on the same pictures, each with one of five faults.
"""

import argparse
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

import layershuffle
from layershuffle.api.study import Study, start_study
from layershuffle.data import from_config
from layershuffle.evaluation.ensemble import Ensemble
from layershuffle.evaluation.metrics import OrderMetrics
from layershuffle.evaluation.scoring import run_orders
from layershuffle.evaluation.selective import (
    accuracy_at,
    area_under_risk_coverage,
    error_auroc,
    selective_accuracy,
)
from layershuffle.models.model import Output
from layershuffle.orders.named import random_subset
from layershuffle.orders.order import Order, seeded

logger = logging.getLogger(__name__)

MEMBERS = 20
SIZES = (1, 2, 5, 10, 20)
"""Ensembles of so many members are compared, too."""
KEPT = 10
"""How many layers the members of layer drop keep."""
COVERAGES = [percent / 100 for percent in range(5, 101, 5)]
TEMPERATURES = torch.logspace(-1, 1, 81, base=4)
PART = 200
"""So many images run at a time."""


# --- Pictures -----------------------------------------------------------------------------------------------------


def moved(images: Tensor, angle: float, across: float = 0, down: float = 0, scale: float = 1) -> Tensor:
    """Turn uint8 images by degrees, shift them by pixels, and scale them; their edges go on outside of them."""
    size = images.shape[-1]
    padded = vision.pad(images, [size // 2], padding_mode="edge")
    turned = vision.affine(padded, angle, [across, down], scale, [0.0], v2.InterpolationMode.BILINEAR)
    return vision.center_crop(turned, [size])


def covered(images: Tensor) -> Tensor:
    """Put a grey square, of 3/8 of the width, somewhere on each image."""
    size = images.shape[-1]
    side = 3 * size // 8
    images = images.clone()
    corners = torch.randint(size - side + 1, (len(images), 2))
    for image, (top, left) in zip(images, corners.tolist()):
        image[:, top : top + side, left : left + side] = 128
    return images


def noisy(images: Tensor) -> Tensor:
    """Add Gaussian noise with a standard deviation of a fifth of the range."""
    return v2.GaussianNoise(sigma=0.2)(images)


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "noise": noisy,
    "blur": lambda images: vision.gaussian_blur(images, [7, 7], [1.5, 1.5]),
    "contrast": lambda images: vision.adjust_contrast(images, 0.25),
    "turned": lambda images: moved(images, 30),
    "covered": covered,
}


def corrupted(images: Tensor) -> tuple[Tensor, Tensor]:
    """Each image with one fault, and the number of the fault: every fifth has the first fault, and so on."""
    faults = torch.arange(len(images)) % len(CORRUPTIONS)
    images = images.clone()
    for fault, corrupt in enumerate(CORRUPTIONS.values()):
        images[faults == fault] = corrupt(images[faults == fault])
    return images, faults


def all_images(batches: DataLoader, most: int) -> tuple[Tensor, Tensor]:
    """The uint8 images and the labels of a loader; if there are more than ``most``, evenly chosen ones."""
    parts = list(batches)
    images = torch.cat([part_images for part_images, _ in parts])
    labels = torch.cat([part_labels for _, part_labels in parts])
    chosen = torch.linspace(0, len(labels) - 1, min(most, len(labels))).round().long()
    return images[chosen], labels[chosen]


# --- Members ------------------------------------------------------------------------------------------------------


def in_orders(study: Study, images: Tensor, orders: list[Order]) -> Iterator[Tensor]:
    """The logits of uint8 images in each order, [images, classes]."""
    logits: dict[Order, list[Tensor]] = {}
    for part in images.split(PART):
        for order, output in run_orders(study.model, study.preprocess(part), orders):
            logits.setdefault(order, []).append(output.logits)
    for order in orders:
        yield torch.cat(logits[order])


def augmented(study: Study, images: Tensor) -> Iterator[Tensor]:
    """The logits of the images as they are and moved a little, in the base order.

    They are also mirrored, if this changes no class.
    """
    may_mirror = not study.data.has_handed_classes
    for member in range(MEMBERS):
        rng = seeded(0, "augmentation", member)
        version = images
        if member:
            angle = 20 * rng.random() - 10
            across = 4 * rng.random() - 2
            down = 4 * rng.random() - 2
            version = moved(images, angle, across, down, scale=0.9 + 0.2 * rng.random())
        if may_mirror and member % 2:
            version = vision.horizontal_flip(version)
        yield from in_orders(study, version, [study.model.order])


def best_temperature(logits: Tensor, labels: Tensor) -> float:
    """By what to divide logits so that the cross-entropy is the lowest (arXiv 1706.04599, section 4.2)."""
    losses = [float(F.cross_entropy(logits / temperature, labels)) for temperature in TEMPERATURES]
    return float(TEMPERATURES[torch.tensor(losses).argmin()])


@dataclass(frozen=True)
class Method:
    """A way to become less or more certain.

    Attributes:
        name: what tables call it.
        layers: how many layers an image passes in all.
        members: the logits of each of its forward passes for uint8 images.
    """

    name: str
    layers: int
    members: Callable[[Tensor], Iterator[Tensor]]


def methods_of(study: Study) -> list[Method]:
    """The methods that are compared."""
    base = study.model.order
    depth = len(base)
    # The orders of ``evaluate --random_orders``, with the same seed.
    shuffled = [base.shuffled(seeded(study.seed, "arbitrary", number)) for number in range(MEMBERS)]
    subsets = [random_subset(KEPT, depth, seeded(study.seed, "layer drop", number)) for number in range(MEMBERS)]

    return [
        Method("one order", depth, lambda images: in_orders(study, images, [base])),
        Method("random orders", MEMBERS * depth, lambda images: in_orders(study, images, shuffled)),
        Method("layer drop", MEMBERS * KEPT, lambda images: in_orders(study, images, subsets)),
        Method("augmentation", MEMBERS * depth, lambda images: augmented(study, images)),
    ]


# --- Scores -------------------------------------------------------------------------------------------------------


def by_probability(ensemble: Ensemble, labels: Tensor) -> tuple[Tensor, Tensor]:
    """1 less the probability of the predicted class, and whether that is right: floats and bool [images]."""
    likeliest = ensemble.probabilities.max(dim=-1)
    return 1 - likeliest.values, likeliest.indices == labels


def calibration_error(ensemble: Ensemble, labels: Tensor) -> float | None:
    """The expected calibration error of the mean probabilities, 0 to 1."""
    # The mean is scored as if it were one order's: the softmax of its logarithm is the mean itself.
    metrics = OrderMetrics(1)
    metrics.update(0, [Output(ensemble.probabilities.log())], labels)
    return metrics.compute()[0].ece


def scored(ensemble: Ensemble, labels: Tensor) -> dict[str, Any]:
    """What the JSON file says of one method on one kind of pictures."""
    by_mean, right = by_probability(ensemble, labels)
    # The mutual information is at most the logarithm of the number of classes.
    largest = math.log(ensemble.probabilities.shape[-1])
    uncertainties = {
        "probability": by_mean,
        "mutual information": ensemble.mutual_information() / largest,
        "agreement": 1 - ensemble.agreement(),
    }
    entry: dict[str, Any] = {"top1": float(right.float().mean())}
    for name, uncertainty in uncertainties.items():
        accuracies = selective_accuracy(uncertainty, right)
        entry[name] = {
            "auroc": error_auroc(uncertainty, right),
            "aurc": area_under_risk_coverage(accuracies),
            "accuracy": [accuracy_at(coverage, accuracies) for coverage in COVERAGES],
        }
    return entry


def by_fault(ensemble: Ensemble, labels: Tensor, faults: Tensor) -> dict[str, Any]:
    """The accuracy and how well errors are told, of the pictures with each fault."""
    uncertainty, right = by_probability(ensemble, labels)
    entry = {}
    for number, name in enumerate(CORRUPTIONS):
        has_fault = faults == number
        auroc = error_auroc(uncertainty[has_fault], right[has_fault])
        entry[name] = {"top1": float(right[has_fault].float().mean()), "auroc": auroc}
    return entry


def judge(method: Method, images: Tensor, labels: Tensor, temperature: float) -> tuple[Ensemble, dict[str, Any]]:
    """Run a method on uint8 images: its ensemble, and what the JSON file says of it."""
    ensemble = Ensemble()
    tempered = Ensemble()
    auroc_by_members = {}
    for number, logits in enumerate(method.members(images), 1):
        ensemble.add(logits)
        tempered.add(logits / temperature)
        if number in SIZES:
            auroc_by_members[number] = error_auroc(*by_probability(ensemble, labels))
    entry = {
        "method": method.name,
        "layers": method.layers,
        **scored(ensemble, labels),
        "ece": calibration_error(ensemble, labels),
        "ece_with_temperature": calibration_error(tempered, labels),
        "auroc_by_members": auroc_by_members,
    }
    return ensemble, entry


@torch.inference_mode()
def measure(checkpoint: str, most_images: int) -> dict[str, Any]:
    """The JSON file of one checkpoint."""
    loaded = layershuffle.load(checkpoint)
    if loaded.data is None:
        raise SystemExit(f"{checkpoint} doesn't say which data it was trained on")
    study = start_study(loaded, from_config(loaded.data), split="test", accelerator="cpu")
    study.model.eval()
    torch.manual_seed(0)
    images, labels = all_images(study.batches, most_images)
    pictures: dict[str, tuple[Tensor, Tensor | None]] = {"clean": (images, None), "corrupted": corrupted(images)}

    # The temperature comes from validation pictures, which are never corrupted.
    validation = start_study(loaded, from_config(loaded.data), split="val", accelerator="cpu")
    val_images, val_labels = all_images(validation.batches, most_images)
    (val_logits,) = in_orders(study, val_images, [study.model.order])
    temperature = best_temperature(val_logits, val_labels)

    entries = []
    for kind, (shown, faults) in pictures.items():
        for method in methods_of(study):
            ensemble, entry = judge(method, shown, labels, temperature)
            if faults is not None:
                entry["faults"] = by_fault(ensemble, labels, faults)
            entries.append({"pictures": kind, **entry})
            logger.info("%s %s %s: %s", loaded.info.method, kind, method.name, entry["auroc_by_members"])
    return {
        "training": loaded.info.method,
        "checkpoint": loaded.info.sha256,
        "data": study.data.label,
        "images": len(labels),
        "members": MEMBERS,
        "temperature": round(temperature, 4),
        "scores": entries,
    }


def main() -> None:
    """Measure each checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", nargs="+", help="Files METHOD/SEED/best.ckpt.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--test_images", type=int, default=500)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)

    for checkpoint in args.checkpoints:
        run = Path(checkpoint).parent
        path = args.folder / f"{run.parent.name}-{run.name}.json"
        content = measure(checkpoint, args.test_images)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
