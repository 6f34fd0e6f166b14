"""What comes out of a relay is cut into frames however it arrives, and believed no further than its form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.engine.init.wire import InitProtocolError
from sandboxrt.engine.runtime_exec.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, Frame, FrameKind, FrameReader

OUT = [kind for kind in FrameKind if kind >= FrameKind.HELLO]
NUMBERS = st.integers(-(2**31), 2**31 - 1)
FRAMES = st.builds(Frame, st.sampled_from(OUT), NUMBERS, NUMBERS, st.binary(max_size=200))


@given(st.lists(FRAMES, max_size=8), st.data())
def test_any_cut_gives_the_same_frames(frames: list[Frame], data: st.DataObject) -> None:
    wire = b"".join(frame.pack() for frame in frames)
    reader, found = FrameReader(), []
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        found += reader.feed(wire[:size])
        wire = wire[size:]
    assert found == frames


@given(st.binary(max_size=400))
def test_garbage_is_an_error_or_well_formed(garbage: bytes) -> None:
    try:
        found = FrameReader().feed(garbage)
    except InitProtocolError:
        return
    assert sum(HEADER_BYTES + len(frame.payload) for frame in found) <= len(garbage)


@pytest.mark.parametrize("kind", [0, 1, FrameKind.DROP, FrameKind.DONE + 1, 2**32 - 1])
def test_only_what_a_relay_can_say(kind: int) -> None:
    with pytest.raises(InitProtocolError, match="impossible frame"):
        FrameReader().feed(kind.to_bytes(4, "little") + bytes(HEADER_BYTES - 4))


def test_a_frame_has_a_limit() -> None:
    reader = FrameReader()
    longest = Frame(FrameKind.OUTPUT, payload=bytes(MAX_PAYLOAD_BYTES)).pack()
    assert len(reader.feed(longest)) == 1
    with pytest.raises(InitProtocolError, match="impossible frame"):
        reader.feed(Frame(FrameKind.OUTPUT, payload=bytes(MAX_PAYLOAD_BYTES + 1)).pack())
