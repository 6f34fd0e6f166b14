"""What the data plane answers when something cannot be done, and how it reads the JSON that it is asked with.

Source: protocol.md §3.4. ``operation``, ``error_type`` and ``field`` beside ``error`` and ``message`` are ours; the
official clients pass over them.
"""

from __future__ import annotations

import json
from typing import Any

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from sandboxrt.errors import (
    ClientClosedError,
    CommandNotFoundError,
    CommandTimeoutError,
    HostDiskFullError,
    OutputLostError,
    ResourceInUseError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxNotReadyError,
    SandboxOperationError,
    ValidationError,
)
from sandboxrt.protocol.exec import ErrorFrame
from sandboxrt.protocol.rest_errors import HOST_DISK_FULL, HOST_DISK_FULL_STATUS, host_disk_full_to_json

__all__ = [
    "MAX_JSON_BYTES",
    "BodyError",
    "BusyError",
    "error_reply",
    "frame_reply",
    "pass_over_body",
    "read_json",
    "reply",
]

MAX_JSON_BYTES = 4 * 1024**2
"""The longest JSON body that is read: a command, its environment and its input."""

_BODY_S = 60.0
_OPERATIONS = {"read": "ReadError", "write": "WriteError", "search": "ReadError"}


class BodyError(SandboxClientError):
    """A request's body cannot be used; ``status`` is the HTTP status that says so, ``error`` its word."""

    def __init__(self, message: str, status: int = 400, error: str = "InvalidRequest") -> None:
        super().__init__(message)
        self.status = status
        self.error = error


class BusyError(SandboxClientError):
    """Too much is under way at once; nothing was done, so the same request may come again."""


_WORDS: tuple[tuple[type[SandboxClientError], int, str], ...] = (
    (BusyError, 429, "TooManyRequests"),
    (SandboxAuthenticationError, 401, "Unauthorized"),
    (SandboxNotReadyError, 400, "NotReady"),
    (CommandNotFoundError, 404, "CommandNotFound"),
    (ResourceTimeoutError, 503, "NotReady"),
    (ResourceInUseError, 409, "InUse"),
    (ClientClosedError, 503, "ServiceUnavailable"),
)


def reply(status: int, error: str, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """An error in the documented shape."""
    detail = {"error": error, "message": message, **{name: value for name, value in more.items() if value is not None}}
    return JSONResponse({"detail": detail}, status, headers=headers)


def error_reply(error: SandboxClientError) -> Response:
    """The answer that makes a client raise what the host has raised."""
    message = str(error.args[0]) if error.args else str(error)
    match error:
        case BodyError(status=status, error=word):
            return reply(status, word, message)
        case SandboxOperationError() if not isinstance(error, CommandNotFoundError):
            return _operation_reply(error, message)
        case ValidationError(field=field):
            return reply(422, "ValidationError", message, field=field)
        case ResourceNotFoundError(resource_type="file"):
            return reply(404, "FileNotFound", message)
        case ResourceNotFoundError(resource_type=missing):
            return reply(404, "NotFound", message, resource_type=missing)
    for kind, status, word in _WORDS:
        if isinstance(error, kind):
            return reply(status, word, message, headers={"Retry-After": "1"} if status in (429, 503) else None)
    return reply(500, "InternalError", message)


def frame_reply(frame: ErrorFrame) -> Response:
    """The answer for a command that ended with an error, to a client that waits for its whole result."""
    if frame.error_type == "CommandTimeout":
        return reply(408, "CommandTimeout", frame.error)
    if frame.error_type in ("CommandNotFound", "SessionExpired"):
        return reply(404, frame.error_type, frame.error)
    if frame.error_type == "CommandInterrupted":
        return reply(409, frame.error_type, frame.error)
    return reply(400, "CommandError", frame.error, operation="command", error_type=frame.error_type)


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object that is the request's body.

    Raises:
        BodyError: It is none, is too long, or does not come.
    """
    body = await _read_body(request)
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BodyError("The body must be a JSON object") from None
    if not isinstance(value, dict):
        raise BodyError("The body must be a JSON object")
    return value


async def pass_over_body(request: Request) -> None:
    """Take a body that says nothing. One that is left unread costs the client its connection, without a word.

    Raises:
        BodyError: It is too long, or does not come.
    """
    await _read_body(request)


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    try:
        with trio.fail_after(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_JSON_BYTES:
                    raise BodyError(f"The body is longer than {MAX_JSON_BYTES} bytes", 413, "PayloadTooLarge")
    except trio.TooSlowError:
        raise BodyError("The body does not come", 408, "RequestTimeout") from None
    except ClientDisconnect:
        raise BodyError("The body ends before its end") from None
    return bytes(body)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _operation_reply(error: SandboxOperationError, message: str) -> Response:
    if isinstance(error, HostDiskFullError):
        # Official clients know operations by these words, and such a status as one that may be repeated.
        word = _OPERATIONS.get(error.operation or "", HOST_DISK_FULL)
        more = {"operation": error.operation, "error_type": error.error_type, **host_disk_full_to_json(error)}
        return reply(HOST_DISK_FULL_STATUS, word, message, headers={"x-should-retry": "false"}, **more)
    if isinstance(error, CommandTimeoutError):
        return reply(408, "CommandTimeout", message)
    if isinstance(error, OutputLostError):
        return reply(400, "CommandError", message, error_type=error.error_type)
    operation, error_type = error.operation, error.error_type
    if error_type == "PermissionDenied":
        return reply(403, "PermissionDenied", message, operation=operation, error_type=error_type)
    word = _OPERATIONS.get(operation or "", "CommandError")
    status = 507 if error_type == "NoSpace" else 400
    return reply(status, word, message, operation=operation, error_type=error_type)
