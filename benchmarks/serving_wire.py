"""The forms in which tokens travel, of ``benchmarks.serving``: bytes, accuracy, and the error of the logits."""

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from layershuffle.api.study import start_study
from layershuffle.choices import Wire
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, seeded
from layershuffle.results.tables import markdown
from layershuffle.serving.wire import answer_of, newest_after, pack, unpack

IMAGES = 1000
WIDTHS = (1, 4)


class WireMeasures:
    """What was found of a form of what travels.

    Attributes:
        images: how many images were classified.
        right: how many of them rightly.
        agree: how many of them as with float32.
        errors: the mean error of the logits of each batch, as a share of their standard deviation.
        bytes: what travels for an image in a step, to the node and back.
    """

    def __init__(self) -> None:
        self.images = 0
        self.right = 0
        self.agree = 0
        self.errors: list[float] = []
        self.bytes = 0.0

    def add(self, logits: Tensor, exact: Tensor, labels: Tensor) -> None:
        """Count a batch, of which float32 gives ``exact`` logits."""
        classes = logits.argmax(dim=1)
        self.images += len(labels)
        self.right += int((classes == labels).sum())
        self.agree += int((classes == exact.argmax(dim=1)).sum())
        self.errors.append(float((logits - exact).abs().mean() / exact.std()))

    def row(self) -> list[str]:
        """Bytes, accuracy, agreement and error."""
        error = sum(self.errors) / len(self.errors)
        right, agree = (f"{100 * count / self.images:.2f}" for count in (self.right, self.agree))
        return [f"{self.bytes:,.0f}", right, agree, f"{100 * error:.2f}"]


@torch.inference_mode()
def measure_wire(checkpoint: str) -> None:
    """Classify test images as a cluster does with each form, one random order a batch; prints a table."""
    study = start_study(checkpoint, None, split="test", accelerator="cpu", batch_size=100)
    model = study.loaded.model.eval()
    measures = {(wire, width): WireMeasures() for width in WIDTHS for wire in get_args(Wire)}
    for number, (images, labels) in enumerate(study.batches):
        if number * 100 >= IMAGES:
            break
        pixels = study.preprocess(images)
        for width in WIDTHS:
            order = _order(len(model.order), width, number).over(model.order)
            exact = model(pixels, order).logits
            for wire in get_args(Wire):
                of_wire = measures[wire, width]
                logits, travelled = _run(model, pixels, order, wire)
                of_wire.add(logits, exact, labels)
                of_wire.bytes = travelled / len(images) / len(order)

    header = ["wire", "width", "bytes a step", "top-1, %", "same class, %", "error of the logits, %"]
    print(markdown(header, [[wire, str(width), *of_wire.row()] for (wire, width), of_wire in measures.items()]))


def _order(steps: int, width: int, number: int) -> Order:
    """A random order in which each step reads what was the newest state with ``width`` of them in flight."""
    rng = seeded("wire", number)
    layers = sorted(range(steps), key=lambda _: rng.random())
    return Order(_steps(layers, width))


def _steps(layers: list[int], width: int) -> Iterator[str]:
    for index, layer in enumerate(layers):
        lag = min(index, width - 1)
        yield f"{layer}<{lag}" if lag else f"{layer}"


def _run(model: OrderedViT, images: Tensor, order: Order, wire: Wire) -> tuple[Tensor, int]:
    """The logits for images as a cluster computes them, and the bytes that travel."""
    states = [model.embed(images).tokens.numpy()]
    travelled = 0
    for step, position in zip(order, order.positions):
        # A step in flight reads the state as it was at its start, and its change is added to the newest one.
        read = states[-1 - step.lag]
        newest = states[-1]
        sent = pack(read, wire)
        tokens = unpack(sent)
        state, _ = model.run_step(State(torch.tensor(tokens)), step._replace(lag=0), position)
        answer = answer_of(tokens, state.tokens.numpy(), wire)
        states.append(newest_after(answer, read, newest, wire))
        travelled += sent.nbytes + answer.nbytes
    return model.classify(State(torch.tensor(states[-1]))).logits, travelled
