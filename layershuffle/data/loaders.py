"""How images get to the process that trains or evaluates: workers, memory, and the device that holds them."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from layershuffle.data.augmentation import Augmented
from layershuffle.data.preprocessing import replace_unreadable, skip_unreadable
from layershuffle.data.sets import TensorImages, check_labels, images_by_class, labels_of, whole_set
from layershuffle.errors import UserError
from layershuffle.processes import usable_cores

WORKERS_LIMIT = 1024
"""How many processes an option may ask for; no machine has that many cores."""
MOST_WORKERS = 16
"""More processes than this are not started unless the user says so."""


def image_loader(
    images: Dataset,
    batch_size: int,
    *,
    label: str,
    num_classes: int,
    training: bool,
    workers: int | None,
    on_device: bool | Literal["auto"],
    device: torch.device,
    sampler: Sampler | None = None,
    batch_sampler: list[list[int]] | None = None,
    drop_last: bool = False,
    new_labels: Sequence[int] | None = None,
) -> DataLoader:
    """A loader of uint8 images [batch, channels, height, width] and labels, see ``ImageData``.

    Args:
        images: the set, or a part of it.
        batch_size: images per batch.
        label: the name of the data set.
        num_classes: its number of classes.
        training: whether batches must be full, so that others take the place of images that can't be read.
        workers: see ``ImageData``.
        on_device: see ``ImageData``.
        device: the device that trains or evaluates.
        sampler: which images come in which sequence; by default all of them in their own.
        batch_sampler: the indices of the images of each batch; then batch_size is 1, as ``DataLoader`` demands.
        drop_last: whether to leave out an incomplete last batch.
        new_labels: what to replace each label with; by default labels stay as they are.

    Raises:
        UserError: if the images can't be kept on the device.
    """
    source = whole_set(images)
    augmented = isinstance(images, Augmented)
    on_host = True

    # Images in memory can be kept on the device. How many workers pay off depends on that.
    if isinstance(source, TensorImages):
        # Workers change the images, which they can't on the device. There this process does it, if the user insists.
        stays_on_host = augmented and on_device is not True
        home = torch.device("cpu") if stays_on_host else _home(source, device, on_device, label)
        source.move(home)
        on_host = home.type == "cpu"
        if not on_host:
            workers = 0
        elif not augmented:
            workers = workers or 0  # Taking a batch from memory is faster than getting it from another process.
    elif on_device is True:
        raise UserError(f"{label} is read from disk image by image, not held in memory: leave on_device out")

    if workers is None:
        workers = min(MOST_WORKERS, usable_cores())

    collate = _collate(images, training)
    # Labels that are known without reading the images have been checked before.
    if labels_of(images) is None and images_by_class(images, num_classes) is None:
        collate = CheckedLabels(collate, num_classes, label)
    if new_labels is not None:
        collate = Relabelled(collate, new_labels)

    return ImageLoader(
        images,
        batch_size,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_ignore_interrupt,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available() and on_host,
        sampler=sampler,
        batch_sampler=batch_sampler,
        drop_last=drop_last,
    )


def _collate(images: Dataset, training: bool) -> Callable[[Any], Any]:
    """What makes a batch of the items that a set returns."""
    # A set with ``__getitems__`` returns a batch already.
    if isinstance(images, Augmented) or hasattr(whole_set(images), "__getitems__"):
        return tuple
    return replace_unreadable if training else skip_unreadable


class Relabelled:
    """Collates images and labels, and replaces the labels.

    Args:
        collate: what makes images and labels, int64 [batch] or uint8 [batch, classes], of the items of a batch.
        new_labels: what to replace each label with.
    """

    def __init__(self, collate: Callable[[Any], Any], new_labels: Sequence[int]) -> None:
        self.collate = collate
        self.new_labels = torch.tensor(new_labels, dtype=torch.int64)

    def __call__(self, items: Any) -> tuple[Tensor, Tensor]:
        images, labels = self.collate(items)
        new_labels = self.new_labels.to(labels.device)
        if labels.ndim == 1:
            return images, new_labels[labels]
        # Where an image can have several labels, each class has a column.
        moved = torch.empty_like(labels)
        moved[:, new_labels] = labels
        return images, moved


@dataclass(frozen=True)
class CheckedLabels:
    """Makes batches, and raises a UserError for a label that is none of the classes: a GPU would abort the process.

    Attributes:
        collate: makes the batches.
        num_classes: the number of classes.
        owner: the name of the data set.
    """

    collate: Callable[[Any], Any]
    num_classes: int
    owner: str

    def __call__(self, items: Any) -> Any:
        batch = self.collate(items)
        labels = batch[1]
        if len(labels):
            check_labels(labels, self.num_classes, self.owner)
        return batch


class ImageLoader(DataLoader):
    """A DataLoader that says in one line why a process that reads images has ended."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # The iterator draws a random number when it is made, so that must happen now and not with the first batch.
        return _explained(super().__iter__())


def _explained(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; raises UserError where a process that reads them was killed or shared memory is full."""
    try:
        yield from batches
    except (RuntimeError, OSError) as error:
        reason = why_reading_ended(error)
        if reason is None:
            raise
        raise UserError(f"{reason}: use fewer --data.workers, or 0") from error


def why_reading_ended(error: Exception) -> str | None:
    """What happened to a process that reads images; None if the error has another cause."""
    # torch has no classes of its own for these errors, only words.
    text = f"{error} {error.__cause__}"
    lacks_memory = "shared memory" in text or "bus error" in text.lower()
    if lacks_memory or ("No space left on device" in text and "torch_" in text):
        return "shared memory, /dev/shm, is too small for the processes that read images (docker run --shm-size 8g)"
    # torch doesn't always say which signal it was, so this may be a bus error (shared memory is full) as well.
    if "DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text):
        return "a process that reads images has been killed, perhaps because memory or shared memory (/dev/shm) ran out"
    return None


def _home(images: TensorImages, device: torch.device, on_device: bool | Literal["auto"], label: str) -> torch.device:
    """The device to keep ``images`` on: the one that computes, if the user wants that and they fit."""
    host = torch.device("cpu")
    # Another loader of the same set has moved it there.
    if images.images.device == device:
        return device
    if on_device is False:
        return host

    needed = images.images.nbytes + images.labels.nbytes
    free = None
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)

    if on_device == "auto":
        # A CPU holds them anyway, and other accelerators don't say how much memory is free.
        plenty = free is not None and 10 * needed <= free
        return device if plenty else host
    if free is not None and needed > free:
        raise UserError(
            f"the images of {label} take {needed / 1e9:.1f} GB and the device has {free / 1e9:.1f} GB free: "
            "leave on_device out"
        )
    return device


def _ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which the terminal sends to workers too, to the process that reads from them: it may save first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
