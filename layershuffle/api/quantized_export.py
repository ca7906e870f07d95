"""Quantizes exported programs, and compares what they answer with the original on test images."""

import itertools
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from layershuffle.api.arguments import check_at_least, check_choice
from layershuffle.api.classifier import with_classifier_for
from layershuffle.api.data import DataLike, as_data
from layershuffle.api.export_check import SAMPLED, Run, random_orders, run_of
from layershuffle.api.progress import progress_bar
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.programs import MANIFEST, Programs
from layershuffle.checkpoints.quantize import Inputs, halve_weights, to_int8
from layershuffle.checkpoints.quantized import Agreement, Quantized
from layershuffle.choices import ExportFormat, Quantize, Target
from layershuffle.data import ImageData, Preprocess, warn_of_training_images
from layershuffle.data.sets import Splitter
from layershuffle.errors import UserError
from layershuffle.evaluation.metrics import best_class
from layershuffle.hardware import device_name, seconds
from layershuffle.models import OrderedViT
from layershuffle.orders.order import Order, sequential
from layershuffle.plurals import counted

BATCH = 16
"""How many images the original classifies together, and ranges are measured on together."""
TIMED = 20
"""How often the time of one image is measured; the shortest counts."""


@dataclass(frozen=True)
class Quantization:
    """How ONNX programs are made smaller, and what they may lose.

    Attributes:
        kind: "int8" multiplies 8-bit integers. "fp16" stores the weights in half precision; they become float32 again
            when the program is opened, so that the file is half as large and nothing is faster.
        calibrate: on how many training images the ranges of int8 are measured, once and for all. By default, the
            program measures them each time it runs.
        check_images: on how many random test images the program is compared with the original.
        max_loss: how far its top-1 accuracy may fall, from 0 to 1, in the base order and in the mean of random orders.
        min_agreement: the smallest share of images, from 0 to 1, to which it must give the original's class.
    """

    kind: Quantize
    calibrate: int | None = None
    check_images: int = 500
    max_loss: float = 0.02
    min_agreement: float = 0.9

    def check(self, format: ExportFormat, target: Target) -> None:
        """Raise a UserError if a value can't be, or if such an export can't be quantized."""
        check_choice("quantize", self.kind, Quantize)
        if format != "onnx":
            raise UserError(f"only ONNX programs can be quantized, not the format {format}: choose the format onnx")
        if target != "cpu":
            raise UserError("quantized programs run on the CPU: leave out the target")
        check_at_least(1, check_images=self.check_images)
        if self.calibrate is not None:
            check_at_least(1, calibrate=self.calibrate)
            if self.kind != "int8":
                raise UserError(f"{self.kind} has no ranges to calibrate, only int8 has: leave out calibrate")
        for name, share in (("max_loss", self.max_loss), ("min_agreement", self.min_agreement)):
            if not 0 <= share <= 1:
                raise UserError(f"{name} can't be {share}: give a share from 0 to 1, such as 0.02")


def as_quantization(quantize: Quantize | Quantization | None) -> Quantization | None:
    """The quantization that is asked for in one word, or in all its values."""
    if quantize is None or isinstance(quantize, Quantization):
        return quantize
    return Quantization(quantize)


class CheckImages(NamedTuple):
    """The images that a quantized program is made and checked with.

    Attributes:
        images: test images, uint8 [images, channels, size, size].
        labels: of these, int64 [images].
        calibration: training images, uint8 [images, channels, size, size]; None if none are needed.
        compared_on: the test images in words.
    """

    images: Tensor
    labels: Tensor
    calibration: Tensor | None
    compared_on: str


