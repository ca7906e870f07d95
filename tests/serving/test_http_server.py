"""The HTTP server against clients who send nothing, slowly, broken or too much; without any node."""

import asyncio
import gc
import gzip
import io
import logging
import math
import resource
import time
import tracemalloc
from contextlib import AsyncExitStack, suppress

import pytest
import torch
from aiohttp import ClientSession
from helpers import fails
from PIL import Image

from layershuffle import UserError
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.commands.serve import serve_command
from layershuffle.orders import Order
from layershuffle.results import ModelInfo
from layershuffle.serving.connections import SPARE_FILES, Connections, Limits
from layershuffle.serving.http_server import MAX_BYTES, HttpServer, listening
from layershuffle.serving.log_limit import LogLimit
from layershuffle.serving.picture_decoder import LARGE_PIXELS, MOST_PIXELS, MOST_SLOW_PIXELS
from layershuffle.serving.policy import Policy
from layershuffle.serving.ray_connection import connect
from layershuffle.serving.result import Result

HEADERS = {"Authorization": "Bearer secret"}
QUICK = Limits(connections=20, header_seconds=0.4, body_seconds=0.4)
"""With these a client that is slow is soon refused."""
PATIENT = Limits(connections=20)
"""With these a client that is slow is refused only to make room for others."""
HALF = b"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 1000\r\n\r\nhalf"
"""A request that never comes whole."""


class Answering:
    """In place of a cluster: answers at once."""

    window = 1
    policy = Policy(request_deadline=0.5)

    async def submit(self, images, arrived=None):
        return result_of(torch.zeros(1, 5), Order([0]))


class Deciding(Answering):
    """Runs in another order each time, and is sure of another class."""

    window = 3

    def __init__(self):
        self.times = 0

    async def submit(self, images, arrived=None):
        logits = torch.zeros(1, 5)
        logits[0, self.times] = 50
        self.times += 1
        return result_of(logits, Order([self.times]))


class Failing(Deciding):
    """One of the runs fails, while the others take for ever."""

    ended = 0

    async def submit(self, images, arrived=None):
        self.times += 1
        if self.times == 2:
            raise UserError("a layer is gone")
        try:
            await asyncio.Event().wait()
        finally:
            self.ended += 1


def result_of(logits, order):
    """What a cluster returns that has run this order."""
    return Result(logits=logits, order=order, missed=(), seconds=0.1, bytes=0)


def picture(size=(20, 20), kind="PNG"):
    """The bytes of a black picture in this format."""
    content = io.BytesIO()
    Image.new("L", size).save(content, kind)
    return content.getvalue()


@pytest.fixture
def serving(small):
    """Runs a coroutine function ``talk(server, where, client)`` while an HTTP server listens.

    ``where`` is its host and port, and ``client`` knows the token.
    """

    def run(talk, limits=QUICK, most_waiting=2, cluster=None):
        async def serve():
            model = small()
            loaded = LoadedModel(model, ModelInfo(name="small", source="test", config=model.config))
            server = HttpServer(cluster or Answering(), loaded, "secret", most_waiting=most_waiting, limits=limits)
            async with AsyncExitStack() as stack:
                address = await stack.enter_async_context(listening(server.application(), "127.0.0.1", 0))
                client = await stack.enter_async_context(ClientSession(address, headers=HEADERS))
                _, _, port = address.rpartition(":")
                return await talk(server, ("127.0.0.1", int(port)), client)

        return asyncio.run(serve())

    return run


async def status(client, data=None, **more):
    """Send a body, by default a picture, and return the status. What isn't answered gets a single line."""
    if data is None:
        data = picture()
    async with client.post("/predict", data=data, **more) as answer:
        text = await answer.text()
        lines = 0 if answer.status == 200 else 1
        assert text.count("\n") == lines, text
        return answer.status


async def opened(where, content=b""):
    """Open a connection and send something. Returns its reader and its writer."""
    reader, writer = await asyncio.open_connection(*where)
    writer.write(content)
    return reader, writer


def test_silent_connections_keep_nobody_out(serving):
    """Three times as many as may be open."""

    async def talk(server, where, client):
        connections = [await opened(where) for _ in range(3 * QUICK.connections)]
        begun = time.monotonic()
        assert await status(client) == 200
        assert time.monotonic() - begun < 5
        assert len(server.connections) <= QUICK.connections

        # Those that are left are closed when the time for headers is over.
        async with asyncio.timeout(5):
            for reader, _ in connections:
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""

    serving(talk)


