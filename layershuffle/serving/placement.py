"""Which node holds which steps of a model's base order."""

import itertools
from collections.abc import Sequence

from layershuffle.choices import Accelerator
from layershuffle.errors import UserError

MOST_NODES = 10_000
"""How many nodes a cluster may have."""


def spread(nodes: int, steps: int) -> list[list[int]]:
    """For each of ``nodes`` nodes the successive steps that it holds, so that each step has one node or more.

    Raises:
        UserError: if there is no node, or more than a cluster could have.
    """
    if not 1 <= nodes <= MOST_NODES:
        raise UserError(f"a cluster needs 1 to {MOST_NODES:,} nodes, not {nodes}")
    # The fewest that hold every step. More nodes than steps hold one each, so that some steps have several nodes.
    steps_per_node = -(-steps // nodes)  # rounded up
    placement = []
    for node in range(nodes):
        # What is beyond the last step goes on with the first, so that every node holds equally many.
        first = node * steps_per_node
        placement.append(sorted((first + offset) % steps for offset in range(steps_per_node)))
    return placement


def checked(placement: Sequence[Sequence[int]], steps: int) -> list[list[int]]:
    """The placement as lists.

    Raises:
        UserError: if a step has no node, or a node holds a step that the model lacks.
    """
    held = set(itertools.chain.from_iterable(placement))
    missing = set(range(steps)) - held
    if missing:
        raise UserError(f"no node holds step {min(missing)} of the model's {steps}: give each step to a node")
    unknown = held - set(range(steps))
    if unknown:
        raise UserError(f"a node holds step {max(unknown)}, but the model has only steps 0 to {steps - 1}")
    return [list(node_steps) for node_steps in placement]


def gpu_share(accelerator: Accelerator, gpus: int, nodes: int) -> float:
    """The share of a GPU that each node gets, so that all of them fit; 0 if they compute on the CPU.

    Args:
        accelerator: where nodes compute.
        gpus: how many GPUs the cluster has.
        nodes: how many nodes there are.

    Raises:
        UserError: if there is no GPU and there must be one.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not gpus):
        return 0.0
    if not gpus:
        raise UserError("the cluster has no GPU: let its nodes compute on the CPU (accelerator cpu)")
    nodes_per_gpu = -(-nodes // gpus)  # rounded up
    # Ray counts in ten-thousandths.
    return 10_000 // nodes_per_gpu / 10_000
