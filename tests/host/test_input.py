"""Numbered input: whatever connections break, the command reads every byte once and in order."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrt.host.stdin import InputGapError, StdinPipe
from sandboxrt.protocol.exec import CloseStdin, Execute, Exit, Input, InputAck, Kill, Output, Reconnect, Started
from sandboxrt.testing.conformance import converse

from .conftest import OpenFake

TEXT = "".join(f"line {number}: äöü €𝄞\n" for number in range(4000))


class Sink(trio.abc.SendStream):
    def __init__(self) -> None:
        self.data = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.data += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300).map(lambda text: text * 200),
    st.lists(st.tuples(st.integers(1, 60_000), st.integers(0, 120_000), st.integers(0, 40)), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_what_is_sent_again_arrives_once(text: str, attempts: list[tuple[int, int, int]]) -> None:
    """Each attempt sends pieces from somewhere at or before the acknowledged offset, and breaks off after a while."""
    data = text.encode()

    def piece(start: int, size: int) -> tuple[int, str]:
        while start and start < len(data) and data[start] & 0xC0 == 0x80:
            start -= 1
        end = start + size
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end += 1
        return start, data[start:end].decode()

    async def main() -> bytes:
        pipe = StdinPipe()
        sink = Sink()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipe.pump, sink)
            for size, back, turns in attempts:
                offset, part = piece(max(0, pipe.taken("me") - back), size)
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as attempt:
                        attempt.start_soon(pipe.write, part, "me", offset)
                        for _ in range(turns):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()
            offset, part = piece(pipe.taken("me"), len(data))
            await pipe.write(part, "me", offset)
            await pipe.end()
        return sink.data

    assert trio.run(main) == data


async def test_a_gap_in_numbered_input_is_an_error() -> None:
    pipe = StdinPipe()
    await pipe.write("abc", "me", 0)
    with pytest.raises(InputGapError) as caught:
        await pipe.write("x", "me", 4)
    assert caught.value.expected == 3
    await pipe.write("x", "other", 0)
    assert (pipe.taken("me"), pipe.taken("other"), pipe.taken("nobody")) == (3, 1, 0)


async def test_the_two_halves_of_a_long_write_are_not_parted() -> None:
    pipe, sink = StdinPipe(), Sink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.write, "a" * 1_000_000)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(pipe.write, "b" * 1000)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(pipe.end)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(pipe.pump, sink)
    assert sink.data == b"a" * 1_000_000 + b"b" * 1000


async def test_only_the_most_recent_names_are_remembered() -> None:
    pipe, sink = StdinPipe(), Sink()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.pump, sink)
        for number in range(300):
            await pipe.write("x", str(number), 0)
        await pipe.end()
    assert (pipe.taken("0"), pipe.taken("299")) == (0, 1)


async def test_input_is_acknowledged_and_survives_a_reconnect(fake_host: OpenFake) -> None:
    data = TEXT.encode()
    async with fake_host() as (host, _):
        link = await host.attach("box", Execute(command="cat; echo end", command_id="c", input_id="me"))
        assert (await link.receive()).input_offset == 0
        await link.send(Input(data[:50_000].decode(errors="ignore"), 0))
        while not isinstance(frame := await link.receive(), InputAck):
            assert isinstance(frame, Output)
        assert frame.offset > 0
        await link.aclose()

        link = await host.attach("box", Reconnect("c", input_id="me"))
        started = await link.receive()
        assert isinstance(started, Started)
        assert started.input_offset is not None
        assert 49_990 < started.input_offset <= 50_000
        received = ""
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _send() -> None:
                await link.send(Input(TEXT, 0))
                await link.send(CloseStdin())

            acknowledged = 0
            while not isinstance(frame := await link.receive(), Exit):
                if isinstance(frame, InputAck):
                    assert frame.offset > acknowledged
                    acknowledged = frame.offset
                elif isinstance(frame, Output):
                    received += frame.data
        assert received == TEXT + "end\n"
        await link.aclose()


async def test_a_client_that_does_not_number_sees_no_acknowledgement(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _):
        async with converse(host, "box", Execute(command="cat")) as talk:
            await talk.link.send(Input("hello"))
            await talk.link.send(CloseStdin())
            outcome = await talk.to_end()
        assert outcome.stdout == "hello"
        assert not any(isinstance(frame, InputAck) for frame in outcome.frames)
        assert outcome.frames[0].input_offset is None


async def test_input_that_nobody_reads_any_more_is_acknowledged(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _):
        link = await host.attach("box", Execute(command="sleep 1000", input_id="me", close_stdin=True))
        await link.receive()
        with trio.fail_after(5):
            await link.send(Input("x" * 1_000_000, 0))
            while (await link.receive()) != InputAck(1_000_000):
                pass
            await link.send(Kill())
            assert await link.receive() == Exit(137)
        await link.aclose()
