"""The HTTP server of a cluster: a picture in, its likeliest classes and the order that ran out; and a page to watch."""

import asyncio
import hmac
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from aiohttp import web
from PIL import UnidentifiedImageError
from torch import Tensor

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.decoding import UNDECODABLE
from layershuffle.errors import UserError, last_line
from layershuffle.plurals import counted
from layershuffle.serving.cluster import Cluster
from layershuffle.serving.connections import Connections, Limits
from layershuffle.serving.log_limit import limited_logs
from layershuffle.serving.picture_decoder import PictureDecoder
from layershuffle.serving.result import Result, answer_of_runs

PAGE = Path(__file__).with_name("page.html")
MAX_BYTES = 10 << 20
"""The size of the largest picture, in bytes."""
BROKEN = (*UNDECODABLE, EOFError, ArithmeticError, LookupError, struct.error, MemoryError)
"""What Pillow raises for bytes that somebody has made up."""
CONNECTIONS = web.AppKey("connections", Connections)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Answers for a cluster.

    ``POST /predict`` takes a picture in any format that Pillow reads, ``GET /state`` tells of nodes and queue, and
    ``GET /`` is the page. The first two want the header ``Authorization: Bearer TOKEN``. With ``/predict?runs=5`` the
    picture runs five times, see ``answer_of_runs``; that counts as five requests. What can't be answered gets a
    one-line error and one of the status codes 400 (not a picture, or a wrong number of runs), 401 (no token), 408 (the
    body took too long), 413 (too large), 429 (too many wait) and 503 (the request failed, or its deadline came).

    Args:
        cluster: what classifies.
        loaded: the model that the cluster serves, which knows how pictures are preprocessed.
        token: what a client must know.
        most_waiting: how many requests may wait beside those that run.
        top: how many classes an answer names.
        limits: what clients may take.
    """

    def __init__(
        self,
        cluster: Cluster,
        loaded: LoadedModel,
        token: str,
        most_waiting: int = 64,
        top: int = 5,
        limits: Limits | None = None,
    ) -> None:
        self.cluster = cluster
        self.loaded = loaded
        self.token = token
        self.most_waiting = most_waiting
        self.top = top
        self.limits = limits or Limits()
        self.connections = Connections(self.limits)
        self.decoder = PictureDecoder(loaded)
        self.accepted = 0
        """How many requests are being decoded, wait or run."""

    def application(self) -> web.Application:
        """What aiohttp runs."""
        application = web.Application(middlewares=[self.guard], client_max_size=MAX_BYTES)
        routes = [web.post("/predict", self.predict), web.get("/state", self.state), web.get("/", self.page)]
        application.add_routes(routes)
        application[CONNECTIONS] = self.connections
        application.on_cleanup.append(self._clean_up)
        return application

    async def _clean_up(self, _: web.Application) -> None:
        self.decoder.close()

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse who doesn't know the token, and pictures that are too large."""
        # The page itself tells nothing.
        if request.path != "/":
            self._check_token(request)
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge as error:
            raise _Refusal(413, f"the picture has more than {MAX_BYTES:,} bytes") from error

    def _check_token(self, request: web.Request) -> None:
        """Raise a refusal unless the client knows the token, and note that it does."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # Bytes that aren't UTF-8 stand in headers and environment variables as surrogates.
        sent = token.encode("utf-8", "surrogateescape")
        expected = self.token.encode("utf-8", "surrogateescape")
        # compare_digest takes the same time for any wrong token, so that nobody can guess it letter by letter.
        if not hmac.compare_digest(sent, expected):
            raise _Refusal(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")
        self.connections.has_shown_token(request)

    async def predict(self, request: web.Request) -> web.Response:
        """Classify a picture."""
        most = self.most_waiting + self.cluster.window
        runs = _runs(request, most)
        content = await self._read_body(request)
        # Requests count only once they have come whole: those that never do keep nobody out.
        if self.accepted + runs > most:
            raise _Refusal(429, f"already serving {counted(self.accepted, 'request')}: try again later")
        arrived = asyncio.get_running_loop().time()
        self.accepted += runs
        seconds = self.cluster.policy.request_deadline
        try:
            with self.connections.answering(request):
                # Decoding counts, too: clients know when they have sent the picture, not when it was decoded.
                async with asyncio.timeout(seconds):
                    images = await self._decode(content)
                    results = await self._run(images, arrived, runs)
        except UserError as error:
            raise _Refusal(503, str(error)) from error
        except TimeoutError as error:
            raise _Refusal(503, f"the request was not done within {seconds:g} s") from error
        finally:
            self.accepted -= runs
        if runs == 1:
            answer = results[0].to_json(self.loaded.classes, self.top)
        else:
            answer = answer_of_runs(results, self.loaded.classes, self.top)
        return web.json_response(answer, dumps=partial(json.dumps, ensure_ascii=False))

    async def _run(self, images: Tensor, arrived: float, runs: int) -> list[Result]:
        """Run the model's input so many times at once, in the orders that the cluster finds."""
        tasks = [asyncio.create_task(self.cluster.submit(images, arrived)) for _ in range(runs)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            # An error ends ``gather`` but not the other tasks, which would go on for nobody.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_body(self, request: web.Request) -> bytes:
        """The picture as it was sent, of which no more is read than it may have."""
        # A client that says so itself is refused before it has sent everything.
        if (request.content_length or 0) > MAX_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BYTES, request.content_length or 0)
        try:
            async with self.connections.reading(request):
                return await _read_at_most(request, MAX_BYTES)
        except TimeoutError as error:
            seconds = f"{self.limits.body_seconds:g} s"
            raise _Refusal(408, f"the body took too long: it has {seconds}, or less while others wait") from error
        except web.RequestPayloadError as error:
            refusal = _Refusal(400, f"the body can't be read: {last_line(error)}")
            refusal.force_close()  # Nobody knows where the next request begins.
            raise refusal from error

    async def _decode(self, content: bytes) -> Tensor:
        """The model's input for a picture, float32 [1, channels, size, size]."""
        try:
            return await self.decoder.decode(content)
        except TimeoutError:
            raise  # It is an OSError, too.
        except BROKEN as error:
            # Pillow's own message would name the file, which is none here.
            is_unknown = isinstance(error, UnidentifiedImageError)
            reason = "its format is unknown" if is_unknown else last_line(error)
            raise _Refusal(400, f"the body is not a picture that can be read: {reason}") from error

    async def state(self, _: web.Request) -> web.Response:
        """Tell of nodes and queue."""
        return web.json_response(self.cluster.state().to_json())

    async def page(self, _: web.Request) -> web.FileResponse:
        """Give the page that shows them."""
        return web.FileResponse(PAGE)


