"""Which nodes hold each layer, which layers are lost, and which nodes load them."""

import math
import random
from collections.abc import Iterable

from layershuffle.serving.node import Node


class LayerHolders:
    """The nodes that hold a layer and aren't suspected: a set from which one can be sampled.

    A node is added, removed or sampled in constant time, also where thousands hold the layer. A Python set can't be
    sampled without going through it.

    Attributes:
        nodes: the nodes, in no certain sequence.
        index: the place of each node in ``nodes``.
        fastest: the fewest seconds per layer that a sampled node was expected to take.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.index: dict[Node, int] = {}
        self.fastest = math.inf

    def __contains__(self, node: object) -> bool:
        return node in self.index

    def add(self, node: Node) -> None:
        """Add a node, if it isn't there."""
        if node not in self.index:
            self.index[node] = len(self.nodes)
            self.nodes.append(node)

    def discard(self, node: Node) -> None:
        """Remove a node, if it is there."""
        place = self.index.pop(node, None)
        if place is None:
            return
        # The last node takes its place, so that no other one has to move.
        last = self.nodes.pop()
        if last is not node:
            self.nodes[place] = last
            self.index[last] = place

    def sample(self, rng: random.Random) -> Node | None:
        """A node with a probability proportional to its speed, by rejection; None if there is none."""
        if not self.nodes:
            return None
        # Any node is drawn, and taken with the probability fastest / estimate: its speed as a share of the highest. So
        # no sum of speeds is needed, which every new estimate would change.
        for _ in range(100):
            node = self.nodes[int(rng.random() * len(self.nodes))]
            self.fastest = min(self.fastest, node.estimate)
            if rng.random() * node.estimate <= self.fastest:
                return node
        # All nodes have become far slower than the fastest ever was, so that any of them will do.
        return self.nodes[0]


class Holders:
    """The holders of every layer, and the layers that have none.

    Args:
        depth: the number of layers.

    Attributes:
        by_layer: the holders of each layer.
        lost: the layers that were held once, and aren't any more.
        loading: the nodes that were chosen to load lost layers.
    """

    def __init__(self, depth: int) -> None:
        self.by_layer = [LayerHolders() for _ in range(depth)]
        self.lost: set[int] = set()
        self.loading: dict[int, Node] = {}

    def add(self, node: Node) -> None:
        """Count a node as a holder of its layers."""
        for layer in node.layers:
            self.by_layer[layer].add(node)
            self.lost.discard(layer)

    def remove(self, node: Node) -> None:
        """Do without a node. The layers that it alone holds are lost, and it loads nothing."""
        for layer in node.layers:
            self.by_layer[layer].discard(node)
            if not self.by_layer[layer].nodes:
                self.lost.add(layer)
        node.to_load.clear()
        # What it was to load is free for others.
        self.loading = {layer: loader for layer, loader in self.loading.items() if loader is not node}

    def loaded(self, node: Node, layer: int) -> None:
        """A node has loaded a layer."""
        node.layers[layer] = None
        # Another node may have been chosen in its place, while this one was suspected.
        if self.loading.get(layer) is node:
            del self.loading[layer]

    def assign_lost_layers(self, nodes: Iterable[Node]) -> list[Node]:
        """Choose a node to load each lost layer: the one with the fewest layers, and of those the fastest.

        Args:
            nodes: all nodes; suspected ones are not chosen.

        Returns:
            The chosen nodes, one for each layer.
        """
        layers = sorted(self.lost - self.loading.keys())
        if not layers:
            return []
        able = [node for node in nodes if not node.suspected]
        if not able:
            return []

        chosen = []
        for layer in layers:
            # What it is to load counts as held, or one node would be chosen for all layers that were lost at once.
            node = min(able, key=lambda node: (len(node.layers) + len(node.to_load), node.estimate))
            self.loading[layer] = node
            node.to_load.append(layer)
            chosen.append(node)
        return chosen
