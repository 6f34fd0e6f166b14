"""Error answers of a data plane as exceptions.

Source: protocol.md §3.4; ``operation``, ``error_type`` and ``field`` in the body are our servers' own.
"""

from __future__ import annotations

from typing import Any

import httpx

from sandboxrt.errors import (
    CommandTimeoutError,
    ResourceNotFoundError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxNotReadyError,
    SandboxOperationError,
    ValidationError,
)
from sandboxrt.protocol.rest_errors import parse_error

__all__ = ["dataplane_error"]

_OPERATIONS = {"WriteError": "write", "ReadError": "read", "CommandError": "command"}


def dataplane_error(answer: httpx.Response, operation: str | None = None) -> SandboxClientError:
    """The exception for an answer that is no success; ``operation`` is what was asked for."""
    try:
        body: Any = answer.json()
    except ValueError:
        body = None
    said = parse_error(body, f"{answer.request.method} {answer.url.path}: HTTP {answer.status_code}")
    detail = body.get("detail") if isinstance(body, dict) else None
    more = detail if isinstance(detail, dict) else {}
    word, status = said.error, answer.status_code
    if word in _OPERATIONS:
        precise = more.get("error_type")
        return SandboxOperationError(said.message, _OPERATIONS[word], precise if isinstance(precise, str) else word)
    if status == 403:
        return SandboxOperationError(said.message, operation, "PermissionDenied")
    if status == 502 and word == "ConnectionError":
        return SandboxConnectionError(said.message)
    if (status, word) in ((400, "NotReady"), (503, "ServiceUnavailable")):
        return SandboxNotReadyError(said.message)
    if status == 408 and word == "CommandTimeout":
        return CommandTimeoutError(said.message)
    if status == 404 or word == "FileNotFound":
        return ResourceNotFoundError(said.message, "file")
    if status == 422:
        field = more.get("field")
        return ValidationError(said.message, field if isinstance(field, str) else said.field, said.details, word)
    if status == 507:
        return SandboxOperationError(said.message, operation, "NoSpace")
    return SandboxClientError(said.message)
