"""The memory that the output of all commands of a host takes together."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrt.host.command import CommandSettings
from sandboxrt.host.replay import ReplayBudget
from sandboxrt.host.spill import SpillFile, SpillQuota
from sandboxrt.host.stream import OutputStream
from sandboxrt.protocol.exec import Reconnect
from sandboxrt.protocol.output import ReplayBuffer
from sandboxrt.testing.conformance import converse, run
from tests.host.conftest import OpenFake

LIMIT = 400_000
PIECE = 50_000


@attrs.define
class Pieces:
    """A pipe that gives pieces of a certain length, one at each turn."""

    sizes: list[int]
    mark: bytes

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.mark * self.sizes.pop(0) if self.sizes else b""


def stream_of(budget: ReplayBudget, folder: Path, quota: SpillQuota) -> OutputStream:
    spill = SpillFile(folder, quota, trio.CapacityLimiter(2))
    return OutputStream(ReplayBuffer(10_000_000, 50_000_000), spill, lambda: None, budget)


async def text_of(stream: OutputStream) -> bytes:
    text = bytearray()
    while piece := await stream.read(len(text)):
        text += piece
    return bytes(text)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, PIECE), min_size=1, max_size=40), min_size=1, max_size=6),
)
def test_the_sum_is_bounded_and_every_byte_is_there(
    tmp_path_factory: pytest.TempPathFactory, outputs: Sequence[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("spill")

    async def main() -> None:
        budget = ReplayBudget(LIMIT)
        streams = [stream_of(budget, folder, SpillQuota(10**9)) for _ in outputs]
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, budget.used_bytes)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as pumps:
                for number, (stream, sizes) in enumerate(zip(streams, outputs, strict=True)):
                    source = Pieces(list(sizes), bytes([65 + number]))
                    pumps.start_soon(stream.pump, source)
            nursery.cancel_scope.cancel()
        # Each stream may be at adding a piece when the sum is found too large.
        assert most <= LIMIT + len(streams) * PIECE
        assert budget.used_bytes <= LIMIT
        assert budget.used_bytes == sum(stream.memory_used_bytes for stream in streams)
        for number, (stream, sizes) in enumerate(zip(streams, outputs, strict=True)):
            assert await text_of(stream) == bytes([65 + number]) * sum(sizes)
            await stream.aclose()

    trio.run(main)


async def test_who_holds_most_gives_way(tmp_path: Path) -> None:
    budget = ReplayBudget(LIMIT)
    quota = SpillQuota(10**9)
    large, small = (stream_of(budget, tmp_path, quota) for _ in range(2))
    await large.pump(Pieces([PIECE] * 8, b"l"))
    assert large.memory_used_bytes == LIMIT
    await small.pump(Pieces([PIECE], b"s"))
    assert small.memory_used_bytes == PIECE
    assert large.memory_used_bytes <= LIMIT // 2 + PIECE
    assert await text_of(large) == b"l" * LIMIT
    for stream in (large, small):
        await stream.aclose()


async def test_a_stream_that_is_gone_takes_nothing(tmp_path: Path) -> None:
    budget = ReplayBudget(LIMIT)
    stream = stream_of(budget, tmp_path, SpillQuota(10**9))
    await stream.pump(Pieces([PIECE], b"x"))
    assert budget.used_bytes == PIECE
    del stream
    gc.collect()
    assert budget.used_bytes == 0


async def test_where_nothing_can_be_moved_output_is_lost_but_not_the_command(tmp_path: Path) -> None:
    budget = ReplayBudget(LIMIT)
    stream = stream_of(budget, tmp_path, SpillQuota(0))
    await stream.pump(Pieces([PIECE] * 20, b"x"))
    assert budget.used_bytes <= LIMIT
    assert (stream.end, stream.ended) == (20 * PIECE, True)
    assert 0 < stream.first < stream.end


async def test_a_host_has_one_budget(fake_host: OpenFake) -> None:
    command = CommandSettings(replay_memory_bytes=10_000_000, replay_spill_bytes=50_000_000)
    async with fake_host(command=command, replay_budget_bytes=1_000_000) as (host, _):
        for number in range(4):
            await run(host, "box", "head -c 900000 /dev/zero; echo end", command_id=f"c{number}")
        assert host._workshop.replay.used_bytes <= 1_000_000
        for number in range(4):
            async with converse(host, "box", Reconnect(f"c{number}")) as reader:
                outcome = await reader.to_end()
            outcome.check_offsets()
            assert outcome.stdout == "\0" * 900_000 + "end\n"
