"""Wires that outlive their connections: the wires of both sides joined by connections that lose what they carry."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from sandboxrt.tunnels.mux import Mux, MuxStream, WireClosedError
from sandboxrt.tunnels.resuming import ResumeSettings, ResumingWire

SETTINGS = ResumeSettings(replay_bytes=64 * 1024, acknowledge_bytes=8 * 1024, message_bytes=4 * 1024, patience_s=30)


class Cut:
    """One end of a connection of a few messages' length; when it is cut, whatever is under way is lost."""

    def __init__(
        self,
        send: trio.MemorySendChannel[bytes | str],
        receive: trio.MemoryReceiveChannel[bytes | str],
        left: list[int],
    ) -> None:
        self._send = send
        self._receive = receive
        self._left = left

    async def send(self, message: bytes | str) -> None:
        self._left[0] -= 1
        try:
            if self._left[0] < 0:
                raise trio.BrokenResourceError
            await self._send.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise WireClosedError("cut") from None

    async def receive(self) -> bytes | str:
        try:
            if self._left[0] < 0:
                raise trio.ClosedResourceError
            return await self._receive.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise WireClosedError("cut") from None

    def close(self) -> None:
        self._send.close()
        self._receive.close()


def connection(messages: int) -> tuple[Cut, Cut]:
    """Both ends of a connection that is cut behind so many messages, counted both ways."""
    there = trio.open_memory_channel[bytes | str](4)
    back = trio.open_memory_channel[bytes | str](4)
    left = [messages]
    return Cut(there[0], back[1], left), Cut(back[0], there[1], left)


@asynccontextmanager
async def joined(seed: int, messages: tuple[int, int]) -> AsyncIterator[tuple[ResumingWire, ResumingWire, list[int]]]:
    """Two wires, joined by one connection after another."""
    chance = random.Random(seed)
    client, server = ResumingWire(SETTINGS), ResumingWire(SETTINGS)
    made: list[int] = []

    async def connect() -> None:
        while not client.over:
            ends = connection(chance.randint(*messages))
            made.append(1)
            async with trio.open_nursery() as both, server.turn() as server_has, client.turn() as client_has:

                async def serve(end: Cut, has: int) -> None:
                    await server.carry(end, has)
                    end.close()

                both.start_soon(serve, ends[1], client_has)
                await client.carry(ends[0], server_has)
                ends[0].close()
            await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        yield client, server, made
        client.end("done")
        server.end("done")
        nursery.cancel_scope.cancel()


