"""What a simulation measures: throughput, latency and losses after its warm-up, and the bound on the throughput."""

import math
from array import array
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from layershuffle.serving.actions import Ended
from layershuffle.serving.ideal import ideal_throughput
from layershuffle.serving.scenario import Machine


@dataclass(frozen=True)
class Outcome:
    """What a simulation has shown.

    Attributes:
        throughput: requests that ended in a second, those that failed left out. A burst takes its number over this.
        ideal: the bound on it that the nodes' speeds, layers and presence set if no layer is missed, see
            ``ideal_throughput``.
        latency: the median, the 95th and the 99th percentile of the seconds from submission to end; NaN if none ended.
        missed: the mean number of layers that a request did without.
        failed: the share of requests that reached their deadline.
        late: how many answers came too late to count.
        steps: how many steps ran, those of the first quarter included.
    """

    throughput: float
    ideal: float
    latency: tuple[float, float, float]
    missed: float
    failed: float
    late: int
    steps: int

    @property
    def share(self) -> float:
        """The throughput as a share of the ideal; NaN if some layer never had a node, so that the ideal is 0."""
        return self.throughput / self.ideal if self.ideal else math.nan


class Measurements:
    """Counts what happens in a simulation. Times are in simulated seconds.

    Args:
        warm_up: the time before which requests and presence don't count: at first all requests in flight
            begin at once, as in no cluster that has been working for a while.

    Attributes:
        steps: how many steps ran, also before the warm-up was over: they are the simulation's cost, and no result.
    """

    def __init__(self, warm_up: float) -> None:
        self.warm_up = warm_up
        self.steps = 0
        # An array, because a long simulation has millions of requests, and a float in a list takes four times as much.
        self._latencies = array("d")
        self._missed = 0
        self._failed = 0
        # How many layers the nodes could have run, by the layers that they held: all that the bound depends on.
        self._capacity: defaultdict[tuple[int, ...], float] = defaultdict(float)

    @property
    def requests(self) -> int:
        """How many requests have ended or failed."""
        return len(self._latencies) + self._failed

    def count_request(self, ended: Ended, now: float) -> None:
        """Count a request that ended or failed."""
        if now < self.warm_up:
            return
        if ended.failed:
            self._failed += 1
        else:
            self._latencies.append(ended.seconds)
            self._missed += len(ended.missed)

    def count_presence(self, machine: Machine, layers: tuple[int, ...], since: float, now: float) -> None:
        """Count what a node that holds ``layers`` could have run from ``since`` until now."""
        seconds = max(0.0, now - max(since, self.warm_up))
        self._capacity[layers] += seconds / machine.seconds

    def outcome(self, now: float, layers: int, late: int) -> Outcome:
        """What was measured until ``now``, with a model of so many layers and so many answers that came too late."""
        measured = now - self.warm_up
        capacity = {held: layers_run / measured for held, layers_run in self._capacity.items()}

        ended = len(self._latencies)
        latency = (math.nan, math.nan, math.nan)
        if ended:
            median, p95, p99 = np.percentile(self._latencies, [50, 95, 99])
            latency = (float(median), float(p95), float(p99))
        return Outcome(
            throughput=ended / measured,
            ideal=ideal_throughput(capacity, layers),
            latency=latency,
            missed=self._missed / max(1, ended),
            failed=self._failed / max(1, self.requests),
            late=late,
            steps=self.steps,
        )
