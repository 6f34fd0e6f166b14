"""A wire that goes over one connection after another: what a broken one lost is sent again over the next.

Both sides of a tunnel have one below their session, where both know how (``protocol/resume.py``); the session and its
streams notice nothing but a pause. The client makes the connections; for the server a newer one ends an older one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import attrs
import trio

from sandboxrt.protocol.resume import (
    ACKNOWLEDGE_BYTES,
    REPLAY_BYTES,
    Receipts,
    ReplayLog,
    ResumeError,
    receipt_from_text,
    receipt_to_text,
)
from sandboxrt.tunnels.mux import WireClosedError

__all__ = ["Connection", "ResumeSettings", "ResumingWire"]

_SMALL_BYTES = 16 * 1024


class Connection(Protocol):
    """One connection: bytes are the stream, text is about it."""

    async def send(self, message: bytes | str) -> None:
        """Send a message. Raises :class:`~sandboxrt.tunnels.mux.WireClosedError`."""
        ...

    async def receive(self) -> bytes | str:
        """The next message. Raises :class:`~sandboxrt.tunnels.mux.WireClosedError`. Cancellation: atomic."""
        ...


@attrs.frozen(kw_only=True)
class ResumeSettings:
    """The bounds.

    Attributes:
        replay_bytes: What is kept until it is acknowledged; who sends more waits.
        acknowledge_bytes: After how much the peer is told what has come.
        message_bytes: How long a message is that is made of several pieces.
        patience_s: How long the wire waits for another connection.
    """

    replay_bytes: int = REPLAY_BYTES
    acknowledge_bytes: int = ACKNOWLEDGE_BYTES
    message_bytes: int = 256 * 1024
    patience_s: float = 30.0


class ResumingWire:
    """What a session is carried by, whichever connection carries it just now.

    Its owner gives it connections, one at a time, within :meth:`turn`, and runs :meth:`expire`.
    """

    def __init__(self, settings: ResumeSettings | None = None) -> None:
        self._settings = settings or ResumeSettings()
        self._log = ReplayLog(self._settings.replay_bytes)
        self._receipts = Receipts(self._settings.acknowledge_bytes)
        # Who waits for what has a place of its own: most messages are small, and each needless wake-up shows.
        self._arrived = trio.lowlevel.ParkingLot()
        self._log_room = trio.lowlevel.ParkingLot()
        self._taken = trio.lowlevel.ParkingLot()
        self._to_send = trio.lowlevel.ParkingLot()
        self._state_changed = trio.lowlevel.ParkingLot()
        self._lock = trio.Lock()
        self._turn: trio.CancelScope | None = None
        self._connection: Connection | None = None
        self._carrying: trio.CancelScope | None = None
        self._why = ""
        self._sending = False
        self._over: str | None = None

    def __repr__(self) -> str:
        state = "over" if self._over is not None else "connected" if self._connection else "between connections"
        return f"<{type(self).__name__} {state}>"

    # -- the session's side ------------------------------------------------------------------------------------------

    async def send(self, frames: list[bytes]) -> None:
        """Take frames to be sent, now or over a later connection; waits while too much is not acknowledged.

        Raises:
            WireClosedError: The wire is over.

        Cancellation: the frames are sent nevertheless, or those before a point; it may cost the connection.
        """
        short = sum(map(len, frames)) <= _SMALL_BYTES
        for number, frame in enumerate(frames):
            # Few bytes are taken all at once, or none.
            while self._log.full and self._over is None and not (short and number):
                self._to_send.unpark_all()
                await self._log_room.park()
            self._check()
            self._log.add(frame)
        if self._connection is None or self._sending:
            self._to_send.unpark_all()
            await trio.lowlevel.checkpoint()
        else:
            await self._push(self._connection)

    def takes(self, n_bytes: int) -> bool:
        """Whether so much can be sent now, and sent again should that be broken off."""
        return n_bytes <= _SMALL_BYTES and self._connection is not None and not self._sending and not self._log.full

    async def receive(self) -> bytes:
        """What came next. Cancellation: atomic.

        Raises:
            WireClosedError: The wire is over.
        """
        while True:
            self._check()
            if (connection := self._connection) is None:
                await self._arrived.park()
            elif (data := await self._pull(connection)) is not None:
                return data

    async def _pull(self, connection: Connection) -> bytes | None:
        """What comes next over a connection, by the one who wants it; ``None`` where there is nothing for it."""
        try:
            message = await connection.receive()
        except WireClosedError as error:
            self._break(connection, str(error))
            return None
        if self._connection is not connection:
            return None  # the peer was told already that this has not come, and sends it again
        # From here on nothing waits: what has come is counted, or has not come.
        if isinstance(message, str):
            self._acknowledged(message)
            return None
        self._receipts.count(len(message))
        if self._receipts.due:
            self._to_send.unpark_all()
        return message

    def _acknowledged(self, message: str) -> None:
        try:
            self._log.acknowledge(receipt_from_text(message))
        except ResumeError as error:
            self.end(str(error))
            return
        self._log_room.unpark_all()

    async def flush(self) -> None:
        """Wait until a connection has taken everything, or the wire is over."""
        while (self._log.pending or self._sending) and self._over is None:
            await self._taken.park()

    # -- the owner's side --------------------------------------------------------------------------------------------

    @property
    def received(self) -> int:
        """How many bytes have come over all connections."""
        return self._receipts.received

    @property
    def over(self) -> bool:
        """Whether it takes no more connections."""
        return self._over is not None

    def end(self, reason: str) -> None:
        """Take no more connections; the session ends with ``reason``. Idempotent."""
        if self._over is None:
            self._over = reason
            if self._turn is not None:
                self._turn.cancel()
            for waiting in (self._arrived, self._log_room, self._taken, self._state_changed):
                waiting.unpark_all()

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[int]:
        """The right to carry the stream, taken from the connection that has it; gives how many bytes have come.

        That is what the peer is to be told before :meth:`carry`. The block is cancelled when another one begins.

        Raises:
            WireClosedError: The wire is over.
        """
        if self._turn is not None:
            self._turn.cancel()
        async with self._lock:
            self._check()
            with trio.CancelScope() as scope:
                self._turn = scope
                try:
                    yield self._receipts.tell()
                finally:
                    if self._turn is scope:
                        self._turn = None

    async def carry(self, connection: Connection, peer_received: int) -> str:
        """Carry the stream over a connection until it breaks; a sentence that says how it broke.

        Args:
            connection: The caller closes it then, which ends a wait for its next message too.
            peer_received: How many bytes the peer says that it has.
        """
        try:
            self._log.resume(peer_received)
        except ResumeError as error:
            self.end(str(error))
            return str(error)
        self._why = "the connection was given up"
        try:
            with trio.CancelScope() as self._carrying:
                self._connection = connection
                for waiting in (self._arrived, self._log_room, self._state_changed):
                    waiting.unpark_all()
                await self._send_over(connection)
        finally:
            self._carrying = None
            self._break(connection, self._why)
        return self._why

    def _break(self, connection: Connection, why: str) -> None:
        """This connection is of no more use: whoever carries, sends or receives over it stops that."""
        if self._connection is not connection:
            return
        self._connection = None
        self._why = why
        if self._carrying is not None:
            self._carrying.cancel()
        self._state_changed.unpark_all()

    async def expire(self) -> None:
        """End the wire when it had no connection for too long; returns once it is over."""
        while self._over is None:
            if self._connection is not None:
                await self._state_changed.park()
                continue
            with trio.move_on_after(self._settings.patience_s):
                while self._connection is None and self._over is None:
                    await self._state_changed.park()
            if self._connection is None:
                self.end(f"no connection for {self._settings.patience_s:g} s")

    # -- one connection ----------------------------------------------------------------------------------------------

    async def _send_over(self, connection: Connection) -> None:
        while self._connection is connection:
            if not self._sending and (self._log.pending or self._receipts.due):
                await self._push(connection)
            else:
                # Also while somebody else sends, over this connection or still over the one before.
                await self._to_send.park()

    async def _push(self, connection: Connection) -> None:
        """Send all that there is to be sent: by whoever has it, so that nobody need be woken up for it."""
        self._sending = True
        try:
            while self._connection is connection:
                if self._receipts.due:
                    await connection.send(receipt_to_text(self._receipts.tell()))
                elif self._log.pending:
                    await connection.send(self._log.take(self._settings.message_bytes))
                else:
                    break
        except WireClosedError as error:
            self._break(connection, str(error))
        except BaseException:
            # Half a message may be sent: nothing else can be over this connection.
            self._break(connection, "a message was broken off")
            raise
        finally:
            self._sending = False
            self._taken.unpark_all()
            self._to_send.unpark_all()

    def _check(self) -> None:
        if self._over is not None:
            raise WireClosedError(self._over)
