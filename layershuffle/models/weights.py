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

_NUMPYS_SCALAR: Any = np.float64(0).__reduce__()[0]  # the function that makes NumPy's numbers when they are unpickled
PLAIN_VALUES: list[Any] = [
    # Trainers keep their options and some numbers beside the weights. None of these types runs code when it is read.
    Namespace,
    PosixPath,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefd"},
    # NumPy 2 and NumPy 1 write the function under different names.
    (_NUMPYS_SCALAR, "numpy._core.multiarray.scalar"),
    (_NUMPYS_SCALAR, "numpy.core.multiarray.scalar"),
]
"""What a torch file may hold besides tensors and Python's own values."""
MAX_TENSORS = 20_000
"""No training of a model writes a file with more tensors, which would take minutes to read."""
MAX_PICKLE_BYTES = 4 << 20
"""The same limit for everything in a file but the tensors' values."""
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

    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    # A tensor that was read may still claim more values than the file has, and its first use would look for them.
    for count, tensor in enumerate(_tensors(content)):
        if count == MAX_TENSORS:
            raise _too_many(path)
        _check_tensor(tensor, path)
    return content


def _check_is_file(path: Path) -> None:
    """Raise a UserError if there is nothing of that name, or something other than a file."""
    # For a name that is too long to be a path, os.path's functions return False, and those of Path raise an OSError.
    if not os.path.exists(path):
        raise UserError(f"there is no file {path}")
    if not os.path.isfile(path):
        # Reading a pipe or a device could go on for ever.
        raise UserError(f"{path} is a folder, a pipe or a device, and no file of weights")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    """The content of a .safetensors file; raises UserError if it has too many tensors."""
    # A file begins with the length of its header, and a long header takes seconds to read. If the length is more than
    # that of the file, safetensors itself raises an error.
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
    # Since torch 1.6 these files are ZIP archives.
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_archive(path)
    else:
        _check_pickles(path)

    # With mmap, values are read from the file only as they are used. The older format doesn't allow that.
    with torch.serialization.safe_globals(PLAIN_VALUES):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not is_zip:
        _check_storages(content, path)
    return content


def _check_archive(path: Path) -> None:
    """Raise a UserError if a torch file would unpack to more than its size, or has too many tensors or other values."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    pickles = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    # torch doesn't compress, so a file that would grow can only be meant to fill the memory.
    if unpacked > path.stat().st_size:
        raise UserError(f"{path} would unpack to {unpacked:,} bytes, more than its size: it was not loaded")
    if len(entries) > MAX_TENSORS or pickles > MAX_PICKLE_BYTES:
        raise _too_many(path)


def _check_pickles(path: Path) -> None:
    """Raise a UserError if a file of torch before 1.6 has too many tensors, or a ValueError if it is no such file.

    Its pickles follow one another, and only by their instructions can one tell where each ends. The instructions are
    read here and not carried out.
    """
    with path.open("rb") as file:
        beginning = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    tensors = 0
    for _ in range(PICKLES_BEFORE_VALUES):
        for instruction, _, _ in pickletools.genops(beginning):
            # Each tensor refers to its storage by this instruction.
            if instruction.name == "BINPERSID":
                tensors += 1
            if tensors > MAX_TENSORS:
                raise _too_many(path)


def _check_storages(content: Any, path: Path) -> None:
    """Raise a UserError if the storages of a file of torch before 1.6 are larger than the file itself.

    torch makes each storage as large as the file claims, but fills only those whose values the file has.
    """
    # Tensors can share a storage, which counts once.
    sizes = {}
    for tensor in _tensors(content):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    if sum(sizes.values()) > path.stat().st_size:
        raise UserError(f"{path} holds tensors, but not the values of all of them")


def _too_many(path: Path) -> UserError:
    """The error for a file that is too large to be a model's."""
    return UserError(f"{path} has more tensors or other values than any model: it was not loaded")


def _check_tensor(tensor: Tensor, path: Path) -> None:
    """Raise a UserError if a tensor is of a kind that weights never are, or claims more values than the file has."""
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
    """The weights of the plain model: the product of LoRA's matrices is added to each weight that they belong to.

    ``weights`` has the names that peft gives them. The scale of LoRA (arXiv 2106.09685) is 1. Raises KeyError or
    RuntimeError if the matrices are missing or don't fit.
    """
    merged = {}
    for name, value in weights.items():
        # LoRA's matrices themselves are left out. They are looked up below, with the weight that they belong to.
        if re.search(r"\.lora_[AB]\.", name):
            continue
        base = re.fullmatch(r"(?P<module>.*\.)base_layer\.(?P<parameter>weight|bias)", name)
        if not base:
            merged[name] = value
            continue
        if base["parameter"] == "weight":
            up = weights[f"{base['module']}lora_B.default.weight"]
            down = weights[f"{base['module']}lora_A.default.weight"]
            # This is checked before the product is computed, which could be of any size.
            if value.shape != up.shape[:1] + down.shape[1:]:
                raise RuntimeError(f"LoRA's matrices of {name} don't fit")
            merged[base["module"] + "weight"] = value + up @ down
        else:
            merged[base["module"] + "bias"] = value
    return merged
