"""The process of a node of the Ray cluster: it holds some steps and runs them on the tokens that it is sent."""

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch

from layershuffle.choices import Wire
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Step
from layershuffle.serving.model_parts import fingerprint
from layershuffle.serving.wire import Packed, answer_of, unpack

remote: Any = ray.remote  # Its types lack concurrency_groups.


@remote(max_restarts=0, max_task_retries=0, num_cpus=1, concurrency_groups={"watch": 1})
class Worker:
    """The actor. A step here is the index of a step in the model's base order.

    Args:
        threads: how many threads it computes with.
    """

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.parts: dict[int, tuple[OrderedViT, Step]] = {}

    def hold(self, index: int, part: OrderedViT, step: Step) -> None:
        """Hold another step, by the part of the model that runs it."""
        self.parts[index] = (part, step)

    def weights(self) -> dict[int, str]:
        """The fingerprint of each part that it holds."""
        return {index: fingerprint(part) for index, (part, _) in self.parts.items()}

    @torch.inference_mode()
    def run(
        self, packed: Packed, context: np.ndarray | None, indices: Sequence[int], position: int, wire: Wire
    ) -> Packed:
        """Run steps in a row on tokens as they travel; the first step has this position. See ``wire.answer_of``."""
        torch.set_num_threads(self.threads)  # which holds for the thread that calls it

        # torch.tensor copies: what Ray hands over can't be written to.
        read = unpack(packed)
        state = State(torch.tensor(read), None if context is None else torch.tensor(context))
        for step_position, index in enumerate(indices, position):
            part, step = self.parts[index]
            state, _ = part.run_step(state, step, step_position)
        return answer_of(read, state.tokens.numpy(), wire)

    def process(self) -> int:
        """The id of the process."""
        return os.getpid()

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never returns: the call fails when the process ends, however long it has been idle."""
        threading.Event().wait()
