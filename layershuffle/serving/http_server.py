"""The HTTP server of a cluster: a picture in, its likeliest classes and the order that ran out; and a page to watch."""

import asyncio
import hmac
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from aiohttp import web
from PIL import UnidentifiedImageError
from torch import Tensor

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.decoding import UNDECODABLE, open_image
from layershuffle.errors import UserError
from layershuffle.serving.cluster import Cluster

PAGE = Path(__file__).with_name("page.html")
MAX_BYTES = 10 << 20
"""The size of the largest picture, in bytes."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpServer:
    """Answers for a cluster.

    ``POST /predict`` takes a picture in any format that Pillow reads, ``GET /state`` tells of nodes and queue, and
    ``GET /`` is the page. The first two want the header ``Authorization: Bearer TOKEN``. What can't be answered gets a
    one-line error and one of the status codes 400 (not a picture), 401 (no token), 413 (too large), 429 (too many wait)
    and 503 (the request failed).

    Args:
        cluster: what classifies.
        loaded: the model that the cluster serves, which knows how pictures are preprocessed.
        token: what a client must know.
        most_waiting: how many requests may wait beside those that run.
        top: how many classes an answer names.
    """

    def __init__(self, cluster: Cluster, loaded: LoadedModel, token: str, most_waiting: int = 64, top: int = 5) -> None:
        self.cluster = cluster
        self.loaded = loaded
        self.token = token
        self.most_waiting = most_waiting
        self.top = top
        self.accepted = 0
        """How many requests are being decoded, wait or run."""

    def application(self) -> web.Application:
        """What aiohttp runs."""
        application = web.Application(middlewares=[self.guard], client_max_size=MAX_BYTES)
        routes = [web.post("/predict", self.predict), web.get("/state", self.state), web.get("/", self.page)]
        application.add_routes(routes)
        return application

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse who doesn't know the token, and pictures that are too large."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        # The page itself tells nothing. compare_digest takes the same time for any wrong token.
        if request.path != "/" and not hmac.compare_digest(token.encode(), self.token.encode()):
            raise _Refusal(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")
        try:
            return await handler(request)
        except web.HTTPRequestEntityTooLarge as error:
            raise _Refusal(413, f"the picture has more than {MAX_BYTES:,} bytes") from error

    async def predict(self, request: web.Request) -> web.Response:
        """Classify a picture."""
        if self.accepted >= self.most_waiting + self.cluster.window:
            raise _Refusal(429, f"{self.accepted} requests are being served already: try again later")
        self.accepted += 1
        try:
            images = await self._read_picture(await request.read())
            result = await self.cluster.submit(images)
        except UserError as error:
            raise _Refusal(503, str(error)) from error
        finally:
            self.accepted -= 1
        answer = result.to_json(self.loaded.classes, self.top)
        return web.json_response(answer, dumps=partial(json.dumps, ensure_ascii=False))

    async def _read_picture(self, content: bytes) -> Tensor:
        """The model's input for a picture, float32 [1, channels, size, size]."""
        try:
            return await asyncio.to_thread(lambda: self.loaded.preprocess([open_image(io.BytesIO(content))]))
        except UNDECODABLE as error:
            # Pillow's own message would name the file, which is none here.
            is_unknown = isinstance(error, UnidentifiedImageError)
            reason = "its format is unknown" if is_unknown else str(error)
            raise _Refusal(400, f"the body is not a picture that can be read: {reason}") from error

    async def state(self, _: web.Request) -> web.Response:
        """Tell of nodes and queue."""
        return web.json_response(self.cluster.state().to_json())

    async def page(self, _: web.Request) -> web.FileResponse:
        """Give the page that shows them."""
        return web.FileResponse(PAGE)


@asynccontextmanager
async def listening(application: web.Application, host: str, port: int) -> AsyncIterator[str]:
    """Let an application listen, and end it; port 0 stands for any that is free. Gives its address.

    A request whose client goes away is cancelled, so that no node works for nobody.

    Raises:
        UserError: if it can't listen there.
    """
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise UserError(f"can't listen on {host}:{port}: {error.strerror}") from error
        yield f"http://{host}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class _Refusal(web.HTTPException):
    """A one-line error with a status code; aiohttp has a class for each code, but none for any."""

    def __init__(self, status: int, reason: str) -> None:
        self.status_code = status
        super().__init__(text=f"{reason}\n")
