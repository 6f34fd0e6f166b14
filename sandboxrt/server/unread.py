"""Tells a client that its connection ends when its request was answered before all of it was read.

What is left of such a request stands before the next one, so the server closes the connection. A client that is not
told sends its next request into the closing connection, and loses it. One that is still sending when the connection is
closed loses the answer, because what is unread has the kernel reset the connection: so the rest is read on, within
bounds.

Source: ours.
"""

from __future__ import annotations

import attrs
import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandboxrt.gateway.front import LINGER_BYTES, LINGER_S, LINGER_STALL_S

__all__ = ["CloseUnread"]


@attrs.frozen
class CloseUnread:
    """An application whose early answers say ``Connection: close``."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _has_body(scope):
            await self.app(scope, receive, send)
            return
        unread, withheld = True, False

        async def noting() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                unread = False
            return message

        async def telling(message: Message) -> None:
            nonlocal withheld
            if unread and message["type"] == "http.response.body" and not message.get("more_body", False):
                # Its end would close the connection; the client has the whole answer without it, by its length.
                withheld = True
                message["more_body"] = True
            if unread and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self.app(scope, noting, telling)
        if withheld:
            await _pass_over(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _pass_over(receive: Receive) -> None:
    taken, goes_on = 0, True
    with trio.move_on_after(LINGER_S):
        while goes_on and taken < LINGER_BYTES:
            goes_on = False
            with trio.move_on_after(LINGER_STALL_S):
                message = await receive()
                taken += len(message.get("body", b""))
                goes_on = message["type"] == "http.request" and message.get("more_body", False)


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
