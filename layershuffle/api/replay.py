"""Runs a training step again whose loss or weights were not finite: ``layershuffle.replay``."""

import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from layershuffle.api.compose import compose
from layershuffle.api.train import as_options, fit
from layershuffle.errors import UserError
from layershuffle.library_messages import silenced
from layershuffle.orders.order import Order
from layershuffle.plurals import counted
from layershuffle.training import step_file
from layershuffle.training.resume import CONFIG_FILE
from layershuffle.training.step_watch import Finding, Found, StepWatch

logger = logging.getLogger(__name__)

MOST_SHOWN = 10
"""How many images, or names of parameters, are shown one by one."""


@dataclass(frozen=True)
class BadImage:
    """An image of a training for which something was not finite.

    Attributes:
        index: its number in the whole training set, from 0.
        classes: the names of its classes, nearly always just one, or their numbers if the set has no names.
        path: its file, or None if it isn't one.
    """

    index: int
    classes: list[str]
    path: str | None

    def __str__(self) -> str:
        text = f"image {self.index}, class {', '.join(self.classes)}"
        return f"{text}, {self.path}" if self.path else text


@dataclass(frozen=True)
class ReplayedStep:
    """What was not finite first when a training step was run again.

    Attributes:
        step: the step, from 0: that of the file, or the one before it, if its update has spoilt the weights.
        part: "embedding", "layer", "loss" if the layers were finite, or "update" if the loss was finite, too.
        order: the order in which it happened, as text; None for the loss and the update.
        layer: what ran, such as "3", or "(0+1)" for layers side by side; None if it was no layer.
        position: the position at which it ran; None if it was no layer.
        largest: the largest absolute value after the embedding, and then after each layer of that order until then.
        images: the images for which it was so: those of the whole batch for the loss and the update.
        batch_size: how many images the batch had.
        weights: the names of parameters that were not finite: before the step, or for an update after it.
        gradients: for an update, the names of the parameters whose gradients were not finite.
    """

    step: int
    part: str
    order: str | None
    layer: str | None
    position: int | None
    largest: list[float]
    images: list[BadImage]
    batch_size: int
    weights: list[str]
    gradients: list[str]

    def __str__(self) -> str:
        lines = [f"step {self.step}: {self._summary()}"]
        if self.order is not None:
            lines += [f"order: {self.order}", "", "after      largest value", *self._table()]
        if self.weights:
            lines += ["", "weights that are not finite:", *_shortened(self.weights)]
        if self.gradients:
            lines += ["", "gradients that are not finite:", *_shortened(self.gradients)]
        count = f"{len(self.images)} of {counted(self.batch_size, 'image')}"
        lines += ["", f"{count}:", *_shortened([str(image) for image in self.images])]
        return "\n".join(lines)

    def _summary(self) -> str:
        """In one sentence, what was not finite first."""
        if self.part == "layer":
            return f"layer {self.layer} was the first whose output was not finite, at position {self.position}"
        if self.part == "embedding":
            return "the embedding of the images was not finite, before any layer ran"
        if self.part == "loss":
            return "the outputs of all layers were finite, but the loss was not"
        return "the loss was finite, but the weights were not after the update"

    def _table(self) -> list[str]:
        """A line for the embedding and for each layer up to the first one that was not finite."""
        steps = [str(step) for step in Order(self.order or "")]
        names = ["embedding", *(f"layer {step}" for step in steps)]
        values = [f"{value:.3g}" for value in self.largest]
        # After the values of ``largest`` comes that of what was not finite; the names of later layers have none.
        values.append("not finite")
        return [f"{name:11}{value}" for name, value in zip(names, values)]


