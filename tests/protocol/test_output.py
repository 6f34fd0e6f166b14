"""The sanitiser and the replay buffer against plain models."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrt.protocol.output import (
    MAX_READ_BYTES,
    InvalidOffsetError,
    LostOutputError,
    ReplayBuffer,
    SpillRead,
    Utf8Sanitiser,
)

raw_bytes = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.lists(
        st.sampled_from(
            [b"a", b"\xe2", b"\x82", b"\xac", b"\xf0", b"\x9f", b"\x98", b"\x80", b"\xed\xa0", b"\xc0", b"\xff"]
        )
    ).map(b"".join),
)


def sanitise(pieces: list[bytes]) -> bytes:
    sanitiser = Utf8Sanitiser()
    return b"".join([sanitiser.feed(piece) for piece in pieces] + [sanitiser.finish()])


@given(raw_bytes, st.lists(st.integers(0, 200), max_size=30))
def test_any_cutting_gives_what_decoding_the_whole_gives(raw: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[a:b] for a, b in pairwise(edges)]
    assert sanitise(pieces) == raw.decode(errors="replace").encode()


@given(raw_bytes)
def test_every_piece_that_comes_out_is_valid_on_its_own(raw: bytes) -> None:
    sanitiser = Utf8Sanitiser()
    for index in range(len(raw)):
        sanitiser.feed(raw[index : index + 1]).decode()
    sanitiser.finish().decode()


def test_ascii_passes_uncopied() -> None:
    data = b"x" * 100_000
    assert Utf8Sanitiser().feed(data) is data


class File:
    """A spill file that lives in a bytearray, and fails from the n-th write on."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.data = bytearray()
        self.writes = 0
        self.fail_after = fail_after

    def settle(self, buffer: ReplayBuffer) -> None:
        while (plan := buffer.plan_spill()) is not None:
            self.writes += 1
            if self.fail_after is not None and self.writes > self.fail_after:
                buffer.spill_failed()
                continue
            for position, piece in plan.pieces:
                self.data[len(self.data) : position] = bytes(max(0, position - len(self.data)))
                self.data[position : position + len(piece)] = piece
            buffer.spill_done(plan)

    def read(self, buffer: ReplayBuffer, offset: int, max_bytes: int = MAX_READ_BYTES) -> bytes:
        answer = buffer.read(offset, max_bytes)
        if isinstance(answer, SpillRead):
            return buffer.accept(answer, b"".join(bytes(self.data[p : p + n]) for p, n in answer.pieces))
        return answer


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    unit = draw(st.sampled_from(["a", "é", "€", "😀", "a€", "x😀é"]))
    sizes = draw(st.lists(st.one_of(st.integers(0, 300), st.integers(20_000, 90_000)), max_size=25))
    return [(unit * (size // len(unit.encode()) + 1)).encode() for size in sizes]


@settings(max_examples=60, deadline=None)
@given(
    histories(),
    st.sampled_from([0, 1000, 70_000, 200_000]),
    st.sampled_from([0, 100_000, 300_000, 10**7]),
    st.one_of(st.none(), st.integers(0, 6)),
    st.integers(4, 100_000),
)
def test_buffer_gives_back_what_it_kept_and_says_what_it_lost(
    history: list[bytes], memory: int, spill: int, fail_after: int | None, max_bytes: int
) -> None:
    buffer = ReplayBuffer(memory, spill)
    file = File(fail_after)
    whole = b""
    for piece in history:
        buffer.append(piece)
        whole += piece
        file.settle(buffer)
        assert buffer.memory_used_bytes <= memory + 64 * 1024
    assert buffer.end == len(whole)
    if not spill and whole:
        assert buffer.first == buffer.memory_start
    if buffer.first:
        with pytest.raises(LostOutputError) as lost:
            buffer.read(0)
        assert lost.value.first_offset == buffer.first
    offset = buffer.first
    while offset < buffer.end:
        piece = file.read(buffer, offset, max_bytes)
        assert piece
        assert len(piece) <= max_bytes
        piece.decode()
        assert piece == whole[offset : offset + len(piece)]
        offset += len(piece)
    assert buffer.read(offset) == b""


def test_a_read_never_crosses_from_file_to_memory_but_the_next_one_goes_on() -> None:
    buffer, file = ReplayBuffer(100_000, 10**7), File()
    whole = b""
    for letter in b"abcdef":
        piece = bytes([letter]) * 60_000
        buffer.append(piece)
        whole += piece
        file.settle(buffer)
    assert 0 < buffer.memory_start < buffer.end
    edge = buffer.memory_start
    before = file.read(buffer, edge - 10)
    assert before == whole[edge - 10 : edge]
    assert file.read(buffer, edge, 10) == whole[edge : edge + 10]


def test_small_appends_are_joined() -> None:
    buffer = ReplayBuffer()
    for _ in range(5000):
        buffer.append(b"0123456789")
    first = buffer.read(0)
    assert isinstance(first, bytes)
    assert len(first) == 50_000


def test_offsets_outside_of_the_output_are_refused() -> None:
    buffer = ReplayBuffer()
    buffer.append("a€b".encode())
    for offset in (-1, 6, 2, 3):
        with pytest.raises(InvalidOffsetError):
            buffer.read(offset)
    assert buffer.read(1) == "€b".encode()
    assert buffer.read(5) == b""


def test_overwritten_while_reading_is_a_gap_not_garbage() -> None:
    buffer, file = ReplayBuffer(0, 300_000), File()
    for _ in range(3):
        buffer.append(b"a" * 90_000)
    file.settle(buffer)
    asked = buffer.read(0)
    assert isinstance(asked, SpillRead)
    for _ in range(3):
        buffer.append(b"b" * 90_000)
    file.settle(buffer)
    with pytest.raises(LostOutputError):
        buffer.accept(asked, b"a" * MAX_READ_BYTES)


def test_a_short_read_of_the_file_is_a_loss() -> None:
    buffer, file = ReplayBuffer(0, 300_000), File()
    buffer.append(b"a" * 90_000)
    file.settle(buffer)
    asked = buffer.read(0)
    assert isinstance(asked, SpillRead)
    with pytest.raises(LostOutputError):
        buffer.accept(asked, b"a")
    buffer.append(b"b" * 90_000)
    file.settle(buffer)
    assert buffer.first == buffer.end


def test_clear_keeps_only_the_end() -> None:
    buffer = ReplayBuffer()
    buffer.append(b"abc")
    buffer.clear()
    assert (buffer.first, buffer.end, buffer.memory_used_bytes) == (3, 3, 0)
    with pytest.raises(LostOutputError):
        buffer.read(0)