def images_to_check(quantization: Quantization, data: DataLike, loaded: LoadedModel) -> CheckImages:
    """Random test images with their labels, and training images if the program is calibrated.

    Raises:
        UserError: if there is no such data set, it has several labels for each image, or it doesn't fit the model.
    """
    images_of = as_data(data, loaded)
    if images_of.has_several_labels:
        raise UserError(
            f"a quantized program is checked by its top-1 class, and images of {images_of.label} have several labels: "
            "leave out quantize"
        )
    # So few images don't repay the start of worker processes.
    images_of.workers = 0
    preprocess = images_of.prepare_for(*loaded.model.image_format)
    images_of.prepare_data()
    images_of.setup("fit" if quantization.calibrate else "test")
    # The labels are then in the sequence of the model's classes.
    with_classifier_for(images_of, loaded)
    if loaded.data is not None:
        warn_of_training_images(loaded.data, images_of, "test")

    # Programs take as many channels as the model. Grey images, which fit every model, are repeated over them.
    channels = loaded.model.image_shape[0]
    images, labels = _random_images(images_of, "test", quantization.check_images, preprocess)
    images = images.expand(-1, channels, -1, -1)
    calibration = None
    if quantization.calibrate:
        calibration, _ = _random_images(images_of, "train", quantization.calibrate, preprocess)
        calibration = calibration.expand(-1, channels, -1, -1)
    return CheckImages(images, labels, calibration, f"{counted(len(images), 'test image')} of {images_of.label}")


def quantize_export(
    loaded: LoadedModel,
    original: Path,
    folder: Path,
    only_order: Order | None,
    quantization: Quantization,
    checked: CheckImages,
) -> Quantized:
    """Quantize the programs of a folder, and compare them with the model.

    Args:
        loaded: the model.
        original: the folder of ``export_programs``.
        folder: the folder for the quantized programs.
        only_order: the order that was exported; None for the base order. Programs of single layers are compared in
            random orders, too.
        quantization: how they are quantized.
        checked: the images.

    Raises:
        UserError: if they can't be written or lose too much.
    """
    programs = Programs(original)
    # Programs of single layers run any order.
    is_per_layer = "layers" in programs.manifest["files"]

    # The orders to compare in, by what the model card calls them.
    order = only_order or loaded.order
    groups = {"base order" if only_order is None else "its order": [order]}
    if is_per_layer:
        others = random_orders(order, SAMPLED)
        if others:
            groups[counted(len(others), "random order")] = others

    orders = list(itertools.chain.from_iterable(groups.values()))
    if is_per_layer:
        orders = _with_all_layers(orders, loaded.model.depth)
    calibration = _calibration(original, loaded.model, checked.calibration, orders)
    try:
        _quantize_files(programs, folder, quantization.kind, calibration)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error.strerror or error}") from error

    before = run_of(programs, loaded.model)
    smaller = Programs(folder)
    after = run_of(smaller, loaded.model)
    agreements = _agreements(loaded, after, groups, checked)
    _check_loss(agreements, quantization)
    original_milliseconds, milliseconds = _milliseconds([before, after], checked.images[:1], order)
    return Quantized(
        kind=quantization.kind,
        calibrated_on=0 if checked.calibration is None else len(checked.calibration),
        original_bytes=_size(programs),
        bytes=_size(smaller),
        original_milliseconds=original_milliseconds,
        milliseconds=milliseconds,
        device=f"{device_name(torch.device('cpu'))}, {counted(torch.get_num_threads(), 'thread')}",
        compared_on=checked.compared_on,
        agreements=tuple(agreements),
    )


def _quantize_files(
    programs: Programs, folder: Path, kind: Quantize, calibration: Mapping[str, Sequence[Inputs]]
) -> None:
    """Write each of the programs to ``folder``, quantized, and a copy of their manifest."""
    with progress_bar(f"quantizing {programs.folder.parent.name}", len(programs.paths), "program") as advance:
        for path in programs.paths:
            target = folder / path.name
            if kind == "fp16":
                halve_weights(path, target)
            else:
                to_int8(path, target, calibration.get(path.name))
            advance()
    shutil.copy(programs.folder / MANIFEST, folder)


def _size(programs: Programs) -> int:
    """The size of all programs, in bytes."""
    return sum(path.stat().st_size for path in programs.paths)


