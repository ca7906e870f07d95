"""The steps that a node holds, and how it runs them on the tokens that it is sent."""

from collections.abc import Sequence

import numpy as np
import torch

from layershuffle.choices import Wire
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Step
from layershuffle.serving.model_parts import fingerprint
from layershuffle.serving.wire import Packed, answer_of, unpack


class HeldSteps:
    """Steps of a model's base order, by their index there.

    Args:
        threads: how many threads compute.
        device: where they compute, such as "cpu" or "cuda".
    """

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        self.threads = threads
        self.device = device
        self.parts: dict[int, tuple[OrderedViT, Step]] = {}

    def hold(self, index: int, part: OrderedViT, step: Step) -> None:
        """Hold another step, by the part of the model that runs it."""
        self.parts[index] = (part.to(self.device), step)

    def weights(self) -> dict[int, str]:
        """The fingerprint of each part."""
        return {index: fingerprint(part) for index, (part, _) in self.parts.items()}

    @torch.inference_mode()
    def run(
        self, packed: Packed, context: np.ndarray | None, indices: Sequence[int], position: int, wire: Wire
    ) -> Packed:
        """Run steps in a row on tokens as they travel; the first step has this position. See ``wire.answer_of``."""
        torch.set_num_threads(self.threads)  # which holds for the thread that calls it

        read = unpack(packed)
        state = State(self._tensor(read))
        if context is not None:
            state = State(state.tokens, self._tensor(context))
        for step_position, index in enumerate(indices, position):
            part, step = self.parts[index]
            state, _ = part.run_step(state, step, step_position)
        return answer_of(read, state.tokens.cpu().numpy(), wire)

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        # torch.tensor copies: what Ray hands over can't be written to.
        return torch.tensor(values, device=self.device)
