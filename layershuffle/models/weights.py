"""Reads files of weights. They are not trusted: only tensors and plain values are read, never pickled code."""

import io
import os
import pickle
import pickletools
import re
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from layershuffle.errors import UserError, last_line
from layershuffle.models.state_dicts import BackboneWeights, find_backbone
from layershuffle.published_models import weights_file

_NUMPYS_SCALAR: Any = np.float64(0).__reduce__()[0]
PLAIN_VALUES: list[Any] = [
    # What trainers keep beside the weights: their options, and numbers. None of these runs code when it is read.
    Namespace,
    PosixPath,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    (_NUMPYS_SCALAR, "numpy._core.multiarray.scalar"),
    (_NUMPYS_SCALAR, "numpy.core.multiarray.scalar"),
]
"""What a torch file may hold besides tensors and Python's own values."""
MAX_TENSORS = 20_000
"""A file with more tensors is none that a model's training has written; it would take minutes to read."""
MAX_PICKLE_BYTES = 4 << 20
"""The same of everything in a file but the tensors' values."""
PICKLES_BEFORE_VALUES = 5
"""How many pickles a file of torch before 1.6 begins with: marks of the format, what was saved, and its storages."""
BACKBONE_PREFIX = "model.vit."
"""Stands before the names of the backbone's weights in the checkpoints of ``layershuffle train``."""


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a .safetensors or torch file, on the CPU; tensors are read from it as they are used.

    Raises UserError if it isn't there, isn't such a file, is damaged, or holds anything but tensors and plain values.
    """
    path = Path(path)
    _check_is_file(path)
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        content = _load_torch_file(path)
    except UserError:
        raise
    except PermissionError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint, or holds code instead of only weights; it was not loaded"
        ) from error
    except Exception as error:  # A damaged file can make the readers raise anything.
        raise UserError(f"{path} is not a checkpoint or is damaged, perhaps cut short: it was not loaded") from error

    # A tensor that was read may still claim values that aren't there, which the first use of it would look for.
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    for count, tensor in enumerate(_tensors(content)):
        if count == MAX_TENSORS:
            raise _too_many(path)
        _check_tensor(tensor, path)
    return content


def _check_is_file(path: Path) -> None:
    """Raise a UserError if there is no file of that name, or something else."""
    # os.path's functions, unlike those of Path, are False for a name that is too long to be a path.
    if not os.path.exists(path):
        raise UserError(f"there is no file {path}")
    if not os.path.isfile(path):
        # Reading a pipe or a device could go on for ever.
        raise UserError(f"{path} is a folder, a pipe or a device, and no file of weights")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    # A long header takes seconds to read. Whether it is there at all is left to safetensors.
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    if MAX_PICKLE_BYTES < header_bytes <= path.stat().st_size:
        raise _too_many(path)
    with safetensors.safe_open(path, framework="pt") as file:
        count = len(file.keys())
    if count > MAX_TENSORS:
        raise _too_many(path)
    return safetensors.torch.load_file(path)


def _load_torch_file(path: Path) -> Any:
    """The content of a file of ``torch.save``, without unpickling code."""
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        pickles = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
        # torch doesn't compress, so that a larger content can only be meant to fill the memory.
        if unpacked > path.stat().st_size:
            raise UserError(f"{path} would unpack to {unpacked:,} bytes, more than its size: it was not loaded")
        if len(entries) > MAX_TENSORS or pickles > MAX_PICKLE_BYTES:
            raise _too_many(path)
    else:
        _check_pickles(path)

    # With mmap the values are read from the file as they are used, which only the newer format allows.
    with torch.serialization.safe_globals(PLAIN_VALUES):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not is_zip:
        _check_storages(content, path)
    return content


def _check_pickles(path: Path) -> None:
    """Raise a UserError if a file of torch before 1.6 has too many tensors, or a ValueError if it is none.

    Its pickles are one after the other, and only their instructions say where each ends.
    """
    with path.open("rb") as file:
        beginning = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    tensors = 0
    for _ in range(PICKLES_BEFORE_VALUES):
        for instruction, _, _ in pickletools.genops(beginning):
            tensors += instruction.name == "BINPERSID"
            if tensors > MAX_TENSORS:
                raise _too_many(path)


def _check_storages(content: Any, path: Path) -> None:
    """Raise a UserError if the storages of a file of torch before 1.6 have more values than the file.

    torch makes them as large as the file says, and reads those that the file lists.
    """
    sizes = {}
    for tensor in _tensors(content):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    if sum(sizes.values()) > path.stat().st_size:
        raise UserError(f"{path} holds tensors, but not the values of all of them")


def _too_many(path: Path) -> UserError:
    return UserError(f"{path} has more tensors or other values than any model: it was not loaded")


def _check_tensor(tensor: Tensor, path: Path) -> None:
    """Raise a UserError if a tensor is none that weights are, or claims more values than the file has."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise UserError(f"{path} holds a tensor that is {tensor.layout} on {tensor.device}, which no weights are")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{path} holds a tensor of shape {tuple(tensor.shape)}, but not the values of all of it")


def _tensors(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, which may contain each other."""
    waiting = [content]
    seen = set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor):
            yield part
        if not isinstance(part, (dict, list, tuple, set)) or id(part) in seen:
            continue
        seen.add(id(part))
        waiting.extend(part)
        if isinstance(part, dict):
            waiting.extend(part.values())


def read_backbone(path: str | Path) -> BackboneWeights:
    """The backbone's weights under timm's names, from a checkpoint of ``layershuffle train`` or any other trainer.

    Args:
        path: a file, the folder of an exported model or of Hugging Face's transformers, or the name of a published
            model.

    Raises:
        UserError: if the file can't be read, or holds no state dict, or some weights are whole or complex numbers.
    """
    try:
        backbone = find_backbone(read_file(weights_file(path)))
    except RuntimeError as error:
        raise UserError(f"{path} is damaged, its weights don't fit together: {last_line(error)[:300]}") from error
    if backbone is None:
        raise UserError(f"{path} holds no state dict")
    for name, value in backbone.weights.items():
        # torch would take the numbers of quantised weights without their scale, and the real part of complex ones.
        if name.endswith((".weight", ".bias")) and not value.is_floating_point():
            raise UserError(f"{path} holds {value.dtype} as {name[:100]}: only weights in floating point can be used")
    return replace(backbone, weights=merge_lora(backbone.weights))


def merge_lora(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model: LoRA's matrices are added to the weights that they belong to, with a scale of 1.

    ``weights`` has the names that peft gives them (arXiv 2106.09685). Raises KeyError or RuntimeError if the matrices
    are missing or don't fit.
    """
    merged = {}
    for name, value in weights.items():
        # These are added to the weights that they belong to.
        if re.search(r"\.lora_[AB]\.", name):
            continue
        base = re.fullmatch(r"(?P<module>.*\.)base_layer\.(?P<parameter>weight|bias)", name)
        if not base:
            merged[name] = value
            continue
        if base["parameter"] == "weight":
            up = weights[f"{base['module']}lora_B.default.weight"]
            down = weights[f"{base['module']}lora_A.default.weight"]
            if value.shape != up.shape[:1] + down.shape[1:]:  # The product could be of any size.
                raise RuntimeError(f"LoRA's matrices of {name} don't fit")
            merged[base["module"] + "weight"] = value + up @ down
        else:
            merged[base["module"] + "bias"] = value
    return merged