def _runs(request: web.Request, most: int) -> int:
    """How many times a request wants its picture to run."""
    text = request.query.get("runs", "1")
    runs = 0
    # A number of more digits is too large, and Python may refuse to read it.
    if text.isascii() and text.isdecimal() and len(text) < 10:
        runs = int(text)
    if not 1 <= runs <= most:
        raise _Refusal(400, f"runs is a number from 1 to {most}: how many times the picture runs")
    return runs


async def _read_at_most(request: web.Request, most: int) -> bytes:
    """The body; raises HTTPRequestEntityTooLarge if it has more than ``most`` bytes, also once it is unpacked."""
    content = bytearray()
    try:
        async for chunk in request.content.iter_any():
            content += chunk
            if len(content) > most:
                raise web.HTTPRequestEntityTooLarge(most, len(content))
    except BaseException:
        # The error refers to this function's variables, and aiohttp to the error, until Python next looks for cycles:
        # a hundred refused bodies would take a gigabyte meanwhile.
        content.clear()
        raise
    return bytes(content)


def check_address(host: str, port: int) -> None:
    """Raise a UserError if there can be no such address."""
    if not host:
        raise UserError("there is no host to listen on: 127.0.0.1 is this machine alone")
    if not 0 <= port <= 65535:
        raise UserError(f"there is no port {port}: ports are 0 (any that is free) to 65535")


@asynccontextmanager
async def listening(application: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Let the application of an ``HttpServer`` listen, and end it; port 0 stands for any that is free.

    Gives its address. A request whose client goes away is cancelled, so that no node works for nobody.

    Raises:
        UserError: if it can't listen there.
    """
    check_address(host, port)
    connections = application[CONNECTIONS]
    seconds = connections.limits.header_seconds
    runner = web.AppRunner(
        application, access_log=None, handler_cancellation=True, keepalive_timeout=seconds, shutdown_timeout=1.0
    )
    await runner.setup()
    assert runner.server is not None
    bracketed = f"[{host}]" if ":" in host else host
    try:
        async with AsyncExitStack() as stack:
            stack.enter_context(limited_logs())
            try:
                actual = await stack.enter_async_context(connections.accepted_by(runner.server, host, port))
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or last_line(error)
                raise UserError(f"can't listen on {bracketed}:{port}: {reason}") from error
            yield f"http://{bracketed}:{actual}"
    finally:
        await runner.cleanup()


class _Refusal(web.HTTPException):
    """A one-line error with a status code; aiohttp has a class for each code, but none for any."""

    def __init__(self, status: int, reason: str) -> None:
        self.status_code = status
        super().__init__(text=f"{reason}\n")
