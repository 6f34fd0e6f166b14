"""Streams over one connection, on trio: a yamux session with the tasks that carry it.

A :class:`Mux` has a reader, a writer and a watch, which its :meth:`Mux.run` owns; whoever opened it owns that. Its
streams are used by tasks of their users, each at its own pace: a stream that is not read holds up nobody else, for its
peer may send a window and no more, and what all streams together leave unread is bounded too.

Windows begin with what the protocol gives and grow for streams that use theirs up within a few round trips, out of an
allowance that the streams of a session share.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Literal, Protocol

import attrs
import trio

from sandboxrt.protocol.yamux import (
    DataReceived,
    Event,
    GoneAway,
    PongReceived,
    Session,
    StreamEnded,
    StreamOpened,
    StreamReset,
    WindowOpened,
    YamuxError,
)

__all__ = ["Mux", "MuxSettings", "MuxStream", "Wire", "WireClosedError"]

_TICK_S = 0.01
"""The shortest sleep: a deadline that differs from now by a rounding error must not be slept for again and again."""
_ROUND_TRIPS = 4
"""Half a window that is used up within so many round trips holds its sender up."""


class WireClosedError(Exception):
    """The connection that carries a session has ended; the message says how."""


class Wire(Protocol):
    """What carries a session: messages both ways, in order."""

    async def send(self, frames: list[bytes]) -> None:
        """Send frames, none longer than 64 KiB. Raises :class:`WireClosedError`."""
        ...

    async def receive(self) -> bytes:
        """Some more of what the peer has sent. Raises :class:`WireClosedError`."""
        ...

    def takes(self, n_bytes: int) -> bool:
        """Whether so much can be sent now, hardly waiting, by a task that may be cancelled meanwhile."""
        ...


@attrs.frozen(kw_only=True)
class MuxSettings:
    """The bounds of one session.

    Attributes:
        max_streams: That the peer may have open.
        max_window_bytes: The most that a peer may send on one stream before it is read.
        allowance_bytes: How much the windows of all streams may grow together.
        unread_bytes: What may lie unread in all streams together; then the stream with most of it is reset.
        queue_bytes: What may wait to be sent before those who send more have to wait.
        stall_s: How long a peer that sends no more on a stream may grant nothing while there is more for it.
        ping_s: Silence after which the peer is asked whether it lives.
        silent_s: Silence after which it is given up.
    """

    max_streams: int = 512
    max_window_bytes: int = 4 * 1024**2
    allowance_bytes: int = 32 * 1024**2
    unread_bytes: int = 64 * 1024**2
    queue_bytes: int = 256 * 1024
    stall_s: float = 30.0
    ping_s: float = 30.0
    silent_s: float = 90.0


class MuxStream(trio.abc.HalfCloseableStream):
    """One stream of a session. Close it when it is of no more use: what has not ended by then is reset.

    Attributes:
        id: Its number.
    """

    def __init__(self, mux: Mux, stream_id: int) -> None:
        self.id = stream_id
        self._mux = mux
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._grew_at = -math.inf
        self._extra = 0
        self._eof = False
        self._broken = False
        self._closed = False
        self._take: Callable[[bytes], int] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    @property
    def unread(self) -> int:
        """How many bytes have come and were not taken."""
        return self._unread

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What came next; empty at the end.

        Raises:
            trio.BrokenResourceError: The stream was reset, or the session has ended.
        """
        while not self._chunks:
            if self._closed:
                raise trio.ClosedResourceError
            if self._eof:
                await trio.lowlevel.checkpoint()
                return b""
            if self._broken:
                raise trio.BrokenResourceError("the stream was reset")
            await self._changed.park()
        data = self._chunks.popleft()
        if max_bytes is not None and len(data) > max_bytes:
            self._chunks.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        self._unread -= len(data)
        self._mux._taken(self, len(data))
        return data

    async def receive_past(self, take: Callable[[bytes], int], max_bytes: int | None = None) -> bytes:
        """What came next and ``take`` has not taken; empty at the end.

        While this waits, what comes is offered to ``take`` where it comes, which returns how many bytes it took: no
        task need be woken up for those.

        Raises:
            trio.BrokenResourceError: The stream was reset, or the session has ended.
        """
        self._take = take
        try:
            return await self.receive_some(max_bytes)
        finally:
            self._take = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``, as fast as the peer takes it.

        Raises:
            trio.BrokenResourceError: The stream was reset, or the session has ended.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(data)
        while rest:
            await self._wait_sendable()
            rest = rest[self._mux._send(self, rest) :]
            await self._mux._push()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the peer takes more."""
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._wait_sendable()

    async def send_eof(self) -> None:
        """Say that nothing more comes from here. Idempotent."""
        self._check()
        self._mux._end(self)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close it. Idempotent; never waits for the peer."""
        self.reset()
        await trio.lowlevel.checkpoint()

    def reset(self) -> None:
        """The same at once; the peer is told where the stream has not ended both ways."""
        if not self._closed:
            self._closed = True
            self._mux._forget(self)
            self._chunks.clear()
            self._changed.unpark_all()

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        if self._broken:
            raise trio.BrokenResourceError("the stream was reset")

    async def _wait_sendable(self) -> None:
        while True:
            self._check()
            room = self._mux._room()
            if room is not None:
                await room.park()
            elif self._mux._session.sendable_bytes(self.id):
                return
            else:
                await self._wait_window()

    async def _wait_window(self) -> None:
        # Some peers end their side, read no more and never say so; then nobody would ever wake up here.
        stalled = trio.current_time() + self._mux._settings.stall_s if self._eof else math.inf
        with trio.move_on_at(stalled) as scope:
            await self._changed.park()
        if scope.cancelled_caught:
            self.reset()

    # -- the session's side ------------------------------------------------------------------------------------------

    def _put(self, data: bytes) -> None:
        self._unread += len(data)
        if self._take is not None and not self._chunks:
            taken = self._take(data)
            self._unread -= taken
            self._mux._taken(self, taken)
            if taken == len(data):
                return
            data = data[taken:]
            # What comes now must stay behind the rest of this.
            self._take = None
        self._chunks.append(data)
        self._changed.unpark_all()

    def _notice(self, event: WindowOpened | StreamEnded | StreamReset) -> None:
        if isinstance(event, StreamEnded):
            self._eof = True
        elif isinstance(event, StreamReset):
            self._broken = True
        self._changed.unpark_all()

    def _break(self) -> None:
        self._broken = True
        self._changed.unpark_all()