def test_several_runs_of_a_picture_have_a_mean_and_disagree(serving):
    async def talk(server, where, client):
        async with client.post("/predict?runs=2", data=picture()) as answer:
            content = await answer.json()
        first, second, *_ = content["classes"]
        assert {first["class"], second["class"]} == {"0", "1"}
        assert first["probability"] == second["probability"] == pytest.approx(0.5)
        assert first["share_of_runs"] == second["share_of_runs"] == 0.5
        # Each run is sure of a class, so that all uncertainty of the mean, one of two, is disagreement.
        assert content["disagreement"] == pytest.approx(math.log(2), abs=1e-6)
        assert [run["order"] for run in content["runs"]] == ["1", "2"]

        # One run has no disagreement to tell of.
        async with client.post("/predict", data=picture()) as answer:
            content = await answer.json()
        assert content.keys() == {"classes", "order", "missed", "seconds"}
        assert server.accepted == 0

    serving(talk, cluster=Deciding())


@pytest.mark.parametrize("runs", ["0", "-1", "6", "two", "\u0662", "", "9" * 5000])
def test_a_number_of_runs_that_can_not_be(serving, runs):
    async def talk(server, where, client):
        async with client.post("/predict", params={"runs": runs}, data=picture()) as answer:
            assert answer.status == 400
            # At most 5, because three run and two may wait.
            assert await answer.text() == "runs is a number from 1 to 5: how many times the picture runs\n"

    serving(talk, cluster=Deciding())


def test_each_run_counts_as_a_request_and_one_that_fails_ends_the_others(serving):
    async def talk(server, where, client):
        # Of five requests that may run and wait, as if so many did already: three more are too many, and just fit.
        server.accepted = 3
        async with client.post("/predict?runs=3", data=picture()) as answer:
            assert answer.status == 429

        server.accepted = 2
        async with client.post("/predict?runs=3", data=picture()) as answer:
            assert answer.status == 503
            assert await answer.text() == "a layer is gone\n"
        assert server.cluster.ended == 2
        assert server.accepted == 2

    serving(talk, cluster=Failing())


