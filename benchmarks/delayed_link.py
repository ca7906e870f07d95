"""A network link with a delay, to another network namespace of this machine: what ``tc netem delay`` does, in Python.

    ip netns add far
    python -m benchmarks.delayed_link far 10.77.0.1 10.77.0.2 --delay 0.025 &
    ip netns exec far COMMAND

This is for kernels without netem. Packets that this machine sends to 10.77.0.2 arrive in the namespace after the delay,
and the other way round. It needs the rights of root, and runs until it is killed, which removes the link.
"""

import argparse
import fcntl
import os
import select
import struct
import subprocess
import time
from collections import deque
from typing import NamedTuple

# From linux/if_tun.h: a device whose packets a program reads and writes, without a header of its own.
TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000

LARGEST = 65536
"""More bytes than a packet has."""


class Packet(NamedTuple):
    """A packet on its way.

    Attributes:
        due: when it arrives, in seconds of ``time.monotonic``.
        end: the file descriptor of the end at which it arrives.
        content: its bytes.
    """

    due: float
    end: int
    content: bytes


def open_end(device: str, address: str, namespace: str | None = None) -> int:
    """Make an end of the link, a TUN device; returns its file descriptor.

    Args:
        device: what the device is called.
        address: its IPv4 address, in a network of 256.
        namespace: the network namespace in which it is, by default the current one.
    """
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", device.encode(), IFF_TUN | IFF_NO_PI))
    enter = []
    if namespace is not None:
        subprocess.run(["ip", "link", "set", device, "netns", namespace], check=True)
        enter = ["ip", "netns", "exec", namespace]
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
    subprocess.run([*enter, "ip", "address", "add", f"{address}/24", "dev", device], check=True)
    subprocess.run([*enter, "ip", "link", "set", device, "up"], check=True)
    return end


def carry(near: int, far: int, delay: float) -> None:
    """Carry packets between the two ends for ever, each for ``delay`` seconds."""
    other = {near: far, far: near}
    # All packets take the same time, so the first that comes is the first that arrives.
    on_the_way: deque[Packet] = deque()
    while True:
        timeout = None
        if on_the_way:
            timeout = max(0.0, on_the_way[0].due - time.monotonic())
        readable, _, _ = select.select([near, far], [], [], timeout)
        for end in readable:
            on_the_way.append(Packet(time.monotonic() + delay, other[end], os.read(end, LARGEST)))
        while on_the_way and on_the_way[0].due <= time.monotonic():
            packet = on_the_way.popleft()
            os.write(packet.end, packet.content)


def main() -> None:
    """Make the link and carry its packets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("namespace", help="the network namespace at the other end")
    parser.add_argument("near", help="the IPv4 address of this end")
    parser.add_argument("far", help="the IPv4 address of the other end, in the same network of 256")
    parser.add_argument("--delay", type=float, default=0.025, help="the seconds that a packet takes, in each direction")
    args = parser.parse_args()
    # The link should be late for nobody, however busy the machine is.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    carry(open_end("delayed0", args.near), open_end("delayed1", args.far, args.namespace), args.delay)


if __name__ == "__main__":
    main()
