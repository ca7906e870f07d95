"""Exports models as programs that run without this package and timm: by torch.export, ONNX and AOTInductor."""

import copy
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from layershuffle.checkpoints.export import as_cut, card, check_new, class_names, image_format, scores
from layershuffle.data.preprocessing import Preprocess
from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, OrderLike
from layershuffle.results import Results

Format = Literal["torch-export", "onnx", "aoti"]
SUFFIXES: dict[Format, str] = {"torch-export": ".pt2", "onnx": ".onnx", "aoti": ".aoti.pt2"}
MANIFEST = "manifest.json"
"""Says which programs a folder holds, what they take and return, and what is known about the model."""

USE: dict[Format, str] = {
    "torch-export": """import torch

logits = torch.export.load("FOLDER/{file}").module()(images)
""",
    "onnx": """import onnxruntime

logits = onnxruntime.InferenceSession("FOLDER/{file}").run(None, {{"images": images.numpy()}})[0]
""",
    "aoti": """import torch

logits = torch._inductor.aoti_load_package("FOLDER/{file}")(images)
""",
}
USE_PARTS = """from layershuffle.checkpoints.programs import Programs

logits = Programs("FOLDER")(images, "2 0 1")  # whole layers in any order
"""

Program = Callable[..., tuple[Tensor, ...]]


class _Whole(nn.Module):
    """The whole model in one order."""

    def __init__(self, model: OrderedViT, order: Order, preprocess: Preprocess | None) -> None:
        super().__init__()
        # In place of what isn't run there is nothing, so that its weights are not in the program's file.
        left_out: list[Any] = [layer for index, layer in enumerate(model.layers) if index not in order.layers]
        if model.encoding:
            left_out += [p for index, p in enumerate(model.encoding.projections) if index not in order.layers]
        unused = {id(module): nn.Identity() for module in (*left_out, model.prediction, model.choice) if module}
        self.model = copy.deepcopy(model, unused)
        self.model.prediction = self.model.choice = None
        self.order, self.preprocess = order, preprocess

    def forward(self, images: Tensor) -> Tensor:
        return self.model.run(self._embed(images), self.order).logits

    def _embed(self, images: Tensor) -> State:
        return self.model.embed(self.preprocess.normalise(images) if self.preprocess else images)


class _Embed(_Whole):
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        tokens, context = self._embed(images)
        return (tokens,) if context is None else (tokens, context)


class _Layer(nn.Module):
    def __init__(self, model: OrderedViT, layer: int) -> None:
        super().__init__()
        self.backbone, self.layer, self.block = model.backbone, layer, model.layers[layer]
        if model.encoding:
            self.table, self.projection = model.encoding.table_of(layer), model.encoding.projections[layer]

    def forward(self, tokens: Tensor, position: Tensor, context: Tensor | None = None) -> Tensor:
        if hasattr(self, "table"):
            tokens = self.projection(tokens, self.table(position))
        return self.backbone.run(self.block, tokens, self.backbone.context_of(self.layer, context))


class _Classify(_Whole):
    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.classify(State(tokens), []).logits


