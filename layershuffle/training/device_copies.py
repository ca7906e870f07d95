"""Copies batches to a GPU while it still works on the step before."""

from collections.abc import Callable
from typing import Any

import torch


class BatchCopier:
    """Copies batches to the device on a stream of its own, so that copying and computing overlap."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def copy(self, to_device: Callable[[], Any], device: torch.device) -> Any:
        """Call ``to_device``, which copies a batch of tensors to ``device``, and return what it returns."""
        if device.type != "cuda":
            return to_device()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            batch = to_device()

        # The step begins when its batch is there; the host doesn't wait for either.
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self._stream)
        for tensor in batch:
            # Its memory must not be reused before the step is done with it.
            tensor.record_stream(computing)
        return batch