class Mux:
    """One side of a session.

    Args:
        role: The ``"client"`` opens streams.
        wire: What carries it; its user closes it.
        settings: The bounds.
        accept: Gets the streams that the peer opens, and owns them.
    """

    def __init__(
        self,
        role: Literal["client", "server"],
        wire: Wire,
        settings: MuxSettings | None = None,
        accept: Callable[[MuxStream], None] | None = None,
    ) -> None:
        self._settings = settings or MuxSettings()
        self._session = Session(
            role, max_window_bytes=self._settings.max_window_bytes, max_streams=self._settings.max_streams
        )
        self._wire = wire
        self._accept = accept
        self._streams: dict[int, MuxStream] = {}
        self._unread = 0
        self._allowance = self._settings.allowance_bytes
        self._to_send = trio.lowlevel.ParkingLot()
        self._sent = trio.lowlevel.ParkingLot()
        self._heard_at = trio.current_time()
        self._pings: dict[int, float] = {}
        self._ping_number = 0
        self._round_trip_s = math.inf
        self._sending = False
        self._over = False
        self._leaving = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._streams)} streams>"

    @property
    def over(self) -> bool:
        """Whether the session has ended; then every stream has."""
        return self._over

    async def run(self) -> str:
        """Carry the session until it ends; returns a sentence that says how.

        Cancellation: ends it at once, without a word to the peer; :meth:`leave` is the polite way.
        """
        reasons: list[str] = []

        async def until_end(job: Callable[[], object]) -> None:
            try:
                await job()  # type: ignore[misc]
            except (WireClosedError, YamuxError) as error:
                reasons.append(str(error) or "the connection ended")
            nursery.cancel_scope.cancel()

        try:
            self._ping()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_end, self._write)
                nursery.start_soon(until_end, self._watch)
                await until_end(self._read)
        finally:
            self._end_all()
        with trio.move_on_after(1.0):
            await self._say_last_words()
        return reasons[0] if reasons else "the session was ended"

    def open(self) -> MuxStream:
        """A new stream; the caller closes it.

        Raises:
            trio.BrokenResourceError: The session is over.
        """
        if self._over:
            raise trio.BrokenResourceError("the session is over")
        try:
            stream = MuxStream(self, self._session.open_stream())
        except YamuxError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self._streams[stream.id] = stream
        self._to_send.unpark_all()
        return stream

    def leave(self) -> None:
        """End the session politely: every stream is over, the peer is told, and :meth:`run` returns."""
        self._leaving = True
        self._session.go_away()
        self._end_all()
        self._to_send.unpark_all()

    # -- its tasks ---------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            data = await self._wire.receive()
            self._heard_at = trio.current_time()
            for event in self._session.receive(data):
                self._obey(event)
                if isinstance(event, GoneAway):
                    raise WireClosedError(f"the peer ended the session (code {event.code})")
            if self._session.queued_bytes:
                self._to_send.unpark_all()

    async def _write(self) -> None:
        while True:
            while self._sending or not self._session.queued_bytes:
                if self._leaving and not self._sending:
                    return
                await self._to_send.park()
            # What is taken must be sent: the last words would be lost with it.
            await trio.lowlevel.checkpoint_if_cancelled()
            await self._send_queued()

    async def _send_queued(self) -> None:
        self._sending = True
        try:
            await self._wire.send(self._session.take_frames())
        finally:
            self._sending = False
            self._sent.unpark_all()
            # Also where this was cancelled: the writer, who was woken meanwhile, found somebody sending.
            if self._session.queued_bytes or self._leaving:
                self._to_send.unpark_all()

    async def _watch(self) -> None:
        settings = self._settings
        while True:
            quiet_s = trio.current_time() - self._heard_at
            if quiet_s >= settings.silent_s:
                raise WireClosedError(f"the peer was silent for {settings.silent_s:g} s")
            if quiet_s >= settings.ping_s:
                self._ping()
                await trio.sleep(max(_TICK_S, min(settings.ping_s, settings.silent_s - quiet_s)))
            else:
                await trio.sleep(max(_TICK_S, settings.ping_s - quiet_s))

    def _ping(self) -> None:
        self._ping_number += 1
        self._pings = {self._ping_number: trio.current_time()}
        self._session.ping(self._ping_number)
        self._to_send.unpark_all()

    async def _say_last_words(self) -> None:
        """Why the session ends, where it ended by this side's doing."""
        frames = self._session.take_frames()
        if frames:
            try:
                await self._wire.send(frames[-1:])
            except WireClosedError:
                pass

    def _end_all(self) -> None:
        self._over = True
        for stream in tuple(self._streams.values()):
            stream._break()
        self._streams.clear()
        self._sent.unpark_all()

    # -- what the peer does ------------------------------------------------------------------------------------------

    def _obey(self, event: Event) -> None:
        match event:
            case DataReceived(stream_id, data):
                self._on_data(stream_id, data)
            case StreamOpened(stream_id):
                self._on_open(stream_id)
            case PongReceived(number):
                self._on_pong(number)
            case WindowOpened(stream_id) | StreamEnded(stream_id) | StreamReset(stream_id):
                if (stream := self._streams.get(stream_id)) is not None:
                    stream._notice(event)

    def _on_data(self, stream_id: int, data: bytes) -> None:
        if (stream := self._streams.get(stream_id)) is not None:
            self._unread += len(data)
            stream._put(data)
            if self._unread > self._settings.unread_bytes:
                self._reset_fullest()

    def _on_open(self, stream_id: int) -> None:
        opened = self._streams[stream_id] = MuxStream(self, stream_id)
        if self._accept is None:
            opened.reset()
        else:
            self._accept(opened)

    def _on_pong(self, number: int) -> None:
        if (asked_at := self._pings.pop(number, None)) is not None:
            self._round_trip_s = min(self._round_trip_s, trio.current_time() - asked_at)

    def _reset_fullest(self) -> None:
        max(self._streams.values(), key=lambda stream: stream.unread).reset()

    # -- what its streams do -----------------------------------------------------------------------------------------

    def _room(self) -> trio.lowlevel.ParkingLot | None:
        """Where to wait before sending more, if there is a reason to wait."""
        return self._sent if self._session.queued_bytes >= self._settings.queue_bytes else None

    def _send(self, stream: MuxStream, data: memoryview) -> int:
        return self._session.send(stream.id, data[: self._settings.queue_bytes])

    async def _push(self) -> None:
        """Send what was queued: in the task of who queued it, where the wire takes it at once, or in the writer's."""
        if not self._sending and not self._over and self._wire.takes(self._session.queued_bytes):
            try:
                await self._send_queued()
            except WireClosedError:
                pass  # the reader finds out why
        elif self._session.queued_bytes:
            self._to_send.unpark_all()

    def _end(self, stream: MuxStream) -> None:
        self._session.end(stream.id)
        self._to_send.unpark_all()

    def _taken(self, stream: MuxStream, n_bytes: int) -> None:
        self._unread -= n_bytes
        if self._over or not self._session.consume(stream.id, n_bytes):
            return
        now = trio.current_time()
        if now - stream._grew_at < _ROUND_TRIPS * self._round_trip_s and self._allowance:
            window = self._session.window_bytes(stream.id)
            more = self._session.widen(stream.id, min(window, self._allowance))
            stream._extra += more
            self._allowance -= more
        stream._grew_at = now
        self._to_send.unpark_all()

    def _forget(self, stream: MuxStream) -> None:
        if self._streams.pop(stream.id, None) is not None:
            self._session.reset(stream.id)
            self._to_send.unpark_all()
        self._unread -= stream.unread
        self._allowance += stream._extra
