"""A client's connection to the gateway, one request at a time.

Source: ours; what HTTP/1.1 is, h11 knows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import h11
import trio

__all__ = ["LINGER_BYTES", "LINGER_S", "LINGER_STALL_S", "Front", "GoneError"]

_KEPT_BYTES: Final = 1024**2
LINGER_BYTES: Final = 256 * 1024**2
"""How much of a request is read on behind its answer, at most."""
LINGER_S: Final = 30.0
"""For how long, at most."""
LINGER_STALL_S: Final = 2.0
"""And how long nothing may come of it."""


class GoneError(Exception):
    """The client went away, or stopped, in the middle of its request."""


class Front:
    """One client.

    Args:
        connection: The state of its connection, as its server's side.
        receive: Its next bytes; ``b""`` once there will be none.
        send: Sends it bytes. Whoever gives it sees to it that a client that takes nothing does not hold it up for ever.
        end: Tells it that there will be no more bytes, where that can be said while it still sends; never raises.
        peer: The client's address.
    """

    def __init__(
        self,
        connection: h11.Connection,
        receive: Callable[[], Awaitable[bytes]],
        send: Callable[[bytes], Awaitable[None]],
        end: Callable[[], Awaitable[None]],
        peer: str,
    ) -> None:
        self.connection: h11.Connection = connection
        self.peer: str = peer
        self.is_head: bool = False
        """Whether the request wants no body back."""
        self.sent_bytes: int = 0
        self.status: int = 0
        self.receive: Callable[[], Awaitable[bytes]] = receive
        self._send = send
        self._end = end

    @property
    def started(self) -> bool:
        """Whether an answer has begun."""
        return self.connection.our_state is not h11.SEND_RESPONSE

    @property
    def unread(self) -> bool:
        """Whether some of the request's body has not been taken yet."""
        return self.connection.their_state is h11.SEND_BODY

    async def event(self, stall_s: float) -> Any:
        """The next event of the request.

        Args:
            stall_s: How long nothing may come.

        Raises:
            GoneError: It breaks off, stalls, or is no HTTP.
        """
        while True:
            try:
                event = self.connection.next_event()
                if event is not h11.NEED_DATA:
                    return event
                with trio.fail_after(stall_s):
                    data = await self.receive()
                self.connection.receive_data(data)
            except (h11.RemoteProtocolError, trio.TooSlowError) as error:
                raise GoneError from error

    async def watch(self) -> None:
        """Return when the client goes away. What else it sends meanwhile is kept, up to one read."""
        while data := await self.receive():
            self.connection.receive_data(data)
            if len(self.connection.trailing_data[0]) > _KEPT_BYTES:
                await trio.sleep_forever()

    async def send(self, event: Any) -> None:
        """Send a part of the answer."""
        if isinstance(event, h11.Response | h11.InformationalResponse):
            self.status = event.status_code
        elif isinstance(event, h11.Data):
            self.sent_bytes += len(event.data)
        if data := self.connection.send(event):
            await self._send(data)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes, once the connection has changed its protocol."""
        self.sent_bytes += len(data)
        await self._send(data)

    async def invite_body(self) -> None:
        """Tell a client that waits for it that its body is welcome."""
        if self.connection.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))

    async def answer(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer of our own; without its body where none is wanted."""
        self.pass_over()
        headers = [*headers, (b"Content-Length", str(len(body)).encode())]
        if self.unread:
            headers.append((b"Connection", b"close"))
        await self.send(h11.Response(status_code=status, headers=headers))
        if not self.is_head:
            await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())

    def pass_over(self) -> None:
        """Pass over what is here of a body that nobody wants, as far as that goes without waiting for more."""
        try:
            while self.unread and self.connection.next_event() is not h11.NEED_DATA:
                pass
        except h11.RemoteProtocolError as error:
            raise GoneError from error

    async def finish(self) -> bool:
        """End the exchange; whether the connection is good for another request."""
        connection = self.connection
        if connection.our_state is h11.DONE and connection.their_state is h11.DONE:
            connection.start_next_cycle()
            return True
        if self.started and self.unread:
            await self._end()
            await self._drain()
        return False

    async def _drain(self) -> None:
        """Take some of a body that nobody wants, behind an answer that is over, whole or cut off.

        A connection that is closed with something unread is reset, and that may take from the client what of the
        answer it has not read yet; besides, a client that is cut off while it sends may not look for an answer.
        """
        taken = 0
        with trio.move_on_after(LINGER_S), contextlib.suppress(GoneError):
            while taken < LINGER_BYTES and isinstance(event := await self.event(LINGER_STALL_S), h11.Data):
                taken += len(event.data)
