"""Tells a client that its connection ends when its request was answered before all of it was read.

What is left of such a request stands before the next one, so the server closes the connection. A client that is not
told sends its next request into the closing connection, and loses it.

Source: ours.
"""

from __future__ import annotations

import attrs
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
        unread = True

        async def noting() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                unread = False
            return message

        async def telling(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self.app(scope, noting, telling)


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