def replay(file: str | Path) -> ReplayedStep:
    """Run a training step again whose loss or weights were not finite, and see what in it was so first.

    ``layershuffle train`` saves the file in the run's folder. The training goes on from the last good checkpoint, or
    from its beginning, up to this step; it writes nothing. That needs the same data, devices and options, which are
    those of config.yaml beside the file.

    Args:
        file: what the error of the training has named, such as "runs/version_0/non_finite_step_120.safetensors".

    Raises:
        UserError: if the file, its config.yaml or its checkpoint is missing or damaged, the data have changed, or all
            was finite this time.
    """
    saved, images = step_file.load(file)
    folder = Path(file).parent
    config = folder / CONFIG_FILE
    if not config.is_file():
        raise UserError(f"there is no file {config}: leave {file} in the folder of its run")
    checkpoint = folder / saved.checkpoint if saved.checkpoint else None
    if checkpoint and not checkpoint.is_file():
        raise UserError(f"there is no file {checkpoint}, the last good checkpoint of the run: it can't be replayed")

    begin = checkpoint or "the beginning"
    logger.info("running the training again from %s to step %d", begin, saved.step)
    with TemporaryDirectory() as scratch, silenced():
        options = {
            "resume": False,
            "ckpt_path": str(checkpoint) if checkpoint else None,
            "precision": saved.precision,
            "checkpoint.dirpath": scratch,
            "trainer.default_root_dir": scratch,
            "trainer.logger": False,
        }
        run = compose([f"--config={config}", *as_options(options)])
        watch = StepWatch(saved.step, saved.rank)
        run.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        # Once the step has run, the watch ends the training by raising Found, even if all was finite.
        try:
            fit(run)
        except Found as end:
            finding = end.finding
        else:
            raise UserError(f"the training ended before step {saved.step}: its options or its data have changed")

    _check_batch(finding, saved, images)
    if finding is None:
        raise UserError(
            f"step {saved.step} was finite this time: on a GPU, sums differ from run to run without "
            "--trainer.deterministic true; elsewhere the package, torch or the data have changed"
        )
    return _described(finding, run.data.class_names)


def _check_batch(finding: Finding | None, saved: step_file.NonFiniteStep, images: torch.Tensor) -> None:
    """Raise a UserError if the batch of the saved step has other images than before."""
    # There is nothing to compare if all was finite, the images could not be read again, or the step before the saved
    # one was to blame.
    if finding is None or finding.batch is None or finding.step != saved.step:
        return
    batch = finding.batch
    same_images = torch.equal(batch.images[: len(images)].cpu(), images)
    if batch.indices != saved.indices or not same_images:
        raise UserError(f"the batch of step {saved.step} has other images than before: the data have changed")


def _described(finding: Finding, class_names: list[str] | None) -> ReplayedStep:
    """A finding with its images, classes and layers in words."""
    images = []
    batch = finding.batch
    if batch is not None:
        for row in finding.rows:
            path = batch.paths[row] if batch.paths else None
            images.append(BadImage(batch.indices[row], _classes(batch.labels[row], class_names), path))
    layer = None
    if finding.order is not None and finding.position is not None:
        layer = str(finding.order[finding.position])
    return ReplayedStep(
        step=finding.step,
        part=finding.part,
        order=str(finding.order) if finding.order is not None else None,
        layer=layer,
        position=finding.position,
        largest=finding.largest,
        images=images,
        batch_size=len(batch.labels) if batch is not None else len(finding.rows),
        weights=finding.weights,
        gradients=finding.gradients,
    )


def _classes(label: torch.Tensor, class_names: list[str] | None) -> list[str]:
    """The classes of an image: its label is one number [], or has a 1 for each class that it shows, [classes]."""
    has_several = label.ndim > 0
    numbers = label.nonzero().flatten().tolist() if has_several else [int(label)]
    if not class_names:
        return [str(number) for number in numbers]
    return [class_names[number] for number in numbers]


def _shortened(texts: list[str]) -> list[str]:
    """A line for each text, or for the first ones of many."""
    lines = [f"  {text}" for text in texts[:MOST_SHOWN]]
    if len(texts) > MOST_SHOWN:
        lines.append(f"  and {len(texts) - MOST_SHOWN} more")
    return lines
