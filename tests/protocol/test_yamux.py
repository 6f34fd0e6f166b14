"""Two sessions joined by a wire that cuts bytes anywhere, against a model of plain byte strings."""

from __future__ import annotations

import contextlib
import struct

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from sandboxrt.protocol.tunnel import HEADER_BYTES, ConnectHeader, TunnelStatus
from sandboxrt.protocol.yamux import (
    INITIAL_WINDOW_BYTES,
    DataReceived,
    GoAwayCode,
    GoneAway,
    PongReceived,
    Session,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowOpened,
    YamuxError,
)
from sandboxrt.protocol.yamux_frames import Flag, Frame, FrameReader, Kind

WINDOW = INITIAL_WINDOW_BYTES * 2
SIZES = st.sampled_from([1, 3, 1000, 70_000, WINDOW, 2 * WINDOW])


@attrs.define
class Half:
    """One direction of one stream as a user sees it: plain bytes, and whether the end was said and seen."""

    sent: bytearray = attrs.field(factory=bytearray)
    got: bytearray = attrs.field(factory=bytearray)
    used: int = 0
    ended: bool = False
    end_seen: bool = False


class TwoSessions(RuleBasedStateMachine):
    """A client and a server, and what their users believe."""

    streams = Bundle("streams")

    def __init__(self) -> None:
        super().__init__()
        self.sides = {
            "client": Session("client", window_bytes=WINDOW, max_streams=8),
            "server": Session("server", window_bytes=WINDOW, max_streams=8),
        }
        self.wire = {"client": bytearray(), "server": bytearray()}
        self.halves: dict[tuple[str, int], Half] = {}
        self.reset: set[int] = set()
        self.known: dict[str, set[int]] = {"client": set(), "server": set()}

    @initialize(target=streams)
    def begin(self) -> object:
        return multiple()

    @rule(target=streams, side=st.sampled_from(["client", "server"]))
    def open_stream(self, side: str) -> tuple[str, int]:
        number = self.sides[side].open_stream()
        assert number % 2 == (1 if side == "client" else 0)
        self.halves["client", number] = Half()
        self.halves["server", number] = Half()
        self.known[side].add(number)
        return side, number

    @rule(stream=streams, side=st.sampled_from(["client", "server"]), size=SIZES)
    def send(self, stream: tuple[str, int], side: str, size: int) -> None:
        number = stream[1]
        half = self.halves[side, number]
        session = self.sides[side]
        if number not in session.streams or half.ended:
            assert session.sendable_bytes(number) == 0
            with pytest.raises(YamuxError):
                session.send(number, b"x")
            return
        before = session.sendable_bytes(number)
        data = (b"%d," % len(half.sent)) * (size // 4 + 1)
        taken = session.send(number, data)
        assert taken == min(len(data), before)
        half.sent += data[:taken]

    @rule(stream=streams, side=st.sampled_from(["client", "server"]))
    def end(self, stream: tuple[str, int], side: str) -> None:
        if stream[1] in self.sides[side].streams:
            self.halves[side, stream[1]].ended = True
        self.sides[side].end(stream[1])

    @rule(stream=consumes(streams), side=st.sampled_from(["client", "server"]))
    def give_up(self, stream: tuple[str, int], side: str) -> None:
        if stream[1] in self.sides[side].streams:
            self.reset.add(stream[1])
        self.sides[side].reset(stream[1])

    @rule(stream=streams, side=st.sampled_from(["client", "server"]), share=st.floats(0, 1))
    def use(self, stream: tuple[str, int], side: str, share: float) -> None:
        other = self.halves["server" if side == "client" else "client", stream[1]]
        fresh = int((len(other.got) - other.used) * share)
        self.sides[side].consume(stream[1], fresh)
        other.used += fresh

    @rule(side=st.sampled_from(["client", "server"]))
    def flush(self, side: str) -> None:
        for frame in self.sides[side].take_frames():
            self.wire[side] += frame

    @rule(side=st.sampled_from(["client", "server"]), n_bytes=st.integers(1, 2 * WINDOW))
    def carry(self, side: str, n_bytes: int) -> None:
        """Deliver some of what ``side`` has sent."""
        data = bytes(self.wire[side][:n_bytes])
        del self.wire[side][:n_bytes]
        self._deliver(side, data)

    def _deliver(self, side: str, data: bytes) -> None:
        other = "server" if side == "client" else "client"
        for event in self.sides[other].receive(data):
            match event:
                case StreamOpened(number):
                    assert number not in self.known[other]
                    self.known[other].add(number)
                case DataReceived(number, content):
                    half = self.halves[side, number]
                    assert not half.end_seen
                    at = len(half.got)
                    half.got += content
                    assert half.sent[at : len(half.got)] == content, "no byte lost, repeated or reordered"
                case StreamEnded(number):
                    half = self.halves[side, number]
                    assert half.ended
                    assert not half.end_seen
                    assert half.got == half.sent, "the end comes after everything"
                    half.end_seen = True
                case StreamReset(number):
                    # By the other's user, or because there were too many.
                    self.reset.add(number)
                case WindowOpened(number):
                    # Unless a later frame of the same bytes reset it.
                    assert self.sides[other].sendable_bytes(number) > 0 or number not in self.sides[other].streams
                case _:
                    raise AssertionError(event)

    @invariant()
    def windows_hold(self) -> None:
        for side, session in self.sides.items():
            for number in session.streams:
                under_way = len(self.halves[side, number].sent) - self.halves[side, number].used
                assert 0 <= session.sendable_bytes(number) <= WINDOW
                assert under_way <= WINDOW, "never more under way than a window"

    def teardown(self) -> None:
        """Everything that was sent arrives once all is carried and used, and every stream ends."""
        for _ in range(50):
            for side in self.sides:
                self.flush(side)
                self.carry(side, 1 << 30)
                for number in list(self.sides[side].streams):
                    self.use(("", number), side, 1.0)
        for (side, number), half in self.halves.items():
            if number not in self.reset:
                assert half.got == half.sent
                assert half.end_seen == half.ended
            self.sides[side].end(number)
        for _ in range(3):
            for side in self.sides:
                self.flush(side)
                data = bytes(self.wire[side])
                self.wire[side].clear()
                for number in {number for _, number in self.halves}:
                    self.halves[side, number].ended = True
                self._deliver(side, data)
        assert self.sides["client"].streams == self.sides["server"].streams == ()


TestTwoSessions = TwoSessions.TestCase
TestTwoSessions.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(st.binary(max_size=40), max_size=30), st.booleans())
def test_arbitrary_bytes_give_events_or_a_protocol_error(pieces: list[bytes], strict_version: bool) -> None:
    session = Session("server")
    with contextlib.suppress(YamuxError):
        for piece in pieces:
            session.receive(b"\0" + piece if strict_version else piece)
    assert all(len(frame) < 2**17 for frame in session.take_frames())


