"""The HTTP door of a cluster: a picture in, its likeliest classes and the order that ran out; and a page to watch."""

import asyncio
import hmac
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import UnidentifiedImageError

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.decoding import UNDECODABLE, open_image
from layershuffle.errors import UserError
from layershuffle.serving.cluster import Cluster

PAGE = Path(__file__).with_name("page.html")
MAX_BYTES = 10 << 20


def door(cluster: Cluster, loaded: LoadedModel, token: str, most_waiting: int = 64, top: int = 5) -> web.Application:
    """The application that answers for ``cluster``.

    ``POST /predict`` takes a picture in any format that Pillow reads, ``GET /state`` tells of nodes and queue, and
    ``GET /`` is the page. The first two want the header ``Authorization: Bearer TOKEN``. What can't be answered gets a
    sentence and one of the status codes 400 (not a picture), 401 (no token), 413 (too large), 429 (too many wait) and
    503 (the request failed).

    Args:
        cluster: what classifies.
        loaded: the model that the cluster serves, which knows how pictures are preprocessed.
        token: what a client must know.
        most_waiting: how many requests may wait beside those that run.
        top: how many classes an answer names.
    """
    beyond = 0  # the requests that are being decoded or wait

    async def predict(request: web.Request) -> web.Response:
        nonlocal beyond
        if beyond >= most_waiting + cluster.window:
            raise _Refusal(429, f"{beyond} requests are being served already: try again later")
        beyond += 1
        try:
            content = await request.read()
            try:
                images = await asyncio.to_thread(lambda: loaded.preprocess([open_image(io.BytesIO(content))]))
            except UNDECODABLE as error:
                why = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
                raise _Refusal(400, f"the body is not a picture that can be read: {why}") from error
            try:
                found = await cluster.submit(images)
            except UserError as error:
                raise _Refusal(503, str(error)) from error
        finally:
            beyond -= 1
        answer = found.described(loaded.classes, top)
        return web.json_response(answer, dumps=partial(json.dumps, ensure_ascii=False))

    async def state(_: web.Request) -> web.Response:
        return web.json_response(cluster.state())

    async def page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE)

    @web.middleware
    async def guard(request: web.Request, handler: Callable[[web.Request], Awaitable[Any]]) -> Any:
        try:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if request.path != "/" and not hmac.compare_digest(given.encode(), token.encode()):
                raise _Refusal(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")
            return await handler(request)
        except web.HTTPRequestEntityTooLarge as error:
            raise _Refusal(413, f"the picture has more than {MAX_BYTES:,} bytes") from error

    made = web.Application(middlewares=[guard], client_max_size=MAX_BYTES)
    made.add_routes([web.post("/predict", predict), web.get("/state", state), web.get("/", page)])
    return made


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
    """A sentence with a status code; aiohttp has a class for each code, but none for any."""

    def __init__(self, status: int, why: str) -> None:
        self.status_code = status
        super().__init__(text=f"{why}\n")
