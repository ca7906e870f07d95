"""A node of the Ray cluster: a process that holds some layers and runs them on the tokens that it is sent."""

import hashlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.models.part import copy_with_layers
from layershuffle.orders.order import Step

remote: Any = ray.remote  # Its types lack concurrency_groups.


def part(model: OrderedViT, step: Step) -> OrderedViT:
    """A copy of the model that can run ``step`` and nothing else: it has no weights of other layers."""
    return copy_with_layers(model, {unit.layer for unit in step}, only_layers=True).eval()


def fingerprint(model: OrderedViT) -> str:
    """The SHA-256 of the weights and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@remote(max_restarts=0, max_task_retries=0, num_cpus=1, concurrency_groups={"watch": 1})
class Node:
    """The actor. A step here is the index of a step in the model's base order.

    Args:
        threads: how many threads it computes with.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.parts: dict[int, tuple[OrderedViT, Step]] = {}

    def hold(self, index: int, held: OrderedViT, step: Step) -> None:
        """Hold another step, by the part of the model that runs it."""
        self.parts[index] = (held, step)

    def weights(self) -> dict[int, str]:
        """The fingerprint of each part that it holds."""
        return {index: fingerprint(held) for index, (held, _) in self.parts.items()}

    @torch.inference_mode()
    def run(self, tokens: np.ndarray, context: np.ndarray | None, indices: Sequence[int], position: int) -> np.ndarray:
        """Run steps in a row on tokens [batch, tokens, dim]; the first holds ``position``. Returns the new tokens."""
        torch.set_num_threads(self.threads)  # which holds for the thread that calls it
        state = State(_tensor(tokens), None if context is None else _tensor(context))
        for at, index in enumerate(indices, position):
            held, step = self.parts[index]
            state, _ = held.run_step(state, step, at)
        return state.tokens.numpy()

    def process(self) -> int:
        """The id of the process."""
        return os.getpid()

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never returns: the call fails when the process ends, however long it has been idle."""
        threading.Event().wait()


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array)  # a copy: what Ray hands over can't be written to