async def _echo(stream: MuxStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while chunk := await stream.receive_some():
            await stream.send_all(chunk)
        await stream.send_eof()


@pytest.mark.parametrize("seed", range(8))
async def test_every_byte_arrives_once_and_in_order(autojump_clock: trio.testing.MockClock, seed: int) -> None:
    there = random.Random(seed).randbytes(300_000)
    back = random.Random(-seed - 1).randbytes(300_000)

    async def write(wire: ResumingWire, data: bytes) -> None:
        for at in range(0, len(data), 1000):
            await wire.send([data[at : at + 1000]])

    async def read(wire: ResumingWire, expected: bytes, whole: trio.Event) -> None:
        """Read on for as long as there is a wire, as sessions do: acknowledgements come the same way."""
        got = b""
        while True:
            got += await wire.receive()
            assert expected.startswith(got)
            if len(got) == len(expected):
                whole.set()

    with trio.fail_after(3600):
        async with joined(seed, (1, 40)) as (client, server, made), trio.open_nursery() as readers:
            arrived = trio.Event(), trio.Event()
            readers.start_soon(read, server, there, arrived[0])
            readers.start_soon(read, client, back, arrived[1])
            async with trio.open_nursery() as writers:
                writers.start_soon(write, client, there)
                writers.start_soon(write, server, back)
            for event in arrived:
                await event.wait()
            readers.cancel_scope.cancel()
        assert len(made) > 5


async def test_a_session_and_its_streams_notice_nothing(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(1).randbytes(400_000)

    async def echo(stream: MuxStream) -> None:
        while chunk := await stream.receive_some():
            await stream.send_all(chunk)
        await stream.send_eof()

    async def speak(mux: Mux) -> None:
        stream = mux.open()
        got = b""
        async with trio.open_nursery() as nursery:

            async def say() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(say)
            while chunk := await stream.receive_some():
                got += chunk
        assert got == data

    with trio.fail_after(3600):
        async with joined(7, (3, 12)) as (client, server, made), trio.open_nursery() as nursery:
            near = Mux("client", client)
            far = Mux("server", server, accept=lambda stream: nursery.start_soon(echo, stream))
            nursery.start_soon(near.run)
            nursery.start_soon(far.run)
            async with trio.open_nursery() as speakers:
                for _ in range(3):
                    speakers.start_soon(speak, near)
            nursery.cancel_scope.cancel()
    assert len(made) > 5


async def test_who_is_cancelled_while_it_sends_takes_nothing_from_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Small pieces are sent by the tasks that have them, which may end at any moment."""
    chance = random.Random(3)
    data = chance.randbytes(20_000)

    async def fickle(mux: Mux) -> None:
        while True:
            stream = mux.open()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(chance.randint(1, 9000)))
                for _ in range(chance.randint(0, 12)):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            stream.reset()
            await trio.sleep(0.1)

    async def steady(mux: Mux) -> None:
        stream = mux.open()
        for at in range(0, len(data), 100):
            piece = data[at : at + 100]
            await stream.send_all(piece)
            got = b""
            while len(got) < len(piece):
                more = await stream.receive_some()
                assert more
                got += more
            assert got == piece

    with trio.fail_after(3600):
        async with joined(5, (50, 300)) as (client, server, made), trio.open_nursery() as nursery:
            near = Mux("client", client)
            far = Mux("server", server, accept=lambda stream: nursery.start_soon(_echo, stream))
            nursery.start_soon(near.run)
            nursery.start_soon(far.run)
            for _ in range(3):
                nursery.start_soon(fickle, near)
            async with trio.open_nursery() as speakers:
                for _ in range(3):
                    speakers.start_soon(steady, near)
            nursery.cancel_scope.cancel()
    assert len(made) > 5


async def test_a_sender_waits_for_acknowledgements(autojump_clock: trio.testing.MockClock) -> None:
    wire = ResumingWire(SETTINGS)
    sent = 0
    with trio.move_on_after(10):
        while True:
            await wire.send([b"x" * 1024])
            sent += 1024
    assert sent == SETTINGS.replay_bytes


async def test_without_a_connection_it_ends_in_time(autojump_clock: trio.testing.MockClock) -> None:
    wire = ResumingWire(SETTINGS)
    began = trio.current_time()
    await wire.expire()
    assert trio.current_time() - began == pytest.approx(30)
    with pytest.raises(WireClosedError, match="no connection for 30 s"):
        await wire.receive()
    with pytest.raises(WireClosedError, match="no connection for 30 s"):
        await wire.send([b"x"])
    with pytest.raises(WireClosedError, match="no connection for 30 s"):
        async with wire.turn():
            raise AssertionError("an ended wire took a connection")


async def _read_on(wire: ResumingWire) -> None:
    with suppress(WireClosedError):
        while True:
            await wire.receive()


async def test_a_newer_connection_takes_the_turn(autojump_clock: trio.testing.MockClock) -> None:
    wire = ResumingWire(SETTINGS)
    first, second = connection(100), connection(100)
    order: list[str] = []

    async def older() -> None:
        async with wire.turn():
            await wire.carry(first[0], 0)
            order.append("carried on")
        order.append("older is over")
        first[0].close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(older)
        nursery.start_soon(_read_on, wire)
        await first[1].send(b"some")
        await trio.sleep(1)
        async with wire.turn() as received:
            order.append(f"newer has {received}")
        wire.end("done")
    assert order == ["older is over", "newer has 4"]
    second[0].close()


@pytest.mark.parametrize(
    ("message", "why"), [('{"received":9}', "has 9 bytes, and was sent 3"), ("hello", "acknowledges nothing")]
)
async def test_a_peer_that_does_not_fit_ends_it(autojump_clock: trio.testing.MockClock, message: str, why: str) -> None:
    wire = ResumingWire(SETTINGS)
    near, far = connection(100)
    async with trio.open_nursery() as nursery, wire.turn():
        await wire.send([b"abc"])

        async def peer() -> None:
            assert await far.receive() == b"abc"
            await far.send(message)

        nursery.start_soon(peer)
        nursery.start_soon(_read_on, wire)
        assert why in await wire.carry(near, 0)
    assert wire.over


async def test_a_server_that_lost_the_stream_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    wire = ResumingWire(SETTINGS)
    near, _ = connection(100)
    async with wire.turn():
        assert "has 5 bytes" in await wire.carry(near, 5)
    assert wire.over
