"""What the control plane answers when something cannot be done.

Source: protocol.md §2.9.
"""

from __future__ import annotations

import logging
import uuid

from starlette.responses import JSONResponse, Response

from sandboxrt.errors import (
    ClientClosedError,
    HostDiskFullError,
    QuotaExceededError,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxNotReadyError,
    ValidationError,
)
from sandboxrt.protocol.rest_errors import (
    HOST_DISK_FULL,
    HOST_DISK_FULL_STATUS,
    error_to_json,
    faults_to_json,
    host_disk_full_to_json,
)
from sandboxrt.server.replies import BodyError, BusyError

__all__ = ["control_reply", "internal_error", "not_implemented"]

_log = logging.getLogger("sandboxrt.server")
_RETRY = {"Retry-After": "1"}
_WORDS: tuple[tuple[type[SandboxClientError], int, str], ...] = (
    (SandboxAuthenticationError, 401, "Unauthorized"),
    (ResourceNotFoundError, 404, "NotFound"),
    (ResourceTimeoutError, 408, "Timeout"),
    (ResourceNameConflictError, 409, "NameConflict"),
    (ResourceAlreadyExistsError, 409, "AlreadyExists"),
    (ResourceInUseError, 409, "InUse"),
    (SandboxNotReadyError, 400, "NotReady"),
    (BusyError, 429, "TooManyRequests"),
    (ClientClosedError, 503, "ServiceUnavailable"),
)


def control_reply(error: SandboxClientError) -> Response:
    """The answer that makes a client raise what was raised here."""
    message = str(error.args[0]) if error.args else str(error)
    match error:
        case BodyError(status=status, error=word):
            return JSONResponse(error_to_json(word, message), status)
        case ValidationError():
            return JSONResponse(faults_to_json(error), 422)
        case HostDiskFullError():
            body = error_to_json(HOST_DISK_FULL, message, **host_disk_full_to_json(error))
            # Official clients repeat what failed with such a status, unless they are told not to.
            return JSONResponse(body, HOST_DISK_FULL_STATUS, {"x-should-retry": "false"})
        case ResourceCreationError(error_type=error_type):
            return JSONResponse(error_to_json(error_type or "SandboxConfig", message), 422)
        case QuotaExceededError():
            # Later helps no more than now does: somebody has to delete something.
            return JSONResponse(error_to_json("QuotaExceeded", message), 429, {"Retry-After": "0"})
    for kind, status, word in _WORDS:
        if isinstance(error, kind):
            return JSONResponse(error_to_json(word, message), status, _RETRY if status in (429, 503) else None)
    return internal_error(error)


def internal_error(error: BaseException) -> Response:
    """The answer to a fault of the server's own: an id, under which the log has the reason."""
    error_id = uuid.uuid4().hex
    _log.error("request failed, error_id %s", error_id, exc_info=error)
    body = error_to_json("InternalError", "The server failed; its log has the reason", error_id=error_id)
    return JSONResponse(body, 500)


def not_implemented(what: str) -> Response:
    """The answer for what this server does not do yet."""
    return JSONResponse(error_to_json("NotImplemented", f"This server has no {what} yet"), 501)
