"""What is known about a quantized program: how it was made, and how it compares with the original."""

from dataclasses import asdict, dataclass
from typing import Any

from layershuffle.choices import Quantize
from layershuffle.plurals import counted

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Agreement:
    """How a quantized program and the original classify the same images.

    Attributes:
        orders: the orders, in words.
        original_top1: the original's accuracy, from 0 to 1.
        top1: the quantized program's.
        agreement: the share of the images for which both have the same first class.
    """

    orders: str
    original_top1: float
    top1: float
    agreement: float

    @property
    def loss(self) -> float:
        """How far the accuracy falls, from -1 to 1."""
        return self.original_top1 - self.top1

    def __str__(self) -> str:
        return (
            f"{self.orders}: top-1 {self.original_top1:.1%} before, {self.top1:.1%} after, "
            f"agreement {self.agreement:.1%}"
        )


@dataclass(frozen=True)
class Quantized:
    """How a program was quantized, and how it compares with the original.

    Attributes:
        kind: "int8" or "fp16".
        calibrated_on: how many training images int8 ranges were measured on; 0 if the program measures them.
        original_bytes: the size of the files in float32.
        bytes: the size of the quantized files.
        original_milliseconds: the time of one image in float32, the shortest of several runs in ONNX Runtime.
        milliseconds: the time of one image after quantization.
        device: the processor, and the number of threads.
        compared_on: the images that they were compared on, in words.
        agreements: how they classify these, first in the base order, then in random ones if they can run any.
    """

    kind: Quantize
    calibrated_on: int
    original_bytes: int
    bytes: int
    original_milliseconds: float
    milliseconds: float
    device: str
    compared_on: str
    agreements: tuple[Agreement, ...]

    @property
    def how(self) -> str:
        """What was done, such as "int8, calibrated on 128 training images"."""
        if self.kind == "fp16":
            return "fp16 weights, computing in float32"
        if self.calibrated_on:
            return f"int8, calibrated on {counted(self.calibrated_on, 'training image')}"
        return "int8, ranges measured as it runs"

    @property
    def gain(self) -> str:
        """Its size and its time, before and after."""
        return (
            f"{self.original_bytes / MEGABYTE:.2f} MB before, {self.bytes / MEGABYTE:.2f} after; "
            f"{_digits(self.original_milliseconds)} ms / image before, {_digits(self.milliseconds)} after"
        )

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return asdict(self)

    def markdown(self) -> str:
        """A section of the model card: a table of what was compared, before and after."""
        rows = [
            ("size, MB", f"{self.original_bytes / MEGABYTE:.2f}", f"{self.bytes / MEGABYTE:.2f}", ""),
            ("ms / image", _digits(self.original_milliseconds), _digits(self.milliseconds), ""),
        ]
        for compared in self.agreements:
            name = f"top-1, {compared.orders}"
            rows.append((name, f"{compared.original_top1:.1%}", f"{compared.top1:.1%}", f"{compared.agreement:.1%}"))
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        return f"""

## Quantized

This program is quantized ({self.how}).
It was compared with the original, in float32, on {self.compared_on}:

| | original | quantized | same first class |
|---|---|---|---|
{table}

Times are of one image at a time in ONNX Runtime, the shortest of several runs, on {self.device}."""


def _digits(number: float) -> str:
    """Three digits of a number, and all of those before the point."""
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"