@given(st.data())
def test_frames_are_found_however_the_bytes_are_cut(data: st.DataObject) -> None:
    frames = data.draw(
        st.lists(
            st.one_of(
                st.builds(
                    lambda flags, number, content: Frame(Kind.DATA, Flag(flags), number, len(content), content),
                    st.integers(0, 15),
                    st.integers(0, 2**32 - 1),
                    st.binary(max_size=100),
                ),
                st.builds(
                    lambda kind, flags, number, value: Frame(kind, Flag(flags), number, value),
                    st.sampled_from([Kind.WINDOW_UPDATE, Kind.PING, Kind.GO_AWAY]),
                    st.integers(0, 15),
                    st.integers(0, 2**32 - 1),
                    st.integers(0, 2**32 - 1),
                ),
            ),
            max_size=10,
        )
    )
    wire = b"".join(frame.encode() for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    reader = FrameReader(1000)
    found = [
        frame
        for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)
        for frame in reader.feed(wire[start:end])
    ]
    assert found == frames


def test_the_documented_opening_byte_by_byte() -> None:
    session = Session("server", window_bytes=INITIAL_WINDOW_BYTES)
    assert session.receive(bytes.fromhex("000100010000000100000000")) == [StreamOpened(1)]
    assert session.take_frames() == [bytes.fromhex("000100020000000100000000")]
    (event,) = session.receive(bytes.fromhex("000000000000000100000003" + "010bb8"))
    assert isinstance(event, DataReceived)
    assert ConnectHeader.decode(event.data) == ConnectHeader(3000)
    assert session.send(1, bytes([TunnelStatus.CONNECTED])) == 1
    assert session.take_frames() == [bytes.fromhex("00000000000000010000000100")]
    assert session.receive(bytes.fromhex("000000040000000100000000")) == [StreamEnded(1)]
    session.end(1)
    assert session.streams == ()
    session.take_frames()
    session.receive(bytes.fromhex("000200010000000000000001"))
    assert session.take_frames() == [bytes.fromhex("000200020000000000000001")]
    assert session.receive(bytes.fromhex("000300000000000000000000")) == [GoneAway(0)]


