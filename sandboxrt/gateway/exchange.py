"""One request carried into a sandbox and its answer out, both as they come; or the connection, once it is changed.

Two tasks: one takes the request's body in and then watches for the client to go away, the other brings the answer out.
Neither holds more than one piece of a body, so a slow side slows the other down.

Source: RFC 9110 §7.8 (upgrades); the rest is ours.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, Final, Protocol

import attrs
import h11
import trio

from sandboxrt.gateway.front import Front, GoneError
from sandboxrt.gateway.headers import View, to_service, to_visitor
from sandboxrt.gateway.refusals import RefusalError

__all__ = ["Back", "Exchange", "ExchangeLimits"]

_READ_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 64 * 1024
_EVENTS: Final = b"text/event-stream"
_SURE_BYTES: Final = 48 * 1024
"""An answer up to this long leaves the service at once: it fits into the first window of any connection."""
_BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


class Back(Protocol):
    """A connection to the service."""

    async def send_all(self, data: bytes) -> None:
        """As that of ``trio.SocketStream``."""
        ...

    async def send_eof(self) -> None:
        """As that of ``trio.SocketStream``."""
        ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """As that of ``trio.SocketStream``."""
        ...


@attrs.frozen(kw_only=True)
class ExchangeLimits:
    """The bounds of one exchange.

    Attributes:
        body_stall_s: How long a client may send nothing of a body that it has begun.
        take_stall_s: How long a service may take nothing of what it is sent.
        answer_s: From the request to the first byte of the answer.
        goodbye_s: How long either side of a changed connection may go on once the other has ended.
    """

    body_stall_s: float = 60.0
    take_stall_s: float = 60.0
    answer_s: float = 600.0
    goodbye_s: float = 10.0


class _CutError(Exception):
    """The answer cannot be brought to its end."""


class Exchange:
    """Carries one request.

    Args:
        front: The client.
        back: The service; closed by the caller.
        request: What the client asks; its body still comes.
        target: What the service is asked for.
        view: How the client sees the service.
        limits: The bounds.
        stopping: Set when changed connections and endless answers are to end.
    """

    def __init__(
        self,
        front: Front,
        back: Back,
        request: h11.Request,
        *,
        target: str,
        view: View,
        limits: ExchangeLimits,
        stopping: trio.Event,
    ) -> None:
        self._front = front
        self._stream = back
        self._back = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._view = view
        self._limits = limits
        self._stopping = stopping
        self._upgrade = upgrade_of(request)
        self._watching = trio.CancelScope()
        self._is_deaf = False
        """Whether the service takes no more of the body."""
        self._received_bytes = 0
        self._endless = trio.Event()
        self._request = h11.Request(
            method=request.method,
            target=target.encode("latin-1"),
            headers=to_service(request.headers.raw_items(), view, self._upgrade),
        )

    async def run(self) -> None:
        """Carry it. Returns when the client has the answer, or is gone, or was cut off.

        Raises:
            RefusalError: There is no answer, and none has begun.
        """
        refusal: RefusalError | None = None
        # Before anything is read: what a service says to nobody is no answer.
        await self._give(self._request)
        async with trio.open_nursery() as nursery:

            async def take_in() -> None:
                with self._watching:
                    await self._take_in()
                    nursery.cancel_scope.cancel()  # the client is gone

            nursery.start_soon(take_in)
            nursery.start_soon(self._end_when_stopping, nursery.cancel_scope)
            try:
                await self._bring_out()
            except (_CutError, GoneError):
                pass
            except RefusalError as caught:
                refusal = caught
            nursery.cancel_scope.cancel()
        if refusal is not None:
            raise refusal

    # -- in ----------------------------------------------------------------------------------------------------------

    async def _take_in(self) -> None:
        """Send the request's body. Returns when the client is gone, as long as the service takes any of it."""
        await self._front.invite_body()
        try:
            while not self._is_deaf:
                event = await self._front.event(self._limits.body_stall_s)
                await self._give(h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event)
                if isinstance(event, h11.EndOfMessage):
                    await self._front.watch()
                    return
        except GoneError:
            return
        await self._pass_over_body()

    async def _pass_over_body(self) -> None:
        """Take what the service does not, for ever. Whoever brings its answer out finds the end of that.

        The service may have answered before it closed, and many a client sends all that it has before it reads.
        """
        with contextlib.suppress(GoneError):
            while isinstance(await self._front.event(math.inf), h11.Data):
                pass
        await trio.sleep_forever()

    async def _give(self, event: Any) -> None:
        try:
            data = self._back.send(event)
        except h11.LocalProtocolError:
            self._is_deaf = True
            return
        if data:
            await self._give_raw(data)

    async def _give_raw(self, data: bytes) -> None:
        try:
            with trio.fail_after(self._limits.take_stall_s):
                await self._stream.send_all(data)
        except (*_BROKEN, trio.TooSlowError):
            self._is_deaf = True

    # -- out ---------------------------------------------------------------------------------------------------------

    async def _bring_out(self) -> None:
        head = await self._head()
        if isinstance(head, h11.InformationalResponse):
            await self._change(head)
            return
        headers = to_visitor(head.headers.raw_items(), self._view)
        if any(name.lower() == b"content-type" and value.lower().startswith(_EVENTS) for name, value in headers):
            self._endless.set()
        if self._front.unread:
            headers.append((b"Connection", b"close"))
        await self._front.send(h11.Response(status_code=head.status_code, headers=headers, reason=head.reason))
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                await self._front.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._front.send(h11.EndOfMessage())
                return
            else:
                raise _CutError

    async def _head(self) -> h11.Response | h11.InformationalResponse:
        try:
            with trio.fail_after(self._limits.answer_s):
                while True:
                    event = await self._next()
                    if isinstance(event, h11.Response):
                        return event
                    if isinstance(event, h11.InformationalResponse):
                        if event.status_code == 101:
                            return event
                        continue
                    raise _CutError
        except _CutError:
            raise RefusalError(
                502, "ServiceUnreachable", "Service is not reachable: it closed the connection without an HTTP answer"
            ) from None
        except trio.TooSlowError:
            raise RefusalError(
                504, "ServiceTimeout", f"Service is not reachable: no answer in {self._limits.answer_s:g} s"
            ) from None

    async def _next(self) -> Any:
        try:
            while (event := self._back.next_event()) is h11.NEED_DATA:
                self._back.receive_data(await self._receive())
        except (h11.RemoteProtocolError, *_BROKEN):
            raise _CutError from None
        return event

    async def _receive(self) -> bytes:
        """The service's next bytes; ``b""`` at their end.

        A service that closes with some of the request unread has its kernel reset the connection, behind what it has
        said. That is the end of a short answer; of a long one some may be lost, which only a reset would tell.
        """
        try:
            data = bytes(await self._stream.receive_some(_READ_BYTES))
        except trio.BrokenResourceError as error:
            if not isinstance(error.__cause__, ConnectionResetError) or self._received_bytes > _SURE_BYTES:
                raise
            data = b""
        self._received_bytes += len(data)
        return data

    # -- a changed connection ----------------------------------------------------------------------------------------

    async def _change(self, head: h11.InformationalResponse) -> None:
        """Pass bytes both ways from here on, whatever they mean."""
        self._watching.cancel()
        self._endless.set()
        headers = to_visitor(head.headers.raw_items(), self._view)
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", self._upgrade or b"")]
        await self._front.send(h11.InformationalResponse(status_code=101, headers=headers, reason=head.reason))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_in, nursery.cancel_scope)
            await self._pass_out()
            nursery.cancel_scope.cancel()

    async def _pass_in(self, scope: trio.CancelScope) -> None:
        data = self._front.connection.trailing_data[0] or await self._front.receive()
        while data and not self._is_deaf:
            await self._give_raw(data)
            data = await self._front.receive()
        with contextlib.suppress(*_BROKEN):
            await self._stream.send_eof()
        scope.deadline = trio.current_time() + self._limits.goodbye_s

    async def _pass_out(self) -> None:
        data = self._back.trailing_data[0]
        with contextlib.suppress(*_BROKEN):
            data = data or bytes(await self._stream.receive_some(_READ_BYTES))
            while data:
                await self._front.send_raw(data)
                data = bytes(await self._stream.receive_some(_READ_BYTES))

    async def _end_when_stopping(self, scope: trio.CancelScope) -> None:
        """What has no end of its own would hold up the end of the server."""
        await self._stopping.wait()
        await self._endless.wait()  # what has an end is given its while by the server
        scope.cancel()


def upgrade_of(request: h11.Request) -> bytes | None:
    """What a request asks to change the connection to."""
    tokens: set[bytes] = set()
    wanted = None
    for name, value in request.headers:
        if name == b"connection":
            tokens |= {token.strip().lower() for token in value.split(b",")}
        elif name == b"upgrade":
            wanted = value.strip()
    return wanted if b"upgrade" in tokens and wanted and wanted.lower() != b"h2c" else None
