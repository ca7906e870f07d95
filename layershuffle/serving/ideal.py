"""The most that nodes could do, if no request ever waited."""

from collections.abc import Mapping

from scipy.optimize import linprog
from scipy.sparse import lil_array


def ideal_throughput(capacity: Mapping[tuple[int, ...], float], layers: int) -> float:
    """The most requests a second that nodes can run through all layers, by linear programming.

    It takes no queue, no message and no loss into account.

    Args:
        capacity: for each choice of layers that nodes hold, how many layers these nodes together run in a second.
        layers: the number of layers.
    """
    # Nodes that hold the same layers are a group. The variables are how often each group runs each of its layers in a
    # second, and last the throughput.
    shares: list[tuple[int, int]] = []
    for group, held in enumerate(capacity):
        shares += [(group, layer) for layer in held]
    throughput = len(shares)

    # A row for each group, whose runs are added up, and one for each layer: throughput less its runs.
    limits = lil_array((len(capacity) + layers, len(shares) + 1))
    for column, (group, layer) in enumerate(shares):
        limits[group, column] = 1
        limits[len(capacity) + layer, column] = -1
    limits[len(capacity) :, throughput] = 1

    # What each row may add up to: no group runs more than its capacity, and no layer runs less often than requests end.
    most = [*capacity.values()] + [0.0] * layers
    # linprog looks for the lowest costs, so that the highest throughput is the one with the lowest negative.
    costs = [0.0] * len(shares) + [-1.0]
    solution = linprog(costs, limits.tocsr(), most, method="highs")
    return float(-solution.fun)
