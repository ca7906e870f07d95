"""For which nodes a request waits: any that holds a layer, the next of a random chain, or the next of a path."""

import random
from collections.abc import Sequence

from layershuffle.serving.holders import Holders
from layershuffle.serving.node import Node, Place
from layershuffle.serving.policy import Routing
from layershuffle.serving.request import Request


class Routes:
    """Says where requests wait.

    Args:
        routing: see ``Policy``.
        holders: the nodes that hold each layer.
        rng: decides the random chains.
    """

    def __init__(self, routing: Routing, holders: Holders, rng: random.Random) -> None:
        self.routing = routing
        self.holders = holders
        self.rng = rng

    def next_layers(self, request: Request) -> list[int]:
        """The layers of which any may run next."""
        if self.routing == "any":
            return request.left
        return request.left[:1]

    def places(self, request: Request) -> list[Place]:
        """The queues in which a request waits: those of layers, or on a chain or path that of a node."""
        node = None
        if self.routing == "chain":
            node = self._next_of_chain(request)
        elif self.routing == "path":
            node = self._next_of_path(request)
        if node is not None:
            return [node.own_place]
        # Also on a chain or a path whose next layer has no node: the first one to load it takes the request.
        return [*self.next_layers(request)]

    def places_of(self, node: Node) -> list[Place]:
        """The queues that a node serves."""
        if self.routing in ("chain", "path"):
            return [*node.layers, node.own_place]
        return [*node.layers]

    def leave_path(self, request: Request, layers: Sequence[int]) -> None:
        """The nodes on the request's path needn't run these layers any more."""
        for layer in layers:
            node = request.path.pop(layer, None)
            if node is not None:
                node.planned -= 1

    def _next_of_chain(self, request: Request) -> Node | None:
        """The node of the chain, which stays the same as long as it holds what comes next; otherwise a new one."""
        holders = self.holders.by_layer[request.left[0]]
        if request.chain not in holders:
            request.chain = holders.sample(self.rng)
        return request.chain

    def _next_of_path(self, request: Request) -> Node | None:
        """The node on the path that runs what comes next. If it has gone, the rest of the path is chosen anew."""
        layer = request.left[0]
        if request.path.get(layer) not in self.holders.by_layer[layer]:
            self._choose_path(request)
        return request.path.get(layer)

    def _choose_path(self, request: Request) -> None:
        """Choose the nodes that are to run what is left; in O(nodes). A path's time is the sum of its nodes' times."""
        self.leave_path(request, request.left)
        for layer in request.left:
            # A layer without a node is left out, and the path is chosen again when the request gets there.
            nodes = self.holders.by_layer[layer].nodes
            if nodes:
                node = min(nodes, key=lambda node: node.estimate * (1 + node.planned))
                request.path[layer] = node
                node.planned += 1
