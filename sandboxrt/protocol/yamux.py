"""The yamux session, version 0: many byte streams over one connection. Both roles; bytes in, events out.

Nothing here waits or opens anything: feed what arrived to :meth:`Session.receive`, carry out the events, and send what
:meth:`Session.take_frames` gives, one frame a message. A stream is forgotten once both directions have ended or either
side reset it; what still arrives for it is dropped.

Bounded: what a peer may have under way is bounded by our windows and ``max_streams``; what waits to be sent, by the
peer's windows and, for answers to pings and refusals, by a count. A peer that breaks a rule is told so with a
``GO_AWAY``, and :class:`YamuxError` is raised here.

Source: protocol.md §5.1 and the yamux specification it restates.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import attrs

from sandboxrt.protocol.yamux_frames import (
    INITIAL_WINDOW_BYTES,
    MAX_FRAME_DATA_BYTES,
    Flag,
    Frame,
    FrameReader,
    GoAwayCode,
    Kind,
    YamuxError,
    data_frame,
)

__all__ = [
    "INITIAL_WINDOW_BYTES",
    "DataReceived",
    "Event",
    "GoAwayCode",
    "GoneAway",
    "PongReceived",
    "Session",
    "StreamEnded",
    "StreamOpened",
    "StreamReset",
    "WindowOpened",
    "YamuxError",
]

_MAX_CONTROL_FRAMES: Final = 1024
_MAX_WINDOW_BYTES: Final = 2**31 - 1
_MAX_PASSED_OVER: Final = 1024
"""How many streams may be opened later than others with higher numbers."""


@attrs.frozen
class StreamOpened:
    """The peer opened a stream."""

    stream_id: int


@attrs.frozen
class DataReceived:
    """Data of a stream, in order. Say :meth:`Session.consume` once it is used up."""

    stream_id: int
    data: bytes


@attrs.frozen
class WindowOpened:
    """More may be sent on a stream than before."""

    stream_id: int


@attrs.frozen
class StreamEnded:
    """The peer sends no more on this stream; it may still read."""

    stream_id: int


@attrs.frozen
class StreamReset:
    """The peer gave the stream up, both directions."""

    stream_id: int


@attrs.frozen
class PongReceived:
    """The answer to :meth:`Session.ping`."""

    number: int


@attrs.frozen
class GoneAway:
    """The peer ends the session: every stream is over."""

    code: int


Event: TypeAlias = StreamOpened | DataReceived | WindowOpened | StreamEnded | StreamReset | PongReceived | GoneAway


@attrs.define
class _Stream:
    """One stream. ``sendable`` and ``receivable`` are what is left of either window, in bytes."""

    sendable: int = INITIAL_WINDOW_BYTES
    receivable: int = INITIAL_WINDOW_BYTES
    granted: int = INITIAL_WINDOW_BYTES
    consumed: int = 0
    ended_here: bool = False
    ended_there: bool = False


class Session:
    """One side of a session.

    Args:
        role: ``"client"`` opens streams with odd numbers, ``"server"`` with even ones.
        window_bytes: How much a peer may send on a stream before it is read, at least 256 KiB. What is above that is
            granted when the stream opens: it decides the throughput over a link with a delay. :meth:`widen` grants
            more to a stream that has use for it.
        max_window_bytes: The most that :meth:`widen` gives to one stream.
        max_streams: How many streams the peer may have open; further ones are reset at once.
    """

    def __init__(
        self,
        role: Literal["client", "server"],
        *,
        window_bytes: int = INITIAL_WINDOW_BYTES,
        max_window_bytes: int | None = None,
        max_streams: int = 1024,
    ) -> None:
        if not INITIAL_WINDOW_BYTES <= window_bytes <= _MAX_WINDOW_BYTES:
            raise ValueError(f"window_bytes must be {INITIAL_WINDOW_BYTES} to {_MAX_WINDOW_BYTES}, not {window_bytes}")
        if max_window_bytes is None:
            max_window_bytes = window_bytes
        if not window_bytes <= max_window_bytes <= _MAX_WINDOW_BYTES:
            raise ValueError(f"max_window_bytes must be {window_bytes} to {_MAX_WINDOW_BYTES}, not {max_window_bytes}")
        if max_streams < 1:
            raise ValueError(f"max_streams must be at least 1, not {max_streams}")
        self._window_bytes = window_bytes
        self._max_window_bytes = max_window_bytes
        self._max_streams = max_streams
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1 if role == "client" else 2
        self._newest_of_peer = 0
        self._passed_over: set[int] = set()
        self._reader = FrameReader(max_window_bytes)
        self._frames: deque[bytes] = deque()
        self._queued_bytes = 0
        self._control_frames = 0
        self._failed = False
        self._going_away = False
        self._on_kind: Mapping[Kind, Callable[[Frame], list[Event]]] = MappingProxyType(
            {
                Kind.DATA: self._on_data,
                Kind.WINDOW_UPDATE: self._on_window_update,
                Kind.PING: self._on_ping,
                Kind.GO_AWAY: self._on_go_away,
            }
        )

    @property
    def streams(self) -> tuple[int, ...]:
        """The streams that have not ended."""
        return tuple(self._streams)

    def take_frames(self) -> list[bytes]:
        """What is to be sent now, each to be one message, in order."""
        frames = list(self._frames)
        self._frames.clear()
        self._queued_bytes = self._control_frames = 0
        return frames

    @property
    def queued_bytes(self) -> int:
        """How much there is to be sent. Whoever sends data waits while it is much: windows alone bound it loosely."""
        return self._queued_bytes

    def is_open(self, stream_id: int) -> bool:
        """Whether a stream has not ended both ways, nor been reset."""
        return stream_id in self._streams

    # -- what this side does -----------------------------------------------------------------------------------------

    def open_stream(self) -> int:
        """Open a stream; data may follow at once. Returns its number.

        Raises:
            YamuxError: The session is over.
        """
        if self._failed or self._going_away:
            raise YamuxError("the session is over")
        stream_id = self._next_id
        self._next_id += 2
        self._add(stream_id, Flag.SYN)
        return stream_id

    def sendable_bytes(self, stream_id: int) -> int:
        """How much the peer takes on this stream now; 0 when the stream is over for sending."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None or stream.ended_here else stream.sendable

    def send(self, stream_id: int, data: bytes | bytearray | memoryview) -> int:
        """Send as much of ``data`` as the peer takes. Returns how many bytes that were.

        Raises:
            YamuxError: The stream is not open, or its end was sent.
        """
        stream = self._open(stream_id)
        taken = min(len(data), stream.sendable)
        view = memoryview(data)
        for at in range(0, taken, MAX_FRAME_DATA_BYTES):
            frame = data_frame(stream_id, view[at : min(at + MAX_FRAME_DATA_BYTES, taken)])
            self._frames.append(frame)
            self._queued_bytes += len(frame)
        stream.sendable -= taken
        return taken

    def end(self, stream_id: int) -> None:
        """Send no more on this stream; the peer may go on. Nothing where that was said, or the stream is over."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ended_here:
            return
        stream.ended_here = True
        self._put(Frame(Kind.DATA, Flag.FIN, stream_id))
        self._forget_if_over(stream_id, stream)

    def reset(self, stream_id: int) -> None:
        """Give a stream up, both directions. Nothing where it is over."""
        if self._streams.pop(stream_id, None) is not None:
            self._put(Frame(Kind.WINDOW_UPDATE, Flag.RST, stream_id))

    def consume(self, stream_id: int, n_bytes: int) -> bool:
        """Say that received data was used up, so that the peer may send as much again. Whether it was told so now.

        Raises:
            ValueError: More than was received.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        if not 0 <= n_bytes <= stream.granted - stream.receivable - stream.consumed:
            raise ValueError(f"stream {stream_id} has not received {n_bytes} bytes that are not used up")
        stream.consumed += n_bytes
        # In halves of the window: one update for many small reads, and never a peer that has to wait for one.
        if stream.consumed * 2 >= stream.granted and not stream.ended_there:
            self._grant(stream_id, stream, stream.consumed)
            stream.consumed = 0
            return True
        return False

    def window_bytes(self, stream_id: int) -> int:
        """How large the window is that the peer has on this stream; 0 when the stream is over."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else stream.granted

    def widen(self, stream_id: int, n_bytes: int) -> int:
        """Enlarge the window that the peer has on this stream, within the maximum. Returns by how much that was."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.ended_there:
            return 0
        more = max(0, min(n_bytes, self._max_window_bytes - stream.granted))
        if more:
            stream.granted += more
            self._grant(stream_id, stream, more)
        return more

    def ping(self, number: int) -> None:
        """Ask the peer for a sign of life."""
        self._put(Frame(Kind.PING, Flag.SYN, 0, number & 0xFFFFFFFF))

    def go_away(self, code: GoAwayCode = GoAwayCode.NORMAL) -> None:
        """Tell the peer that the session ends. Every stream is over."""
        if not self._going_away:
            self._going_away = True
            self._streams.clear()
            self._put(Frame(Kind.GO_AWAY, Flag.NONE, 0, code))

    # -- what the peer does ------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """What these bytes mean, in order.

        Raises:
            YamuxError: The peer broke a rule; what is left to send tells it so.
        """
        if self._failed:
            raise YamuxError("the session is over")
        events: list[Event] = []
        try:
            for frame in self._reader.feed(data):
                events += self._on_kind[frame.kind](frame)
        except YamuxError:
            self._failed = True
            self.go_away(GoAwayCode.PROTOCOL_ERROR)
            raise
        return events

    def _on_data(self, frame: Frame) -> list[Event]:
        events, stream = self._stream_of(frame)
        if stream is None:
            return events
        if frame.data:
            if stream.ended_there:
                raise YamuxError(f"stream {frame.stream_id} had ended, and has more data")
            if len(frame.data) > stream.receivable:
                raise YamuxError(
                    f"stream {frame.stream_id} got {len(frame.data)} bytes with a window of {stream.receivable}"
                )
            stream.receivable -= len(frame.data)
            events.append(DataReceived(frame.stream_id, frame.data))
        return events + self._on_flags(frame, stream)

    def _on_window_update(self, frame: Frame) -> list[Event]:
        events, stream = self._stream_of(frame)
        if stream is None:
            return events
        if stream.sendable + frame.value > _MAX_WINDOW_BYTES:
            raise YamuxError(f"stream {frame.stream_id} got a window of more than {_MAX_WINDOW_BYTES} bytes")
        stream.sendable += frame.value
        if frame.value and not stream.ended_here:
            events.append(WindowOpened(frame.stream_id))
        return events + self._on_flags(frame, stream)

    def _on_flags(self, frame: Frame, stream: _Stream) -> list[Event]:
        if frame.flags & Flag.RST:
            del self._streams[frame.stream_id]
            return [StreamReset(frame.stream_id)]
        if frame.flags & Flag.FIN and not stream.ended_there:
            stream.ended_there = True
            self._forget_if_over(frame.stream_id, stream)
            return [StreamEnded(frame.stream_id)]
        return []

    def _stream_of(self, frame: Frame) -> tuple[list[Event], _Stream | None]:
        """The frame's stream, which the frame may open; ``None`` where it is to be dropped."""
        if frame.stream_id == 0:
            raise YamuxError(f"{frame.kind.name} frame for no stream")
        if frame.flags & Flag.SYN:
            return self._on_open(frame)
        stream = self._streams.get(frame.stream_id)
        if stream is None and self._never_opened(frame.stream_id):
            raise YamuxError(f"stream {frame.stream_id} was never opened")
        return [], stream

    def _on_open(self, frame: Frame) -> tuple[list[Event], _Stream | None]:
        stream_id = frame.stream_id
        if self._is_ours(stream_id):
            raise YamuxError(f"the peer opened stream {stream_id}, whose number is of this side's kind")
        self._note_number(stream_id)
        if len(self._streams) >= self._max_streams or self._going_away:
            self._put_control(Frame(Kind.WINDOW_UPDATE, Flag.RST, stream_id))
            return [], None
        return [StreamOpened(stream_id)], self._add(stream_id, Flag.ACK)

    def _on_ping(self, frame: Frame) -> list[Event]:
        if frame.flags & Flag.SYN:
            self._put_control(Frame(Kind.PING, Flag.ACK, 0, frame.value))
            return []
        return [PongReceived(frame.value)] if frame.flags & Flag.ACK else []

    def _on_go_away(self, frame: Frame) -> list[Event]:
        self._going_away = True
        self._streams.clear()
        return [GoneAway(frame.value)]

    # -- parts -------------------------------------------------------------------------------------------------------

    def _add(self, stream_id: int, flag: Flag) -> _Stream:
        stream = self._streams[stream_id] = _Stream()
        extra = self._window_bytes - INITIAL_WINDOW_BYTES
        self._put(Frame(Kind.WINDOW_UPDATE, flag, stream_id, extra))
        stream.receivable += extra
        stream.granted += extra
        return stream

    def _grant(self, stream_id: int, stream: _Stream, n_bytes: int) -> None:
        stream.receivable += n_bytes
        self._put(Frame(Kind.WINDOW_UPDATE, Flag.NONE, stream_id, n_bytes))

    def _open(self, stream_id: int) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None:
            raise YamuxError(f"stream {stream_id} is not open")
        if stream.ended_here:
            raise YamuxError(f"the end of stream {stream_id} was sent already")
        return stream

    def _forget_if_over(self, stream_id: int, stream: _Stream) -> None:
        if stream.ended_here and stream.ended_there:
            del self._streams[stream_id]

    def _is_ours(self, stream_id: int) -> bool:
        return stream_id % 2 == self._next_id % 2

    def _note_number(self, stream_id: int) -> None:
        """Numbers may come out of order: official clients give them out in one thread and send them from another."""
        if stream_id <= self._newest_of_peer:
            if stream_id not in self._passed_over:
                raise YamuxError(f"stream {stream_id} was opened twice")
            self._passed_over.remove(stream_id)
            return
        following = self._newest_of_peer + 2 if self._newest_of_peer else stream_id % 2 or 2
        if (stream_id - following) // 2 > _MAX_PASSED_OVER - len(self._passed_over):
            raise YamuxError(f"stream {stream_id} was opened before {_MAX_PASSED_OVER} others with lower numbers")
        self._passed_over.update(range(following, stream_id, 2))
        self._newest_of_peer = stream_id

    def _never_opened(self, stream_id: int) -> bool:
        if self._is_ours(stream_id):
            return stream_id >= self._next_id
        return stream_id > self._newest_of_peer or stream_id in self._passed_over

    def _put(self, frame: Frame) -> None:
        encoded = frame.encode()
        self._frames.append(encoded)
        self._queued_bytes += len(encoded)

    def _put_control(self, frame: Frame) -> None:
        """Answer the peer, which decides how often: when it asks for more than it reads, the rest gets no answer."""
        if self._control_frames < _MAX_CONTROL_FRAMES:
            self._control_frames += 1
            self._put(frame)
