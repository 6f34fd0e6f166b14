"""One line of JSON for each request and each WebSocket, when it has ended; and the counters' food.

Neither keys nor bodies nor query strings are written: a query has the paths of files.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandboxrt.server.auth import Tenant
from sandboxrt.server.metrics import Metrics

__all__ = ["AccessLog"]

_log = logging.getLogger("sandboxrt.server.access")
_MAX_PATH = 512


class AccessLog:
    """Notes what an application answers.

    Args:
        app: The application.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] not in ("http", "websocket"):
            return
        started = time.monotonic()
        status, sent_bytes = 0, 0
        request_id = scope["sandboxrt.request_id"] = uuid.uuid4().hex

        async def noting(message: Message) -> None:
            nonlocal status, sent_bytes
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                    message = {
                        **message,
                        "headers": [*message.get("headers", ()), (b"x-request-id", request_id.encode())],
                    }
                case "websocket.accept":
                    status = 101
                case "http.response.body":
                    sent_bytes += len(message.get("body", b""))
                case "websocket.send":
                    sent_bytes += len(message.get("text") or message.get("bytes") or b"")
            await send(message)

        kind = scope["type"]
        self._metrics.open[kind] += 1
        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.open[kind] -= 1
            self._write(scope, status, sent_bytes, time.monotonic() - started)

    def _write(self, scope: Scope, status: int, sent_bytes: int, seconds: float) -> None:
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        route = scope.get("sandboxrt.route", "unknown")
        self._metrics.finished(method, route, status, seconds)
        if not _log.isEnabledFor(logging.INFO):
            return
        tenant = scope.get("sandboxrt.tenant")
        client = scope.get("client")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": scope["sandboxrt.request_id"],
            "client": client[0] if client else None,
            "key": tenant.key_id if isinstance(tenant, Tenant) else None,
            "method": method,
            "path": scope["raw_path"].decode("latin-1")[:_MAX_PATH],
            "route": route,
            "status": status,
            "bytes": sent_bytes,
            "ms": round(seconds * 1000, 3),
        }
        _log.info("%s", json.dumps(line))