def export_programs(
    model: OrderedViT,
    record: dict[str, Any],
    data: dict[str, Any] | None,
    folder: Path,
    form: Format,
    order: Order | None,
    inside: bool,
    results: Sequence[Results] = (),
    license: str | None = None,
) -> None:
    """Write a model to ``folder`` as programs for the device that it is on, their manifest, and a model card.

    With an order it is one program, from images [batch, channels, size, size] of any batch size to logits
    [batch, classes]. Without, whoever calls the programs decides on the order. They are then

    - embed: images to tokens [batch, tokens, dim] and, if the backbone has one, a context that the layers read;
    - a program for each layer: tokens, the position at which the layer runs (int64 []), and the context, to tokens;
    - classify: tokens to logits.

    Args:
        model: a model in evaluation mode.
        record: what is known about the model, for the manifest and the card.
        data: the data that it was trained on, which tells how images are resized.
        folder: a new folder.
        form: the format of the programs.
        order: the only order that the program runs, or None.
        inside: whether the program takes uint8 images and normalises them; otherwise it takes float32 ones which the
            manifest's mean and standard deviation have normalised. Resizing is left to whoever reads the images.
        results: evaluations of the model, for the card.
        license: of the weights, for the card, which otherwise says nothing about it.

    Raises:
        UserError: if the folder is not empty, a package is missing, results are of another model, or a file can't be
            written.
    """
    check_new(folder)
    if form == "onnx":
        needed("onnxscript")
        needed("onnxruntime")
    found = scores(record, results, order)
    if order is not None:
        record = as_cut(record, order)
    wanted = image_format(model, data)
    device = next(model.parameters()).device
    preprocess = Preprocess(*wanted).to(device) if inside else None
    images = torch.zeros(2, *model.image_shape, dtype=torch.uint8 if inside else torch.float32, device=device)
    parts: dict[str, tuple[nn.Module, tuple[Tensor, ...], list[str], list[str]]]
    names: dict[str, Any]
    if order is not None:
        names = {"model": "model"}
        parts = {"model": (_Whole(model, order, preprocess), (images,), ["images"], ["logits"])}
    else:
        names = {"embed": "embed", "layers": [f"layer{n}" for n in range(model.depth)], "classify": "classify"}
        embed = _Embed(model, Order(), preprocess)
        with torch.inference_mode():
            tokens, *context = embed(images)
        extra = ["context"] if context else []
        parts = {"embed": (embed, (images,), ["images"], ["tokens", *extra])}
        for n in range(model.depth):
            position = torch.tensor(0, device=device)
            inputs = ["tokens", "position", *extra]
            parts[f"layer{n}"] = (_Layer(model, n), (tokens, position, *context), inputs, ["output"])
        parts["classify"] = (_Classify(model, Order(), None), (tokens,), ["tokens"], ["logits"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            _write(form, folder / f"{name}{SUFFIXES[form]}", *part)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error.strerror or error}") from error
    files: dict[str, Any] = {
        part: [f"{each}{SUFFIXES[form]}" for each in name] if isinstance(name, list) else f"{name}{SUFFIXES[form]}"
        for part, name in names.items()
    }
    dtype = str(images.dtype).removeprefix("torch.")
    manifest: dict[str, Any] = {
        "format": form,
        "device": device.type,
        "files": files,
        "images": {"dtype": dtype, "shape": ["batch", *model.image_shape], **wanted._asdict()},
        "classes": class_names(data, model),
        "order": str(model.order if order is None else order),
        "record": record,
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    use = USE[form].format(file=files["model"]) if order is not None else USE_PARTS
    takes = f"`images` are {dtype} [batch, {', '.join(map(str, model.image_shape))}]"
    takes += ", which the program scales and normalises." if inside else ", scaled and normalised by its caller."
    text = card(
        model,
        record,
        folder.name,
        f"```python\n{use}```\n\n{takes}\n",
        found,
        license,
        "onnx" if form == "onnx" else "pytorch",
        MANIFEST,
        normalises=inside,
    )
    write_whole(folder / "README.md", text)


@torch.no_grad()
def _write(
    form: Format, path: Path, part: nn.Module, example: tuple[Tensor, ...], inputs: list[str], outputs: list[str]
) -> None:
    # A position has no dimensions, and the context is the same for all images.
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if name in ("images", "tokens") else None for name in inputs)
    part.eval()
    if form == "onnx":
        needed("onnxscript")
        made = torch.onnx.export(
            part, example, dynamo=True, dynamic_shapes=shapes, input_names=inputs, output_names=outputs, verbose=False
        )
        assert made is not None
        made.save(path)
        return
    program = torch.export.export(part, example, dynamic_shapes=shapes)
    if form == "aoti":
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    else:
        torch.export.save(program, path)


class Programs:
    """The programs of a folder that ``export_programs`` wrote, in the format and on the device that it names.

    Raises:
        UserError: if the folder has no manifest, or a package that the format needs is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_json(self.folder / MANIFEST, what="the manifest of an export")
        try:
            files = self.manifest["files"]
            opened = {part: self._open(name) for part, name in files.items() if part != "layers"}
            self.embed, self.classify = opened.get("embed"), opened.get("classify")
            self.whole = opened.get("model")
            self.layers = [self._open(name) for name in files.get("layers", ())]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.folder / MANIFEST} is not the manifest of an export: {error}") from error

    def __call__(self, images: Tensor, order: OrderLike | None = None) -> Tensor:
        """The logits [batch, classes] of ``images``, which are as the manifest says.

        Without an order it is the one of the manifest, which is the only one unless the layers have files of their own.
        """
        if not self.embed or not self.classify:
            assert self.whole
            if order is not None and Order(order) != Order(self.manifest["order"]):
                raise UserError(f"{self.folder} runs one order only: {self.manifest['order']}")
            return self.whole(images)[0]
        tokens, *context = self.embed(images)
        order = Order(self.manifest["order"] if order is None else order).check(len(self.layers))
        for position, step in enumerate(order):
            if any(unit.half for unit in step):
                raise UserError(f"{self.folder} has whole layers only, and '{order}' runs halves")
            at = torch.tensor(position, device=tokens.device)
            outputs = [self.layers[unit.layer](tokens, at, *context)[0] for unit in step]
            tokens = torch.stack(outputs).mean(dim=0)
        return self.classify(tokens)[0]

    def _open(self, name: str) -> Program:
        path = self.folder / Path(name).name
        if not path.is_file():
            raise UserError(f"there is no file {path}, which {MANIFEST} names")
        if self.manifest["format"] == "onnx":
            session = needed("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
            names = [given.name for given in session.get_inputs()]

            def run(*inputs: Tensor) -> tuple[Tensor, ...]:
                given = {name: tensor.cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}
                return tuple(torch.from_numpy(output) for output in session.run(None, given))

            return run
        compiled = self.manifest["format"] == "aoti"
        program: Any = torch._inductor.aoti_load_package(path) if compiled else torch.export.load(path).module()

        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            with torch.inference_mode():
                found = program(*inputs)
            return tuple(found) if isinstance(found, (tuple, list)) else (found,)

        return call


def needed(package: str) -> Any:
    """The package, which only ONNX needs; raises UserError if it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"the format onnx needs {package}: pip install 'layershuffle[onnx]'") from error