def test_client_opens_as_the_official_one_does() -> None:
    session = Session("client", window_bytes=INITIAL_WINDOW_BYTES)
    assert [session.open_stream(), session.open_stream()] == [1, 3]
    assert session.take_frames()[0] == bytes.fromhex("000100010000000100000000")
    session.ping(7)
    assert session.receive(Frame(Kind.PING, Flag.ACK, 0, 7).encode()) == [PongReceived(7)]


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        (b"\1" + bytes(11), "version 1"),
        (b"\0\7" + bytes(10), "unknown kind 7"),
        (Frame(Kind.DATA, Flag.NONE, 5, data=b"x").encode(), "stream 5 was never opened"),
        (Frame(Kind.DATA, Flag.NONE, 0, data=b"x").encode(), "for no stream"),
        (Frame(Kind.WINDOW_UPDATE, Flag.SYN, 2).encode(), "of this side's kind"),
        (Frame(Kind.WINDOW_UPDATE, Flag.SYN, 1).encode() * 2, "opened twice"),
        (struct.pack("!BBHII", 0, 0, 1, 1, 2**31), "more than any window"),
        (
            Frame(Kind.WINDOW_UPDATE, Flag.SYN, 1).encode()
            + Frame(Kind.DATA, Flag.NONE, 1, data=bytes(WINDOW)).encode() * 2,
            "with a window of 0",
        ),
        (
            Frame(Kind.DATA, Flag.SYN | Flag.FIN, 1).encode() + Frame(Kind.DATA, Flag.NONE, 1, data=b"x").encode(),
            "had ended",
        ),
        (
            Frame(Kind.WINDOW_UPDATE, Flag.SYN, 1).encode() + Frame(Kind.WINDOW_UPDATE, Flag.NONE, 1, 2**31).encode(),
            "a window of more than",
        ),
    ],
)
def test_broken_rules_end_the_session_and_are_named(wire: bytes, says: str) -> None:
    session = Session("server", window_bytes=WINDOW)
    with pytest.raises(YamuxError, match=says):
        session.receive(wire)
    *_, last = session.take_frames()
    assert last == Frame(Kind.GO_AWAY, Flag.NONE, 0, GoAwayCode.PROTOCOL_ERROR).encode()
    assert session.streams == ()
    with pytest.raises(YamuxError, match="over"):
        session.receive(b"")


def test_a_peer_that_asks_for_ever_gets_no_endless_answers() -> None:
    session = Session("server", max_streams=1)
    session.receive(Frame(Kind.PING, Flag.SYN, 0, 1).encode() * 100_000)
    session.receive(b"".join(Frame(Kind.WINDOW_UPDATE, Flag.SYN, n).encode() for n in range(1, 20_001, 2)))
    assert len(session.take_frames()) < 2000
    assert session.streams == (1,)


def test_too_many_streams_are_reset() -> None:
    session = Session("server", max_streams=1)
    assert session.receive(Frame(Kind.WINDOW_UPDATE, Flag.SYN, 1).encode()) == [StreamOpened(1)]
    session.take_frames()
    assert session.receive(Frame(Kind.WINDOW_UPDATE, Flag.SYN, 3).encode()) == []
    assert session.take_frames() == [Frame(Kind.WINDOW_UPDATE, Flag.RST, 3).encode()]
    # What was under way for it already is dropped.
    assert session.receive(Frame(Kind.DATA, Flag.FIN, 3, data=b"late").encode()) == []


@pytest.mark.parametrize("arguments", [{"window_bytes": 1}, {"window_bytes": 2**31}, {"max_streams": 0}])
def test_arguments_out_of_range(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Session("client", **arguments)


def test_a_header_has_three_bytes() -> None:
    header = ConnectHeader(65535)
    assert len(header.encode()) == HEADER_BYTES == 3
    assert ConnectHeader.decode(header.encode()) == header
    assert header.supported
    assert not ConnectHeader(1, version=2).supported


def test_streams_may_come_out_of_order() -> None:
    session = Session("server")
    opened = [Frame(Kind.WINDOW_UPDATE, Flag.SYN, number).encode() for number in (5, 1, 3, 9)]
    events = [event for frame in opened for event in session.receive(frame)]
    assert events == [StreamOpened(5), StreamOpened(1), StreamOpened(3), StreamOpened(9)]
    with pytest.raises(YamuxError, match="stream 3 was opened twice"):
        session.receive(opened[2])


def test_not_too_many_streams_may_come_later() -> None:
    with pytest.raises(YamuxError, match="before 1024 others"):
        Session("server").receive(Frame(Kind.WINDOW_UPDATE, Flag.SYN, 4001).encode())


def test_data_of_a_stream_that_is_yet_to_come() -> None:
    session = Session("server")
    session.receive(Frame(Kind.WINDOW_UPDATE, Flag.SYN, 5).encode())
    with pytest.raises(YamuxError, match="stream 3 was never opened"):
        session.receive(Frame(Kind.DATA, Flag.NONE, 3, data=b"x").encode())
