"""What a cluster counts and times, as metrics of Ray, which any Prometheus server can collect."""

from collections.abc import Sequence
from typing import Any

from ray.util.metrics import Counter, Histogram

SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]
"""The upper bounds of the latency histogram's buckets."""


class Metrics:
    """Fed with the events of ``EventLog``, whose listener ``count`` is."""

    def __init__(self) -> None:
        self.ended = Counter("layershuffle_requests_ended", "Requests that were answered.")
        self.failed = Counter("layershuffle_requests_failed", "Requests that failed or whose caller went away.")
        self.seconds = Histogram("layershuffle_request_seconds", "Latency of the answered requests.", SECONDS)
        self.missed = Counter("layershuffle_layers_missed", "Layers that requests did without.")
        self.late = Counter("layershuffle_late_answers", "Answers of nodes that came too late to count.")
        self.lost = Counter("layershuffle_nodes_lost", "Nodes that have gone.")

    def count(
        self, event: str, failed: bool = False, missed: Sequence[int] = (), seconds: float = 0.0, **_: Any
    ) -> None:
        """Count an event; see ``EventLog.write``."""
        if event == "ended" and failed:
            self.failed.inc()
        elif event == "ended":
            self.ended.inc()
            self.seconds.observe(seconds)
            if missed:
                self.missed.inc(len(missed))
        elif event == "late":
            self.late.inc()
        elif event == "lost":
            self.lost.inc()
