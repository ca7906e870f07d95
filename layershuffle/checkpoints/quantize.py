"""Makes ONNX programs smaller: with weights in half precision, or with products of 8-bit integers."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from layershuffle.checkpoints.programs import require
from layershuffle.errors import UserError

Inputs = tuple[np.ndarray, ...]
"""What a program takes, in the sequence of its inputs."""

PRODUCTS = ["MatMul", "Gemm"]
"""The operations that multiply by weights. The one convolution of a model, which embeds the patches, stays as it is."""


def halve_weights(source: Path, target: Path) -> None:
    """Write a program whose weights are float16 and which computes in float32.

    ONNX Runtime turns the weights into float32 as it opens the file. So results don't depend on what a processor makes
    of softmax or normalisation in half precision, for which ONNX Runtime's CPU kernels would convert back and forth.

    Args:
        source: the program in float32.
        target: the file to write.

    Raises:
        OSError: if the file can't be written.
        UserError: if the program is too large.
    """
    onnx = require("onnx")
    _check_size(source)
    model = onnx.load(source)
    graph = model.graph
    # Each weight gets another name, and the node that casts it to float32 puts out the old one, so that the nodes that
    # read the weight stay as they are.
    casts = []
    for weight in graph.initializer:
        # Biases and norms have one dimension, and take hardly any space.
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        name = weight.name
        half_name = f"{name}.half"
        values = onnx.numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, half_name))
        casts.append(onnx.helper.make_node("Cast", [half_name], [name], name=f"cast_{name}", to=onnx.TensorProto.FLOAT))

    # In ONNX, each node must stand behind those whose outputs it reads, so that the casts come first.
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def to_int8(source: Path, target: Path, calibration: Sequence[Inputs] | None = None) -> None:
    """Write a program that multiplies 8-bit integers.

    Weights get a scale for each output channel and use 7 of the 8 bits, because products of 8 bits overflow on
    processors without instructions for them (VNNI): so answers are the same on all.

    Args:
        source: the program in float32.
        target: the file to write.
        calibration: inputs, whose ranges the program keeps for what it multiplies by the weights. By default, it
            measures the range of what it has to multiply each time it runs.

    Raises:
        OSError: if the file can't be written.
        UserError: if the program is too large.
    """
    quantization = require("onnxruntime.quantization")
    _check_size(source)
    options: dict[str, Any] = {
        "weight_type": quantization.QuantType.QInt8,
        "per_channel": True,
        "reduce_range": True,
    }
    with _without_advice(), _noticing_a_full_disk():
        if calibration is None:
            quantization.quantize_dynamic(source, target, op_types_to_quantize=PRODUCTS, **options)
            return
        inputs, products, others = _products_of(source)
        # Without anything to quantize, as in what embeds the images, there is nothing to measure either.
        if not products:
            target.write_bytes(source.read_bytes())
            return
        quantization.quantize_static(
            source,
            target,
            _reader(inputs, calibration),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=PRODUCTS,
            nodes_to_exclude=others,
            activation_type=quantization.QuantType.QUInt8,
            **options,
        )


def _check_size(source: Path) -> None:
    """Raise a UserError if a program's weights lie in a file of their own, as those above some 2 GB do."""
    if source.with_name(f"{source.name}.data").is_file():
        raise UserError("a program of more than 1.5 GB can't be quantized in one piece: add --per_layer")


def _products_of(source: Path) -> tuple[list[str], list[str], list[str]]:
    """The names of a program's inputs, of its products with weights, and of its products of two activations.

    The latter are those of attention. They are few, and lose more than the others by integers.
    """
    graph = require("onnx").load(source).graph
    weights = {weight.name for weight in graph.initializer}
    products: list[str] = []
    others: list[str] = []
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            continue
        has_weights = not weights.isdisjoint(node.input)
        if has_weights:
            products.append(node.name)
        else:
            others.append(node.name)
    inputs = [value.name for value in graph.input]
    return inputs, products, others


def _reader(names: Sequence[str], calibration: Sequence[Inputs]) -> Any:
    """What ONNX Runtime reads inputs from, given their names."""
    quantization = require("onnxruntime.quantization")

    # A class within a function, because what it is derived from comes from an optional package.
    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            self.remaining = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            inputs = next(self.remaining, None)
            if inputs is None:
                return None
            return dict(zip(names, inputs, strict=True))

    return Reader()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep ONNX Runtime's advice to run its pre-processing first, which exports don't need, from the user."""
    root = logging.getLogger()

    def is_no_advice(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    # Without a handler, Python would give this logger one as ONNX Runtime uses it, which printed our own lines twice.
    handler = logging.NullHandler()
    root.addHandler(handler)
    root.addFilter(is_no_advice)
    try:
        yield
    finally:
        root.removeFilter(is_no_advice)
        root.removeHandler(handler)


@contextmanager
def _noticing_a_full_disk() -> Iterator[None]:
    """Raise an OSError if ONNX can't read a file that it has just written, which it does in parts on a full disk."""
    try:
        yield
    except require("google.protobuf.message").DecodeError as error:
        raise OSError("a file was written in parts only, as on a full disk") from error
