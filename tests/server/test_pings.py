"""Peers of WebSockets that hang, while their kernel goes on to answer for them."""

from __future__ import annotations

import base64

import trio
import trio_websocket

from tests.server.test_guarded import serving


async def _hang(port: int) -> trio.SocketStream:
    """A WebSocket whose peer reads nothing more once it is open."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    key = base64.b64encode(bytes(16)).decode()
    await stream.send_all(
        f"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
    )
    assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 101")
    return stream


async def test_a_peer_that_hangs_is_dropped_and_one_that_is_silent_is_not() -> None:
    async with serving(ping_s=0.1, max_pings=3) as place, trio.open_nursery() as nursery:
        stream = await trio.open_tcp_stream("127.0.0.1", place.port)
        silent = await trio_websocket.wrap_client_stream(nursery, stream, "127.0.0.1", "/echo")
        hanging = await _hang(place.port)
        with trio.fail_after(20):
            while place.app.running < 2:
                await trio.sleep(0.01)
            # Its application hears of it as of any peer that is gone.
            while place.app.running > 1:
                await trio.sleep(0.05)
        await trio.sleep(1)
        await silent.send_message("still here")
        with trio.fail_after(20):
            assert (await silent.get_message()).startswith("still here")
        await hanging.aclose()
        await silent.aclose()
        nursery.cancel_scope.cancel()


async def test_a_pause_of_the_server_is_held_against_nobody() -> None:
    import time

    async with serving(ping_s=0.2, max_pings=2) as place:
        hanging = await _hang(place.port)
        await trio.sleep(0.1)
        time.sleep(1.5)
        await trio.sleep(0.1)
        assert place.app.running == 1
        await hanging.aclose()


async def test_a_socket_that_has_ended_is_waited_for_no_longer() -> None:
    async with serving(ping_s=3600) as place, trio.open_nursery() as nursery:
        stream = await trio.open_tcp_stream("127.0.0.1", place.port)
        socket = await trio_websocket.wrap_client_stream(nursery, stream, "127.0.0.1", "/echo")
        await socket.aclose()
        with trio.fail_after(10):
            while place.app.running:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
