"""Bounds the connections of an HTTP server, so that clients who send nothing, or send it slowly, can't exhaust it."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from aiohttp import web

logger = logging.getLogger(__name__)

BACKLOG = 128
"""How many connections the system keeps until they are accepted; unlike accepted ones, they take no open file."""
SPARE_FILES = 48
"""The open files that are left to everything but connections."""
FEWEST = 8
"""The connections that are kept even where the limit on open files leaves less."""
GRACE_SECONDS = 0.5
"""How long a connection is safe from others that need its place, so that a request sent at once always comes whole."""
LEAVING_SECONDS = 0.1
"""The same once its request was refused to make room, so that the refusal can be sent."""
CHECK_SECONDS = 0.02
"""How often to see whether there is room, while new connections wait for it."""


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
    """An open connection. Times are those of the event loop.

    Attributes:
        protocol: what reads from it.
        deadline: when it is closed, unless it is being answered.
        safe_until: when it may be closed to make room.
        has_token: whether its client has shown the token.
        is_answered: whether its request has come whole, and is being answered.
        body_timeout: limits the time of the body that is being read, if one is.
    """

    protocol: web.RequestHandler
    deadline: float
    safe_until: float
    has_token: bool = False
    is_answered: bool = False
    body_timeout: asyncio.Timeout | None = None


class Connections:
    """The open connections. If there are too many, a new one takes the place of one whose request isn't whole yet.

    That is one without the token if there is any, and of these the one that has been open longest. So whoever sends
    nothing keeps nobody out. A client with the token is told why before its connection is closed.

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
        # asyncio finds the addresses of the host, but would accept connections even when there is no room for them.
        bound = await asyncio.get_running_loop().create_server(server, host, port, start_serving=False)
        # Its server closes the sockets with itself, so that duplicates of them are kept.
        listeners = [listener.dup() for listener in bound.sockets]
        bound.close()
        tasks = []
        try:
            for listener in listeners:
                listener.setblocking(False)
                listener.listen(BACKLOG)
            # Only now that the listeners are open is it known how many files are left.
            most = self._most()
            tasks = [asyncio.create_task(self._accept(listener, server, most)) for listener in listeners]
            tasks.append(asyncio.create_task(self._close_late_ones(server)))
            yield listeners[0].getsockname()[1]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for listener in listeners:
                listener.close()

    def _most(self) -> int:
        """How many connections there may be beside the files that are open now."""
        if sys.platform == "win32":
            return self.limits.connections

        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = limit - len(os.listdir("/dev/fd")) - SPARE_FILES
        return max(FEWEST, min(self.limits.connections, left))

    # --- Opening ---------------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket, server: web.Server, most: int) -> None:
        """Accept connections one after the other, each once there is room for it."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wait_for_room(server, most)
            try:
                accepted, _ = await loop.sock_accept(listener)
                _, protocol = await loop.connect_accepted_socket(server, accepted)
            except OSError as error:
                # The client has gone again, or something else in this process has opened the last file.
                logger.warning("a connection could not be accepted: %s", error.strerror)
                await asyncio.sleep(CHECK_SECONDS)
                continue
            now = loop.time()
            self._open[protocol] = _Connection(protocol, now + self.limits.header_seconds, now + GRACE_SECONDS)

    async def _wait_for_room(self, server: web.Server, most: int) -> None:
        """Return when one more connection can be open. Those that wait for it meanwhile wait in the system's queue."""
        while len(self._open) >= most:
            # Clients who have gone are the first to make room.
            self._forget_lost_ones(server)
            if len(self._open) >= most and not self._close_one():
                await asyncio.sleep(CHECK_SECONDS)

    def _close_one(self) -> bool:
        """Close the connection that is least likely to bring a request, and return whether there was one to close."""
        now = asyncio.get_running_loop().time()
        closable = []
        for connection in self._open.values():
            is_safe = connection.safe_until > now
            if not connection.is_answered and not is_safe:
                closable.append(connection)
        if not closable:
            return False

        # Those with the token are the last to go. Of the others the one goes that has had the most time.
        connection = min(closable, key=lambda candidate: (candidate.has_token, candidate.deadline))
        if connection.body_timeout is None:
            self._close(connection)
            return True

        # A body is being read, whose client knows the token and is told. The connection is closed the next time.
        if not connection.body_timeout.expired():
            connection.body_timeout.reschedule(now)
        connection.safe_until = now + LEAVING_SECONDS
        connection.deadline = now
        return False

    # --- Closing ---------------------------------------------------------------------------------------------

    async def _close_late_ones(self, server: web.Server) -> None:
        """Close connections whose time is over, as long as the server listens."""
        loop = asyncio.get_running_loop()
        while True:
            # Often enough that nobody gets much more time than the limit says.
            await asyncio.sleep(min(1.0, self.limits.header_seconds / 4))
            self._forget_lost_ones(server)
            # A copy, because closing one changes the dict.
            for connection in [*self._open.values()]:
                is_late = max(connection.deadline, connection.safe_until) < loop.time()
                if is_late and not connection.is_answered:
                    self._close(connection)

    def _forget_lost_ones(self, server: web.Server) -> None:
        """Leave out the connections that their clients or aiohttp have closed."""
        # aiohttp tells nobody when a connection ends, but knows which ones there are.
        for protocol in self._open.keys() - {*server.connections}:
            del self._open[protocol]

    def _close(self, connection: _Connection) -> None:
        """Close a connection at once, whatever its client has not read yet."""
        del self._open[connection.protocol]
        # ``close`` would wait until the client has read what is left.
        transport = connection.protocol.transport
        if transport is not None:
            transport.abort()

    # --- What a request has reached --------------------------------------------------------------------------

    def has_shown_token(self, request: web.Request) -> None:
        """The client of ``request`` knows the token: its body may take its time."""
        connection = self._open.get(request.protocol)
        if connection is not None:
            now = asyncio.get_running_loop().time()
            connection.has_token = True
            connection.safe_until = now + GRACE_SECONDS
            # The server itself refuses a late body a little earlier, with a status code.
            connection.deadline = now + self.limits.body_seconds + self.limits.header_seconds

    @asynccontextmanager
    async def reading(self, request: web.Request) -> AsyncIterator[None]:
        """Within this context the body of ``request`` is read.

        Raises TimeoutError if it takes too long, or if others need the connection's place.
        """
        connection = self._open.get(request.protocol)
        async with asyncio.timeout(self.limits.body_seconds) as timeout:
            if connection is None:
                yield
                return
            connection.body_timeout = timeout
            try:
                yield
            finally:
                connection.body_timeout = None

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
            now = asyncio.get_running_loop().time()
            connection.is_answered = False
            connection.deadline = now + self.limits.header_seconds
            connection.safe_until = now + GRACE_SECONDS
