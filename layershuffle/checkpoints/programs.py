"""Runs exported programs: by torch.export, ONNX and AOTInductor. ``program_export`` writes them."""

import importlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layershuffle.choices import ProgramFormat
from layershuffle.errors import UserError
from layershuffle.files import read_json
from layershuffle.models.combine import combine
from layershuffle.orders.order import Order, OrderLike

SUFFIXES: dict[ProgramFormat, str] = {"torch-export": ".pt2", "onnx": ".onnx", "aoti": ".aoti.pt2"}
MANIFEST = "manifest.json"
"""Says which programs a folder holds, what they take and return, and what is known about the model."""

Program = Callable[..., tuple[Tensor, ...]]
OnCall = Callable[[str, tuple[Tensor, ...]], None]
"""Is told the file of a program and its inputs."""


@dataclass(frozen=True)
class LayerPrograms:
    """The programs of a model whose layers can run in any order.

    Attributes:
        embed: images to tokens [batch, tokens, dim] and, if the backbone has one, a context that the layers read.
        layers: tokens, the position at which the layer runs (int64 []) and the context, to tokens.
        classify: tokens to logits [batch, classes].
    """

    embed: Program
    layers: Sequence[Program]
    classify: Program

    def run(self, images: Tensor, order: Order) -> Tensor:
        """The logits of images, in an order of whole layers."""
        # The same steps as in ``OrderedViT.run_steps``, with programs in the place of modules.
        tokens, *context = self.embed(images)
        states = deque([tokens], maxlen=order.longest_lag + 1)  # the newest ones, as many as a step may read
        for step, number in zip(order, order.positions):
            read = states[-1 - step.lag]
            position = torch.tensor(number, device=tokens.device)
            outputs = [self.layers[unit.layer](read, position, *context)[0] for unit in step.units]
            states.append(combine(step, states[-1], read, outputs))
        return self.classify(states[-1])[0]


def read_manifest(folder: Path) -> Any:
    """The content of a folder's manifest; raises UserError if it can't be read."""
    return read_json(folder / MANIFEST, what="the manifest of an export")


def program_files(manifest: Any) -> set[str]:
    """The names of the files that a manifest lists, with those that hold the weights of large ONNX programs.

    Raises:
        UserError: if it is not the manifest of an export.
    """
    try:
        files = manifest["files"]
        programs = {files[part] for part in ("model", "embed", "classify") if part in files}
        programs.update(files.get("layers", ()))
        weights = {f"{name}.data" for name in programs if name.endswith(SUFFIXES["onnx"])}
        return programs | weights
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{MANIFEST} is not the manifest of an export: {error}") from error


class Programs:
    """The programs of a folder that ``export_programs`` wrote, in the format and on the device that it names.

    Programs for ONNX Runtime take as many threads as PyTorch does when they are opened.

    Args:
        folder: the folder.
        on_call: is called each time before a program runs.

    Attributes:
        folder: the folder.
        manifest: the content of its manifest.

    Raises:
        UserError: if the folder has no manifest, or a package that the format needs is missing.
    """

    def __init__(self, folder: str | Path, on_call: OnCall | None = None) -> None:
        self.folder = Path(folder)
        self._on_call = on_call
        self.manifest = read_manifest(self.folder)
        try:
            self._form: ProgramFormat = self.manifest["format"]
            self._order = Order(self.manifest["order"])
            self._programs = self._open_all(self.manifest["files"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.folder / MANIFEST} is not the manifest of an export: {error}") from error

    def __call__(self, images: Tensor, order: OrderLike | None = None) -> Tensor:
        """The logits [batch, classes] of ``images``, which are as the manifest says.

        Args:
            images: the images.
            order: the order; by default the one of the manifest, which is the only one unless the layers have files of
                their own.

        Raises:
            UserError: if the order can't be run.
        """
        order = self._order if order is None else Order(order)
        if not isinstance(self._programs, LayerPrograms):
            if order != self._order:
                raise UserError(f"{self.folder} runs one order only: {self._order}")
            return self._programs(images)[0]
        order = order.check(len(self._programs.layers))
        if any(unit.half for unit in order.units):
            raise UserError(f"{self.folder} has whole layers only, and '{order}' runs halves")
        return self._programs.run(images, order)

    def _open_all(self, files: dict[str, Any]) -> Program | LayerPrograms:
        if "model" in files:
            return self._open(files["model"])
        embed = self._open(files["embed"])
        classify = self._open(files["classify"])
        layers = [self._open(name) for name in files["layers"]]
        return LayerPrograms(embed, layers, classify)

    @property
    def paths(self) -> list[Path]:
        """The paths of its files, with those that hold the weights of large ONNX programs."""
        paths = [self.folder / Path(name).name for name in sorted(program_files(self.manifest))]
        return [path for path in paths if path.is_file()]

    def _open(self, name: str) -> Program:
        """The program in a file, which tells ``on_call`` of each call if there is such a function."""
        program = self._open_file(name)
        on_call = self._on_call
        if on_call is None:
            return program

        def run(*inputs: Tensor) -> tuple[Tensor, ...]:
            on_call(name, inputs)
            return program(*inputs)

        return run

    def _open_file(self, name: str) -> Program:
        """The program in a file; raises UserError if it isn't in the folder."""
        # A manifest may come from anyone: it names files of its own folder and no others.
        path = self.folder / Path(name).name  # without any folder that stands before it
        if not path.is_file():
            raise UserError(f"there is no file {path}, which {MANIFEST} names")
        if self._form == "onnx":
            return _open_onnx(path)
        if self._form == "aoti":
            return _in_inference_mode(torch._inductor.aoti_load_package(str(path)))
        return _in_inference_mode(torch.export.load(path).module())


def _open_onnx(path: Path) -> Program:
    """The program in an ONNX file, as a function of tensors like those of the other formats."""
    onnxruntime = require("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        arrays = {name: tensor.cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, arrays))

    return run


def _in_inference_mode(program: Callable[..., Any]) -> Program:
    """The same program without gradients, whose outputs are a tuple even if there is just one."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            outputs = program(*inputs)
        if isinstance(outputs, (tuple, list)):
            return tuple(outputs)
        return (outputs,)

    return run


def require(package: str) -> Any:
    """The package, which only ONNX needs; raises UserError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"the format onnx needs {package}: pip install 'layershuffle[onnx]'") from error
