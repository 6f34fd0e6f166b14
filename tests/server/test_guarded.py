"""The guards of connections, over a small application."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio_websocket
from starlette.types import Receive, Scope, Send

from sandboxrt.server.guarded import ConnectionLimits, serve_connections


@attrs.define
class App:
    """``/flood`` sends for ever, a WebSocket echoes or floods, ``/raise`` raises, ``/deaf`` answers without reading."""

    running: int = 0
    most: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._answer(scope, receive, send)
        finally:
            self.running -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/raise":
            raise RuntimeError("on purpose")
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] != "websocket.disconnect":
                for _ in range(10**6 if path == "/flood" else 20):
                    await send({"type": "websocket.send", "text": message["text"] * 100})
            return
        length = [] if path == "/flood" else [(b"content-length", b"5")]
        await send({"type": "http.response.start", "status": 200, "headers": length})
        while path == "/flood":
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        await send({"type": "http.response.body", "body": b"hello"})


@attrs.frozen
class Place:
    app: App
    port: int
    stopping: trio.Event

    async def ask(self, request: bytes = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n") -> bytes:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        answer = b""
        async with stream:
            await stream.send_all(request)
            with trio.fail_after(10):
                try:
                    async for chunk in stream:
                        answer += chunk
                except trio.BrokenResourceError:
                    pass
        return answer


@asynccontextmanager
async def serving(**limits: float) -> AsyncIterator[Place]:
    """Leaving the block stops the server politely, which has to end in time."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    place = Place(App(), listener.socket.getsockname()[1], trio.Event())
    settings = ConnectionLimits(**{"drain_s": 2.0, "linger_s": 2.0, **limits})  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:

        async def serve() -> None:
            await serve_connections(place.app, [listener], stopping=place.stopping, limits=settings)
            ended.set()

        ended = trio.Event()
        nursery.start_soon(serve)
        try:
            yield place
        finally:
            place.stopping.set()
            with trio.CancelScope(shield=True), trio.move_on_after(settings.drain_s + 5) as scope:
                await ended.wait()
            nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught, "the server did not stop in time"
        assert place.app.running == 0


async def test_a_thousand_sockets_closed_at_once() -> None:
    async with serving(max_connections=1100) as place:
        go = trio.Event()

        async def one(number: int, *, task_status: trio.TaskStatus[None]) -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", place.port)
            async with trio.open_nursery() as nursery:
                ws = await trio_websocket.wrap_client_stream(nursery, stream, "127.0.0.1", "/echo")
                task_status.started()
                await go.wait()
                await ws.send_message(f"message {number}")
                if number % 3 == 0:
                    await ws.aclose()
                nursery.cancel_scope.cancel()
            await trio.aclose_forcefully(stream)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(1000):
                    await nursery.start(one, number)
                assert place.app.running == 1000
                go.set()
        assert (await place.ask()).endswith(b"hello")


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_reader_that_stalls_for_ever_delays_no_stop(websocket: bool) -> None:
    async with serving(send_stall_s=3600, drain_s=1.0) as place:
        stream = await trio.open_tcp_stream("127.0.0.1", place.port)
        if websocket:
            async with trio.open_nursery() as nursery:
                ws = await trio_websocket.wrap_client_stream(nursery, stream, "127.0.0.1", "/flood")
                await ws.send_message("x" * 1000)
                nursery.cancel_scope.cancel()
        else:
            await stream.send_all(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        await trio.sleep(0.5)
        assert place.app.running == 1
        assert (await place.ask()).endswith(b"hello")
        place.stopping.set()
        with trio.fail_after(8):
            while place.app.running:
                await trio.sleep(0.05)
        await trio.aclose_forcefully(stream)


async def test_a_reader_that_stalls_is_dropped() -> None:
    async with serving(send_stall_s=0.3, linger_s=0.2) as place:
        stream = await trio.open_tcp_stream("127.0.0.1", place.port)
        await stream.send_all(b"GET /flood HTTP/1.1\r\nhost: x\r\n\r\n")
        with trio.fail_after(1):
            while not place.app.running:
                await trio.sleep(0.01)
        with trio.fail_after(8):
            while place.app.running:
                await trio.sleep(0.05)
        await trio.aclose_forcefully(stream)


async def test_an_error_stays_on_its_connection() -> None:
    async with serving() as place:
        for _ in range(3):
            assert b"500" in (await place.ask(b"GET /raise HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))[:20]
        assert (await place.ask()).endswith(b"hello")


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 70000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\r\n" * 50,
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\n"
        b"http2-settings: AA\r\n\r\n",
    ],
)
async def test_noise_harms_nobody(noise: bytes) -> None:
    async with serving(header_s=0.5, idle_s=1.0) as place:
        answer = await place.ask(noise)
        assert not answer or answer.startswith(b"HTTP/1.1 ")
        assert b"Traceback" not in answer
        assert (await place.ask()).endswith(b"hello")


async def test_headers_that_never_end() -> None:
    async with serving(header_s=0.4, idle_s=30) as place:
        stream = await trio.open_tcp_stream("127.0.0.1", place.port)
        with trio.fail_after(5):
            try:
                for _ in range(100):
                    await stream.send_all(b"GET / HTTP/1.1\r\n" if not _ else b"x: y\r\n")
                    await trio.sleep(0.05)
                raise AssertionError("the connection was left open")
            except trio.BrokenResourceError:
                pass
        await stream.aclose()


async def test_an_unread_body_blocks_nothing() -> None:
    async with serving(linger_s=0.5) as place:
        head = b"POST /deaf HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n"
        stream = await trio.open_tcp_stream("127.0.0.1", place.port)
        with trio.move_on_after(5):
            try:
                await stream.send_all(head + bytes(50_000_000))
            except trio.BrokenResourceError:
                pass
        await trio.aclose_forcefully(stream)


async def test_one_connection_too_many() -> None:
    async with serving(max_connections=2) as place:
        held = [await trio.open_tcp_stream("127.0.0.1", place.port) for _ in range(2)]
        await trio.sleep(0.1)
        head, _, body = (await place.ask()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in head
        assert json.loads(body)["detail"]["error"] == "ServiceUnavailable"
        for stream in held:
            await trio.aclose_forcefully(stream)
        await trio.sleep(0.1)
        assert (await place.ask()).endswith(b"hello")
