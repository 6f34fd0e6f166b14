"""Path segments as clients write them: ``%2F`` is part of a name, ``/`` parts two.

Source: protocol.md §2.5 (references to snapshots).
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["WholeSegments", "parameter"]


class WholeSegments:
    """Gives an application paths in which an escaped slash stays escaped, so that it parts nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        segments = (_decode(segment) for segment in scope["raw_path"].split(b"/"))
        # In place: what the routes note in the scope is for those outside of this too.
        scope["path"] = "/".join(text.replace("%", "%25").replace("/", "%2F") for text in segments)
        await self._app(scope, receive, send)


def parameter(request: HTTPConnection, name: str) -> str:
    """A parameter of the path, as the client meant it."""
    return str(request.path_params[name]).replace("%2F", "/").replace("%25", "%")


def _decode(segment: bytes) -> str:
    return unquote_to_bytes(segment).decode("utf-8", "replace")
