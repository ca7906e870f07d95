"""Bounds the connections of an HTTP server, so that clients who send nothing, or send it slowly, can't exhaust it."""

import asyncio
import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from aiohttp import web

ACCEPTED_AT_ONCE = 16
"""How many connections asyncio accepts before anything else runs."""
SPARE_FILES = 32
"""The open files that are left to everything but connections."""
FEWEST = 8
"""The connections that are kept even where the limit on open files leaves less."""


@dataclass(frozen=True)
class Limits:
    """What a client may take.

    Attributes:
        connections: how many connections are open at a time; fewer where the system's limit on open files is lower.
        header_seconds: the seconds that the headers of a request may take, and a connection may be idle.
        body_seconds: the seconds that the body may take.
    """

    connections: int = 256
    header_seconds: float = 10.0
    body_seconds: float = 30.0


@dataclass
class _Connection:
    """An open connection.

    Attributes:
        protocol: what reads from it.
        deadline: when it is closed, in the time of the event loop, unless it is being answered.
        has_token: whether its client has shown the token.
        is_answered: whether its request has come whole, and is being answered.
    """

    protocol: web.RequestHandler
    deadline: float
    has_token: bool = False
    is_answered: bool = False


class Connections:
    """The open connections. If there are too many, a new one takes the place of one whose request isn't whole yet.

    That is one without the token if there is any, and of these the one that has been open longest. So whoever sends
    nothing keeps nobody out.

    Args:
        limits: how many there may be, and how long they may take.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: dict[web.RequestHandler, _Connection] = {}

    def __len__(self) -> int:
        return len(self._open)

    @asynccontextmanager
    async def accepted_by(self, server: web.Server, host: str, port: int) -> AsyncIterator[int]:
        """Let a server listen, and close its connections when they take too long. Gives the port.

        Raises OSError, or for a name that can't be a host's UnicodeError, if it can't listen there.
        """
        loop = asyncio.get_running_loop()
        most = self._most()

        def accept() -> web.RequestHandler:
            if len(self._open) >= most:
                self._make_room()
            protocol = server()
            self._open[protocol] = _Connection(protocol, loop.time() + self.limits.header_seconds)
            return protocol

        listener = await loop.create_server(accept, host, port, backlog=ACCEPTED_AT_ONCE)
        closing = asyncio.create_task(self._close_late_ones(server))
        try:
            yield listener.sockets[0].getsockname()[1]
        finally:
            closing.cancel()
            listener.close()

    def _most(self) -> int:
        """How many connections there may be beside the files that are open now."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = limit - len(os.listdir("/dev/fd")) - ACCEPTED_AT_ONCE - SPARE_FILES
        return max(FEWEST, min(self.limits.connections, left))

    def _make_room(self) -> None:
        incomplete = [connection for connection in self._open.values() if not connection.is_answered]
        if incomplete:
            self._close(min(incomplete, key=lambda connection: (connection.has_token, connection.deadline)))

    async def _close_late_ones(self, server: web.Server) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, self.limits.header_seconds / 4))
            connected = {*server.connections}
            for connection in [*self._open.values()]:
                is_late = not connection.is_answered and connection.deadline < loop.time()
                if is_late or connection.protocol not in connected:
                    self._close(connection)

    def _close(self, connection: _Connection) -> None:
        del self._open[connection.protocol]
        # Closing would wait until the client has read what is left.
        transport = connection.protocol.transport
        if transport is not None:
            transport.abort()

    def has_shown_token(self, request: web.Request) -> None:
        """The client of ``request`` knows the token: its body may take its time."""
        connection = self._open.get(request.protocol)
        if connection is not None:
            connection.has_token = True
            # The server itself refuses a late body a little earlier, with a status code.
            seconds = self.limits.body_seconds + self.limits.header_seconds
            connection.deadline = asyncio.get_running_loop().time() + seconds

    @contextmanager
    def answering(self, request: web.Request) -> Iterator[None]:
        """Within this context ``request`` has come whole, and its connection stays open."""
        connection = self._open.get(request.protocol)
        if connection is None:
            yield
            return
        connection.is_answered = True
        try:
            yield
        finally:
            connection.is_answered = False
            connection.deadline = asyncio.get_running_loop().time() + self.limits.header_seconds
