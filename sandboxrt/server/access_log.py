"""One line of JSON for each request and each WebSocket, when it has ended; and the counters' food.

Neither keys nor bodies nor query strings are written: a query has the paths of files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import attrs
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandboxrt.server.auth import Tenant
from sandboxrt.server.metrics import Metrics

__all__ = ["AccessLog", "Visit"]

_log = logging.getLogger("sandboxrt.server.access")
_MAX_PATH = 512


@attrs.frozen(kw_only=True)
class Visit:
    """A request that the application never saw: one to a service or a file."""

    method: str
    path: str
    route: str
    client: str | None
    status: int
    sent_bytes: int
    seconds: float


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

    @contextlib.contextmanager
    def visiting(self) -> Iterator[None]:
        """Count a visit as under way, for the length of the block."""
        self._metrics.open["http"] += 1
        try:
            yield
        finally:
            self._metrics.open["http"] -= 1

    def write(self, visit: Visit) -> None:
        """Note a visit that has ended."""
        self._metrics.finished(visit.method, visit.route, visit.status, visit.seconds)
        if _log.isEnabledFor(logging.INFO):
            line = {
                "time": _now(),
                "request_id": uuid.uuid4().hex,
                "client": visit.client,
                "key": None,
                "method": visit.method,
                "path": visit.path[:_MAX_PATH],
                "route": visit.route,
                "status": visit.status,
                "bytes": visit.sent_bytes,
                "ms": round(visit.seconds * 1000, 3),
            }
            _log.info("%s", json.dumps(line))

    def _write(self, scope: Scope, status: int, sent_bytes: int, seconds: float) -> None:
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope["method"]
        route = scope.get("sandboxrt.route", "unknown")
        self._metrics.finished(method, route, status, seconds)
        if not _log.isEnabledFor(logging.INFO):
            return
        tenant = scope.get("sandboxrt.tenant")
        client = scope.get("client")
        line = {
            "time": _now(),
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
        if (commands := scope.get("sandboxrt.commands")) is not None:
            line["commands"] = commands
        _log.info("%s", json.dumps(line))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
