"""A byte stream that outlives its connections: both sides count, and say after a break how far they are.

Each side keeps what it sent until the other has acknowledged it, numbers it by its place in the stream, and after a
break goes on from what the other says it has. So nothing is lost and nothing comes twice, whatever a connection had
under way. What is kept is bounded: a sender waits when the log is full, and the peer acknowledges well before that.

Source: ours; no official client or server knows of it.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final

import attrs

__all__ = [
    "ACKNOWLEDGE_BYTES",
    "REPLAY_BYTES",
    "RESUME_HEADER",
    "Receipts",
    "ReplayLog",
    "Resume",
    "ResumeError",
    "Resumed",
    "receipt_from_text",
    "receipt_to_text",
]

REPLAY_BYTES: Final = 4 * 1024**2
"""How much one side keeps until it is acknowledged. A side has to acknowledge much more often than that."""
ACKNOWLEDGE_BYTES: Final = 256 * 1024
"""After how many received bytes they are acknowledged."""


RESUME_HEADER: Final = "sandboxrt-tunnel"
"""Asks for such a stream with a WebSocket's upgrade, and answers; who does not know it says nothing of it."""
_RESUME: Final = re.compile(r"([0-9a-f]{32}) (0|[1-9][0-9]{0,18})")
_RESUMED: Final = re.compile(r"(new|resumed) (0|[1-9][0-9]{0,18})")
_RECEIPT: Final = re.compile(r'\{"received":(0|[1-9][0-9]{0,18})\}')


class ResumeError(Exception):
    """The two sides do not fit together: the stream cannot go on, and has to end."""


@attrs.frozen
class Resume:
    """What a client asks for.

    Attributes:
        stream: Which stream, by a name of the client's own making that nobody can guess: 32 hex digits.
        received: How many bytes of it the client has.
    """

    stream: str
    received: int = 0

    def encode(self) -> str:
        """As the header has it."""
        return f"{self.stream} {self.received}"

    @classmethod
    def decode(cls, text: str) -> Resume:
        """From the header. Raises :class:`ResumeError`."""
        match = _RESUME.fullmatch(text)
        if match is None:
            raise ResumeError(f"{RESUME_HEADER} must be 32 hex digits and a number of bytes, not {text[:80]!r}")
        return cls(match[1], int(match[2]))


@attrs.frozen
class Resumed:
    """What a server answers.

    Attributes:
        known: Whether it had the stream; otherwise a new one begins.
        received: How many bytes of it the server has.
    """

    known: bool
    received: int = 0

    def encode(self) -> str:
        """As the header has it."""
        return f"{'resumed' if self.known else 'new'} {self.received}"

    @classmethod
    def decode(cls, text: str) -> Resumed:
        """From the header. Raises :class:`ResumeError`."""
        match = _RESUMED.fullmatch(text)
        if match is None:
            raise ResumeError(f"the server answers {text[:80]!r}, which is not about a stream")
        return cls(match[1] == "resumed", int(match[2]))


@attrs.define
class ReplayLog:
    """What was given to be sent and is not acknowledged, in pieces, and how far the present connection is.

    Attributes:
        limit_bytes: From how much on :attr:`full` says so.
    """

    limit_bytes: int = REPLAY_BYTES
    _pieces: deque[bytes] = attrs.field(factory=deque, init=False, repr=False)
    _start: int = attrs.field(default=0, init=False)
    _end: int = attrs.field(default=0, init=False)
    _next: int = attrs.field(default=0, init=False)
    """Index into ``_pieces`` of what the connection gets next."""
    _place: int = attrs.field(default=0, init=False)
    """Its place in the stream."""
    _sent: int = attrs.field(default=0, init=False)
    """Place in the stream up to which this or an earlier connection got it."""

    @property
    def full(self) -> bool:
        """Whether more has to wait for an acknowledgement."""
        return self._end - self._start >= self.limit_bytes

    @property
    def pending(self) -> bool:
        """Whether the present connection has not got everything."""
        return self._next < len(self._pieces)

    def add(self, piece: bytes) -> None:
        """Append to the stream; the caller has seen that the log is not :attr:`full`."""
        if piece:
            self._pieces.append(piece)
            self._end += len(piece)

    def take(self, max_bytes: int) -> bytes:
        """What the connection gets next: whole pieces, as many as fit, one at least; empty when there is none."""
        taken: list[bytes] = []
        size = 0
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            if taken and size + len(piece) > max_bytes:
                break
            taken.append(piece)
            size += len(piece)
            self._next += 1
        self._place += size
        self._sent = max(self._sent, self._place)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def acknowledge(self, received: int) -> None:
        """The peer has everything before ``received``; an older acknowledgement changes nothing.

        Raises:
            ResumeError: It was never sent.
        """
        if received > self._sent:
            raise ResumeError(f"the peer says that it has {received} bytes, and was sent {self._sent}")
        while self._pieces and self._start + len(self._pieces[0]) <= received:
            self._start += len(self._pieces.popleft())
            self._next = max(0, self._next - 1)
        self._place = max(self._place, self._start)

    def resume(self, received: int) -> None:
        """Another connection was made: go on from what the peer has.

        Raises:
            ResumeError: The peer has never had it, or has had more before.
        """
        if received < self._start:
            raise ResumeError(f"the peer asks for byte {received} on, and has acknowledged {self._start}")
        self.acknowledge(received)
        if received > self._start:
            # In the middle of a piece: what is there already must not come twice.
            self._pieces[0] = self._pieces[0][received - self._start :]
            self._start = received
        self._next = 0
        self._place = self._start


@attrs.define
class Receipts:
    """How much has come, and when to say so.

    Attributes:
        every_bytes: After how much more.
        received: How many bytes have come over all connections.
    """

    every_bytes: int = ACKNOWLEDGE_BYTES
    received: int = attrs.field(default=0, init=False)
    _told: int = attrs.field(default=0, init=False)

    @property
    def due(self) -> bool:
        """Whether the peer should be told."""
        return self.received - self._told >= self.every_bytes

    def count(self, n_bytes: int) -> None:
        """So many bytes have come."""
        self.received += n_bytes

    def tell(self) -> int:
        """What to tell the peer now; it counts as told."""
        self._told = self.received
        return self.received


def receipt_to_text(received: int) -> str:
    """The message beside the stream that acknowledges it."""
    return f'{{"received":{received}}}'


def receipt_from_text(text: str) -> int:
    """What such a message acknowledges.

    Raises:
        ResumeError: It is no such message.
    """
    match = _RECEIPT.fullmatch(text)
    if match is None:
        raise ResumeError(f"the peer sent {text[:80]!r}, which acknowledges nothing")
    return int(match[1])