def test_headers_that_come_slowly_end_their_connection(serving):
    async def talk(server, where, client):
        _, writer = await opened(where, b"GET / HTTP/1.1\r\n")
        async with asyncio.timeout(5):
            # The loop ends with this error, once the server has closed the connection.
            with suppress(ConnectionError):
                while True:
                    writer.write(b"X-More: 1\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.05)

    serving(talk)


def test_the_limit_on_open_files_limits_connections(monkeypatch):
    """Of 150 files that may be open, 60 are."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (150, 150))
    monkeypatch.setattr("os.listdir", lambda _: ["file"] * 60)
    assert Connections(Limits(connections=256))._most() == 150 - 60 - SPARE_FILES


def test_stalled_uploads_block_nobody(serving):
    """They know the token, and are refused when their time is over."""

    async def talk(server, where, client):
        connections = [await opened(where, HALF) for _ in range(15)]
        await asyncio.sleep(0.1)
        assert await status(client) == 200
        async with asyncio.timeout(5):
            for reader, _ in connections:
                assert b" 408 " in await reader.readline()

    serving(talk)


def test_clients_who_have_gone_make_room_for_those_who_come(serving):
    """Many requests at once, each on a connection of its own, are all answered, though few can be open."""

    async def talk(server, where, client):
        uploads = [await opened(where, HALF) for _ in range(PATIENT.connections)]
        async with asyncio.timeout(5):
            while len(server.connections) < PATIENT.connections:
                await asyncio.sleep(0.01)
        for _, writer in uploads:
            writer.close()

        statuses = await asyncio.gather(*[status(client) for _ in range(3 * PATIENT.connections)])
        assert set(statuses) == {200}

    serving(talk, PATIENT, most_waiting=100)


def test_an_upload_that_makes_room_for_others_is_told(serving):
    async def talk(server, where, client):
        uploads = [await opened(where, HALF) for _ in range(PATIENT.connections)]
        statuses = await asyncio.gather(*[status(client) for _ in range(5)])
        assert set(statuses) == {200}
        # Those that have been open longest have made room.
        for reader, _ in uploads[:5]:
            assert b" 408 " in await reader.readline()

    serving(talk, PATIENT, most_waiting=10)


def test_a_header_that_is_not_utf8(serving):
    async def talk(server, where, client):
        request = b"GET /state HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n"
        reader, _ = await opened(where, request)
        assert b" 401 " in await reader.readline()

    serving(talk)


def test_bodies_that_cannot_be_read(serving):
    async def talk(server, where, client):
        as_gzip = {"Content-Encoding": "gzip"}
        compressed = gzip.compress(picture())
        assert await status(client, compressed, headers=as_gzip) == 200
        assert await status(client, b"no gzip at all", headers=as_gzip) == 400
        # Its end is broken.
        assert await status(client, compressed[:-20] + b"x" * 20, headers=as_gzip) == 400

        assert await status(client, b"") == 400
        assert MOST_PIXELS < 5100 * 5000
        assert await status(client, picture((5100, 5000))) == 400

        # A client that says that it will send too much is refused at once.
        promised = 10**15
        assert promised > MAX_BYTES
        request = (
            f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: {promised}\r\n\r\n"
        )
        reader, _ = await opened(where, request.encode())
        assert b" 413 " in await reader.readline()

    # On a busy machine the client's next request may come later than QUICK lets a connection be idle.
    serving(talk, Limits())


def test_formats_that_stop_every_thread_have_fewer_pixels(serving):
    async def talk(server, where, client):
        assert 700 * 700 < MOST_SLOW_PIXELS < 800 * 800
        assert await status(client, picture((700, 700), "JPEG2000")) == 200
        assert await status(client, picture((800, 800), "JPEG2000")) == 400
        assert await status(client, picture((800, 800), "PNG")) == 200

    serving(talk, Limits())


def test_a_refused_body_takes_no_memory(serving):
    """Even before Python next looks for cycles, such as those of errors and what raised them."""

    async def twice_too_large():
        """In pieces, so that the server can't know from the beginning how much it will be."""
        for _ in range(2 * MAX_BYTES // 65536):
            yield bytes(65536)

    async def talk(server, where, client):
        assert await status(client, twice_too_large()) == 413
        memory_before, _ = tracemalloc.get_traced_memory()
        for _ in range(3):
            assert await status(client, twice_too_large()) == 413
        memory_after, _ = tracemalloc.get_traced_memory()
        assert memory_after - memory_before < MAX_BYTES

    gc.disable()
    tracemalloc.start()
    try:
        serving(talk, Limits())
    finally:
        tracemalloc.stop()
        gc.enable()


def test_decoding_counts_for_the_deadline_and_holds_up_no_other_picture(serving):
    async def talk(server, where, client):
        decode = server.decoder._decode

        def slow_if_large(content):
            # The first bytes of a TIFF, the format of the large pictures below.
            if content.startswith(b"II*"):
                time.sleep(0.3)
            return decode(content)

        server.decoder._decode = slow_if_large
        assert LARGE_PIXELS < 2100 * 2100
        large = picture((2100, 2100), "TIFF")

        begun = time.monotonic()
        waiting = [asyncio.create_task(status(client, large)) for _ in range(6)]
        await asyncio.sleep(0.1)
        assert await status(client) == 200
        assert time.monotonic() - begun < 0.5

        # Large pictures are decoded one at a time, of which two at most begin before their deadline of 0.5 s.
        statuses = await asyncio.gather(*waiting)
        assert time.monotonic() - begun < 1.5
        assert statuses.count(503) >= 4
        assert server.accepted == 0

    serving(talk, Limits(), most_waiting=10)


@pytest.mark.parametrize("port", ["70000", "65536"])
def test_a_port_that_cannot_be(capsys, port):
    """It is refused before anything is loaded."""
    assert port in fails(capsys, serve_command, "none.ckpt", "--port", port)


def test_hosts_that_cannot_be(serving, small):
    server = HttpServer(Answering(), LoadedModel(small(), None), "secret")

    async def listen(host):
        async with listening(server.application(), host, 0) as address:
            return address

    # No host, an address that is reserved for documentation, so that no machine has it, and a name that is too long.
    for host in ("", "192.0.2.1", "x" * 70 + ".example"):
        with pytest.raises(UserError):
            asyncio.run(listen(host))
    assert asyncio.run(listen("::1")).startswith("http://[::1]:")


def test_an_address_of_a_cluster_that_cannot_be(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"there is no Ray cluster at 127\.0\.0\.1:70000"):
        connect("127.0.0.1:70000", 1)


def test_the_log_is_limited(caplog, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    logger = logging.getLogger("test.limited")
    limit = LogLimit(most=2, seconds=60)
    logger.addFilter(limit)
    for number in range(1000):
        logger.error("error %d", number)
    now += 61
    logger.error("later")
    logger.removeFilter(limit)

    first, second, later = (record.getMessage() for record in caplog.records)
    assert first == "error 0"
    assert second == "error 1"
    # So many of the 1000 were left out.
    assert "998" in later


def test_what_a_client_did_wrong_is_logged_on_a_line_without_a_traceback(serving, caplog):
    async def talk(server, where, client):
        reader, _ = await opened(where, b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 400 " in await reader.readline()
        assert await status(client, b"\x1f\x8bnonsense", headers={"Content-Encoding": "gzip"}) == 400

    serving(talk)
    records = [record for record in caplog.records if record.name.startswith("aiohttp")]
    assert records
    for record in records:
        assert not record.exc_info
        assert "\n" not in record.getMessage()
