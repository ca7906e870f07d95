"""A request that runs on a cluster: its state, to which what comes back is added."""

import asyncio
from dataclasses import dataclass

import numpy as np

from layershuffle.serving.actions import Ended


@dataclass
class Flight:
    """A request that runs.

    Attributes:
        tokens: its newest state, [batch, tokens, dim].
        context: what the model's layers read besides, or None.
        ended: who waits for its end.
        error: why it failed, if it isn't that its deadline came.
    """

    tokens: np.ndarray
    context: np.ndarray | None
    ended: asyncio.Future[Ended]
    error: str = ""

    def add(self, output: np.ndarray, read: np.ndarray) -> None:
        """A step that read the state ``read`` has given ``output``: its change is added to the newest state.

        The bits are those of ``models.combine.combine``, which the model computes for the same order.
        """
        if self.tokens is read:
            self.tokens = output
        else:
            self.tokens = self.tokens + (output - read)
