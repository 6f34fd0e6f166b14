"""Virtual time over real connections passes only when nothing is under way."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from sandboxrt.testing.loopback import jumping, under_way


@pytest.fixture
def clock() -> trio.testing.MockClock:
    return trio.testing.MockClock(rate=0)


@pytest.fixture
async def listener() -> AsyncIterator[trio.SocketListener]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield listener


def port_of(listener: trio.SocketListener) -> int:
    port: int = listener.socket.getsockname()[1]
    return port


async def test_hours_pass_at_once(clock: trio.testing.MockClock, listener: trio.SocketListener) -> None:
    async with jumping(clock, port_of(listener)):
        before = time.monotonic()
        await trio.sleep(7200)
        assert time.monotonic() - before < 60
        assert trio.current_time() == 7200


async def test_no_time_passes_while_a_thread_works(
    clock: trio.testing.MockClock, listener: trio.SocketListener
) -> None:
    async with jumping(clock, port_of(listener)):
        with trio.move_on_after(10) as scope:
            await trio.to_thread.run_sync(time.sleep, 0.2)
        assert (scope.cancelled_caught, trio.current_time()) == (False, 0)


async def test_time_passes_for_whoever_reads_nothing(
    clock: trio.testing.MockClock, listener: trio.SocketListener
) -> None:
    async with jumping(clock, port_of(listener)):
        stream = await trio.open_tcp_stream("127.0.0.1", port_of(listener))
        accepted = await listener.accept()
        async with stream, accepted:
            with trio.move_on_after(3600) as scope:
                await stream.send_all(bytes(64 * 1024**2))
            assert (scope.cancelled_caught, trio.current_time()) == (True, 3600)


async def test_what_is_under_way(clock: trio.testing.MockClock, listener: trio.SocketListener) -> None:
    port = port_of(listener)
    assert not under_way(port)
    with socket.socket() as full, socket.socket() as knocking:
        # The backlog of the first takes one connection only, so the second one's handshake goes unanswered.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        busy = full.getsockname()[1]
        with socket.create_connection(("127.0.0.1", busy)):
            assert not under_way(busy)
            knocking.setblocking(False)
            with pytest.raises(BlockingIOError):
                knocking.connect(("127.0.0.1", busy))
            assert under_way(busy)
            assert not under_way(port)


async def test_an_ended_connection_is_not_under_way(
    clock: trio.testing.MockClock, listener: trio.SocketListener
) -> None:
    async with jumping(clock, port_of(listener)):
        for linger in (None, struct.pack("ii", 1, 0)):
            stream = await trio.open_tcp_stream("127.0.0.1", port_of(listener))
            accepted = await listener.accept()
            if linger is not None:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await accepted.aclose()
            await trio.sleep(100)  # passes although this side keeps its end open
            await stream.aclose()
        assert trio.current_time() == 200
