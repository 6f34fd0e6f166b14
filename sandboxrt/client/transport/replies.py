"""Error answers of a data plane as exceptions.

Source: protocol.md §3.4; ``operation``, ``error_type`` and ``field`` in the body are our servers' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from sandboxrt.errors import (
    CommandTimeoutError,
    ResourceNotFoundError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxNotReadyError,
    SandboxOperationError,
    ValidationError,
)
from sandboxrt.protocol.rest_errors import HOST_DISK_FULL, host_disk_full, parse_error

__all__ = ["dataplane_error", "socket_error"]

_OPERATIONS = {"WriteError": "write", "ReadError": "read", "CommandError": "command"}
_REFUSALS = {403: "PermissionDenied", 507: "NoSpace"}
_SOCKET_REFUSALS = {(400, "NotReady"), (401, "Unauthorized"), (404, "NotFound")}
"""What a data plane has to say for good; a proxy's own pages have no such words."""


def dataplane_error(answer: httpx.Response, operation: str | None = None) -> SandboxClientError:
    """The exception for an answer that is no success; ``operation`` is what was asked for."""
    try:
        body: Any = answer.json()
    except ValueError:
        body = None
    fallback = f"{answer.request.method} {answer.url.path}: HTTP {answer.status_code}"
    return _error(answer.status_code, body, fallback, operation)


def socket_error(status: int, body: object) -> SandboxClientError | None:
    """The exception for a refused WebSocket, where the data plane itself says why; ``None`` for anybody else's word."""
    word = parse_error(body, "").error
    if word is None or (status, word) not in _SOCKET_REFUSALS:
        return None
    return _error(status, body, "", None)


def _error(status: int, body: object, fallback: str, operation: str | None) -> SandboxClientError:
    said = parse_error(body, fallback)
    detail = body.get("detail") if isinstance(body, dict) else None
    more = detail if isinstance(detail, dict) else {}
    word = said.error
    if word in _OPERATIONS or word == HOST_DISK_FULL:
        return _operation_error(said.message, word, more, operation)
    if status == 401:
        return SandboxAuthenticationError(said.message)
    if status in _REFUSALS:
        return SandboxOperationError(said.message, operation, _REFUSALS[status])
    if status == 502 and word == "ConnectionError":
        return SandboxConnectionError(said.message)
    if (status, word) in ((400, "NotReady"), (503, "ServiceUnavailable")):
        return SandboxNotReadyError(said.message)
    if status == 408 and word == "CommandTimeout":
        return CommandTimeoutError(said.message)
    if status == 404 or word == "FileNotFound":
        kind = more.get("resource_type")
        return ResourceNotFoundError(said.message, kind if isinstance(kind, str) else "file")
    if status == 422:
        field = more.get("field")
        return ValidationError(said.message, field if isinstance(field, str) else said.field, said.details, word)
    return SandboxClientError(said.message)


def _operation_error(message: str, word: str, more: Mapping[str, Any], operation: str | None) -> SandboxOperationError:
    precise = more.get("error_type")
    if HOST_DISK_FULL in (word, precise):
        return host_disk_full(message, more, operation)
    return SandboxOperationError(message, _OPERATIONS[word], precise if isinstance(precise, str) else word)