def _random_images(
    images_of: ImageData, split: Literal["train", "test"], count: int, preprocess: Preprocess
) -> tuple[Tensor, Tensor]:
    """At most ``count`` random images of a split, and their labels.

    The images are uint8 [images, channels, size, size], the labels int64 [images]. Of a data set that is split by
    class, each class keeps its share.
    """
    images = images_of.sets[split]
    # Folders are read class by class, so that the first images would be of few classes.
    if count < len(images):  # type: ignore[arg-type]
        images, _ = Splitter(seed=0, stratified=images_of.stratified).divide(images, count)
        images_of.sets[split] = images
    batches = []
    labels = []
    for batch, batch_labels in images_of.loader(split, BATCH):
        batches.append(preprocess.resized(batch))
        labels.append(batch_labels)
    return torch.cat(batches), torch.cat(labels)


def _with_all_layers(orders: list[Order], depth: int) -> list[Order]:
    """The orders to calibrate in, which together run all layers.

    A layer that the model's base order leaves out has a program, too, and random orders leave it out as well.
    """
    layers = set(itertools.chain.from_iterable(order.layers for order in orders))
    if len(layers) == depth:
        return orders
    return [sequential(depth), *orders]


def _calibration(
    original: Path, model: OrderedViT, images: Tensor | None, orders: Sequence[Order]
) -> dict[str, list[Inputs]]:
    """What each program of a folder gets when ``images`` run through them, by the name of its file.

    The orders take turns, so that a layer sees what it gets at several positions. Without images there is nothing.
    """
    if images is None:
        return {}
    calibration: dict[str, list[Inputs]] = defaultdict(list)

    def keep(name: str, inputs: tuple[Tensor, ...]) -> None:
        calibration[name].append(tuple(tensor.numpy() for tensor in inputs))

    run = run_of(Programs(original, on_call=keep), model)
    for batch, order in zip(images.split(BATCH), itertools.cycle(orders)):
        run(batch, order)
    return calibration


@torch.inference_mode()
def _agreements(
    loaded: LoadedModel, run: Run, groups: Mapping[str, Sequence[Order]], checked: CheckImages
) -> list[Agreement]:
    """How ``run`` and the model classify the images, in each group of orders."""
    model = loaded.model
    normalise = Preprocess(*model.image_format)
    batches = list(zip(checked.images.split(BATCH), checked.labels.split(BATCH)))
    orders = sum(len(group) for group in groups.values())
    agreements = []
    with progress_bar(f"checking {loaded.info.name}", orders * len(batches), "batch") as advance:
        for name, group in groups.items():
            right_before = 0
            right_after = 0
            equal = 0
            for order in group:
                for images, labels in batches:
                    before = best_class(model(normalise(images), order).logits)
                    # One image at a time, as on a small device: ranges that are measured as the program runs are those
                    # of its whole batch.
                    after = best_class(torch.cat([run(image[None], order) for image in images]))
                    right_before += int((before == labels).sum())
                    right_after += int((after == labels).sum())
                    equal += int((before == after).sum())
                    advance()
            total = len(group) * len(checked.images)
            agreements.append(Agreement(name, right_before / total, right_after / total, equal / total))
    return agreements


def _check_loss(agreements: Sequence[Agreement], quantization: Quantization) -> None:
    """Raise a UserError that says all figures if one of them is beyond its limit."""

    def is_within(agreement: Agreement) -> bool:
        return agreement.loss <= quantization.max_loss and agreement.agreement >= quantization.min_agreement

    if all(map(is_within, agreements)):
        return
    figures = "; ".join(map(str, agreements))
    raise UserError(
        f"the {quantization.kind} program loses too much, so it was not kept: {figures} (limits: max_loss "
        f"{quantization.max_loss:g}, min_agreement {quantization.min_agreement:g})"
    )


def _milliseconds(runs: Sequence[Run], image: Tensor, order: Order) -> list[float]:
    """The time that each of ``runs`` takes for one image, the shortest of several."""
    times: list[list[float]] = [[] for _ in runs]
    # In turns, so that changes of the machine's speed affect all alike.
    for _ in range(TIMED):
        for run, run_times in zip(runs, times):
            run_times.append(1000 * seconds(partial(run, image, order), image.device))
    return [min(run_times) for run_times in times]
