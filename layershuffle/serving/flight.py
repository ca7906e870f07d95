"""A request that runs on a cluster."""

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
        bytes: how many bytes have travelled to nodes and back for it.
        error: why it failed, if it isn't that its deadline came.
    """

    tokens: np.ndarray
    context: np.ndarray | None
    ended: asyncio.Future[Ended]
    bytes: int = 0
    error: str = ""
