"""The process of a node of the Ray cluster."""

import os
import threading
from typing import Any

import ray

from layershuffle.serving.held_steps import HeldSteps

remote: Any = ray.remote  # Its types lack concurrency_groups.


@remote(max_restarts=0, max_task_retries=0, num_cpus=1, concurrency_groups={"watch": 1})
class Worker(HeldSteps):
    """The actor, which has the methods of ``HeldSteps``."""

    def process(self) -> int:
        """The id of the process."""
        return os.getpid()

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never returns: the call fails when the process ends, however long it has been idle."""
        threading.Event().wait()
