"""What is simulated: nodes that differ in speed, go away and come back, and the load on them."""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from layershuffle.errors import UserError
from layershuffle.plurals import counted
from layershuffle.serving.checks import check_numbers

MOST_DEVIATION = 10
"""The largest standard deviation of a logarithm; the exponential of more is soon beyond a float."""


@dataclass(frozen=True)
class Scenario:
    """The nodes, and the load on them. Times are in seconds.

    Attributes:
        nodes: how many there are, living or away.
        layers: the layers of the model.
        layers_per_node: how many successive layers each node holds. Each node in turn begins with the layer whose
            holders are the slowest, taken together, as the servers of Petals do (arXiv 2209.01188).
        seconds: what a request takes in a layer on the median node.
        spread: the standard deviation of the logarithm of the nodes' speeds.
        straggler: how many times as long as that every tenth node takes, beginning with the first.
        noise: the standard deviation of the logarithm of the time of a step on the same node.
        latency: the mean time of a message to a node and its answer; exponentially distributed.
        delay: the time that they take besides, which is always the same.
        bandwidth: of the link of each node, in Mbit/s; 0 if what travels takes no time.
        kilobytes: the size of a state, which travels to the node and back. That of a ViT-B image is 605 kB.
        lifetime: the mean time for which a node stays, exponentially distributed; 0 if it stays for ever.
        absence: the mean time until it comes back, with the same layers; exponentially distributed.
        detection: the time until it is noticed that a node has gone.
        loading: the time in which a node loads another layer.
        window: how many requests are in flight, for each node; when one ends, the next one is submitted.
        rate: if above 0, so many requests come in a second in place of those of ``window``, at random, and none of them
            waits for another to end.
        duration: the time that is simulated. The first quarter warms up, and isn't measured.
        kills: how many nodes go for good, the first ones, evenly spread over the time that is measured. It needs a
            lifetime of 0.
        stopped: how many nodes, the last ones, answer nothing any more from when the measured time begins. Only the
            deadlines of their steps tell. It needs a lifetime of 0.
        burst: if above 0, this many requests come at the beginning, and no others. Then all is measured until the last
            one ends.

    Raises:
        UserError: if a number is out of its range, or the nodes can't run a model.
    """

    nodes: int = 100
    layers: int = 12
    layers_per_node: int = 1
    seconds: float = 5.0
    spread: float = 0.5
    straggler: float = 1.0
    noise: float = 0.2
    latency: float = 0.1
    delay: float = 0.0
    bandwidth: float = 0.0
    kilobytes: float = 605.0
    lifetime: float = 3600.0
    absence: float = 600.0
    detection: float = 5.0
    loading: float = 30.0
    window: float = 1.0
    rate: float = 0.0
    duration: float = 3600.0
    kills: int = 0
    stopped: int = 0
    burst: int = 0

    def __post_init__(self) -> None:
        whole = ("nodes", "layers", "layers_per_node", "kills", "stopped", "burst")
        check_numbers(vars(self), whole=whole, positive=(*whole[:3], "seconds", "straggler", "window", "duration"))
        if max(self.spread, self.noise) > MOST_DEVIATION:
            raise UserError(f"spread and noise are standard deviations of a logarithm, at most {MOST_DEVIATION}")
        # A node that is killed or stopped must still be there, and must not come back.
        failing = self.kills + self.stopped
        if failing and (self.lifetime or failing > self.nodes):
            raise UserError(f"nodes that are killed or stopped ({failing}) need a lifetime of 0, and as many nodes")
        if self.rate and self.burst:
            raise UserError("requests come at a rate or in a burst: leave one of them at 0")
        if self.layers_per_node > self.layers or self.nodes * self.layers_per_node < self.layers:
            raise UserError(
                f"{counted(self.nodes, 'node')} can't run a model of {counted(self.layers, 'layer')} with "
                f"{self.layers_per_node} at a node: each layer needs a node, and no node holds a layer twice"
            )

    @property
    def transfer(self) -> float:
        """The seconds in which a state travels to a node and back."""
        if not self.bandwidth:
            return 0.0
        megabits = 2 * 8 * self.kilobytes / 1000
        return megabits / self.bandwidth


class Machine(NamedTuple):
    """What a simulated node is.

    Attributes:
        layers: the layers that it holds whenever it comes.
        seconds: what it takes for a layer.
    """

    layers: tuple[int, ...]
    seconds: float


def sample_machines(scenario: Scenario, rng: random.Random) -> list[Machine]:
    """The nodes of a scenario, as ``Scenario.layers_per_node`` describes them."""
    speeds = [0.0] * scenario.layers  # layers a second, by layer, of all its holders together
    machines = []
    for number in range(scenario.nodes):
        seconds = scenario.seconds * math.exp(scenario.spread * rng.gauss(0, 1))
        if number % 10 == 0:
            seconds *= scenario.straggler

        # The layer that limits the throughput of all comes first. After the last layer, the node goes on with layer 0.
        slowest = speeds.index(min(speeds))
        offsets = range(scenario.layers_per_node)
        layers = tuple((slowest + offset) % scenario.layers for offset in offsets)
        for layer in layers:
            speeds[layer] += 1 / seconds
        machines.append(Machine(layers, seconds))
    return machines
