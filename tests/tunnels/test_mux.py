"""Sessions of streams over wires in memory: each at its own pace, all within bounds; virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sandboxrt.protocol.yamux_frames import Flag, Frame, Kind
from sandboxrt.tunnels.mux import Mux, MuxSettings, MuxStream, WireClosedError


class Line:
    """One end of a wire in memory."""

    def __init__(self, send: trio.MemorySendChannel[bytes], receive: trio.MemoryReceiveChannel[bytes]) -> None:
        self._send = send
        self._receive = receive
        self.longest = 0

    async def send(self, frames: list[bytes]) -> None:
        self.longest = max(self.longest, *map(len, frames))
        try:
            for frame in frames:
                await self._send.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise WireClosedError("the line is cut") from None

    async def receive(self) -> bytes:
        try:
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise WireClosedError("the line is cut") from None

    def takes(self, n_bytes: int) -> bool:
        return False

    def cut(self) -> None:
        self._send.close()
        self._receive.close()


def line() -> tuple[Line, Line]:
    there = trio.open_memory_channel[bytes](4)
    back = trio.open_memory_channel[bytes](4)
    return Line(there[0], back[1]), Line(back[0], there[1])


@asynccontextmanager
async def session(
    serve: Callable[[MuxStream], object], settings: MuxSettings | None = None
) -> AsyncIterator[tuple[Mux, Line]]:
    near, far = line()
    async with trio.open_nursery() as nursery:
        client = Mux("client", near, settings)
        server = Mux("server", far, settings, accept=lambda stream: nursery.start_soon(serve, stream))
        nursery.start_soon(client.run)
        nursery.start_soon(server.run)
        yield client, near
        nursery.cancel_scope.cancel()


async def echo(stream: MuxStream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)
    await stream.send_eof()


async def exchange(mux: Mux, data: bytes) -> None:
    stream = mux.open()
    got = bytearray()
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        while chunk := await stream.receive_some():
            got += chunk
    assert got == data


async def test_many_streams_each_whole(autojump_clock: trio.testing.MockClock) -> None:
    chance = random.Random(1)
    async with session(echo) as (mux, near), trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(exchange, mux, chance.randbytes(chance.randrange(700_000)))
    assert near.longest <= 64 * 1024


async def test_who_does_not_read_holds_up_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    async def lazy(stream: MuxStream) -> None:
        if (await stream.receive_some(1)) == b"l":
            await trio.sleep_forever()
        await echo(stream)

    async with session(lazy) as (mux, _):
        stuck = mux.open()
        with trio.move_on_after(60) as scope:
            await stuck.send_all(b"l" + bytes(10_000_000))
        assert scope.cancelled_caught
        other = mux.open()
        await other.send_all(b"xhello")
        with trio.fail_after(5):
            assert await other.receive_some() == b"hello"


async def test_what_lies_unread_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """Within its windows a peer may still send too much on too many streams; the fullest one has to go."""
    streams: list[MuxStream] = []

    async def keep(stream: MuxStream) -> None:
        streams.append(stream)

    async with session(keep, MuxSettings(unread_bytes=600_000)) as (mux, _):
        for size in (250_000, 100_000, 200_000, 90_000):
            await mux.open().send_all(bytes(size))
        await trio.sleep(1)
        assert sum(stream.unread for stream in streams if not stream._closed) <= 600_000
        assert [stream._closed for stream in streams] == [True, False, False, False]


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_passed_on_stays_in_order(autojump_clock: trio.testing.MockClock, seed: int) -> None:
    """Whether it is taken where it comes, in part, or not at all; and what was taken makes room for more."""
    chance = random.Random(seed)
    data = chance.randbytes(2_000_000)
    whole = trio.Event()

    async def collect(stream: MuxStream) -> None:
        got = bytearray()
        passed = 0

        def take(piece: bytes) -> int:
            nonlocal passed
            size = chance.choice((0, len(piece), chance.randint(0, len(piece))))
            got.extend(piece[:size])
            passed += size
            return size

        while rest := await stream.receive_past(take, chance.choice((4000, 10**6))):
            if chance.random() < 0.2:
                await trio.sleep(0.001)
            got.extend(rest)
        assert got == data
        assert stream.unread == 0
        assert 0 < passed < len(data)
        whole.set()

    with trio.fail_after(3600):
        async with session(collect) as (mux, _):
            stream = mux.open()
            for at in range(0, len(data), 7000):
                await stream.send_all(data[at : at + 7000])
                await trio.sleep(0.001 * chance.randint(0, 3))
            await stream.send_eof()
            await whole.wait()


class Slow(Line):
    """A wire on which everybody may send, and that takes its time."""

    async def send(self, frames: list[bytes]) -> None:
        await trio.sleep(1)
        await super().send(frames)

    def takes(self, n_bytes: int) -> bool:
        return True


async def test_leaving_while_a_task_that_sends_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    there, back = trio.open_memory_channel[bytes](9), trio.open_memory_channel[bytes](9)
    mux = Mux("client", Slow(there[0], back[1]), MuxSettings(ping_s=1000))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux.run)
            await trio.sleep(2)
            stream = mux.open()
            with trio.move_on_after(0.5):
                nursery.start_soon(_leave, mux, 0.2)
                await stream.send_all(b"never mind")
    assert mux.over


async def _leave(mux: Mux, after_s: float) -> None:
    await trio.sleep(after_s)
    mux.leave()


async def test_either_side_may_end_first(autojump_clock: trio.testing.MockClock) -> None:
    async def answer(stream: MuxStream) -> None:
        length = 0
        while data := await stream.receive_some():
            length += len(data)
        await stream.send_all(str(length).encode())
        await stream.send_eof()

    async with session(answer) as (mux, _):
        stream = mux.open()
        await stream.send_all(bytes(1_000_000))
        await stream.send_eof()
        assert await stream.receive_some() == b"1000000"
        assert await stream.receive_some() == b""


async def test_a_peer_that_ended_and_grants_nothing_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """As the official client does once its program is gone: it neither reads on nor says so."""
    near, far = line()
    gone = trio.Event()

    async def talk(stream: MuxStream) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(bytes(10_000_000))
        gone.set()

    async with trio.open_nursery() as nursery:
        server = Mux("server", far, accept=lambda stream: nursery.start_soon(talk, stream))
        nursery.start_soon(server.run)
        await near.send([Frame(Kind.WINDOW_UPDATE, Flag.SYN, 1).encode(), Frame(Kind.DATA, Flag.FIN, 1).encode()])

        async def drain() -> None:
            while True:
                await near.receive()

        nursery.start_soon(drain)
        with trio.fail_after(60):
            await gone.wait()
        nursery.cancel_scope.cancel()


async def test_a_silent_peer_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    near, far = line()
    began = trio.current_time()

    async def drain() -> None:
        while True:
            await near.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain)
        assert "silent for 90 s" in await Mux("server", far).run()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began == pytest.approx(90, abs=1)


async def test_a_cut_line_breaks_every_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with session(echo) as (mux, near):
        streams = [mux.open() for _ in range(3)]
        await streams[0].send_all(b"x")
        near.cut()
        for stream in streams:
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await streams[1].send_all(b"x")
        assert mux.over


async def test_a_peer_that_breaks_a_rule_is_told(autojump_clock: trio.testing.MockClock) -> None:
    near, far = line()
    async with trio.open_nursery() as nursery:
        said: list[bytes] = []

        async def hear() -> None:
            with pytest.raises(WireClosedError):
                while True:
                    said.append(await near.receive())

        nursery.start_soon(hear)
        await near.send([Frame(Kind.DATA, Flag.NONE, 5, data=b"x").encode()])
        assert "never opened" in await Mux("server", far).run()
        far.cut()
    assert said[-1] == Frame(Kind.GO_AWAY, Flag.NONE, 0, 1).encode()
