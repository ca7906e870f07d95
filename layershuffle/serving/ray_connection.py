"""Connects to a Ray cluster, or starts one on this machine."""

import logging
import os
import socket
from typing import Any, NamedTuple

from layershuffle.errors import UserError, last_line

NEEDS_RAY = 'serving needs Ray: install it with pip install "layershuffle[serving]"'
SYSTEM_CONFIG = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
    "max_direct_call_object_size": 10_000_000,
}
"""The system config of a cluster of several machines. With Ray's defaults it takes 15 s until a machine that has gone
is noticed, and tokens of more than 100 kB travel by Ray's object store, which costs a step several round trips more.

A cluster on a single machine does without: a busy machine would be taken for gone, and has no round trips to save."""


class RayConnection(NamedTuple):
    """A connection to a Ray cluster.

    Attributes:
        ray: the module, connected.
        is_new: whether this process has connected it, and so should disconnect it.
    """

    ray: Any
    is_new: bool


def connect(address: str | None, cpus: int) -> RayConnection:
    """Connect to the Ray cluster at ``address``, or without an address start one with ``cpus`` CPUs on this machine.

    One that is started listens on loopback alone.

    Raises:
        UserError: if ray isn't installed, or there is no cluster at ``address``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will change some day
    try:
        import ray
    except ImportError as error:
        raise UserError(NEEDS_RAY) from error
    # A program or a notebook that uses Ray itself keeps its connection, and closes it when it likes.
    if ray.is_initialized():
        return RayConnection(ray, is_new=False)

    from layershuffle.private_apis import (
        keep_ray_from_printing,
        ray_keeps_loopback_addresses,
        start_ray_on_loopback,
    )

    # The cluster's own status and event log tell of nodes that go, and stdout holds results alone.
    keep_ray_from_printing()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ray_keeps_loopback_addresses():
        if address is None:
            start_ray_on_loopback(num_cpus=cpus, **quiet)
            return RayConnection(ray, is_new=True)
        try:
            _check_that_somebody_listens(address)
            ray.init(address=address, **quiet)
        except (OSError, OverflowError, ValueError, RuntimeError) as error:
            reason = f"{ray_reason(error)} (if it wants a token, set the environment variable RAY_AUTH_MODE=token)"
            raise UserError(f"there is no Ray cluster at {address}: {reason}") from error
    return RayConnection(ray, is_new=True)


def _check_that_somebody_listens(address: str) -> None:
    """Raise an OSError if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), 5).close()


def ray_reason(error: Exception) -> str:
    """The line of one of Ray's errors that says something; they begin with a traceback."""
    cause = getattr(error, "cause", None)
    return last_line(cause or error)
