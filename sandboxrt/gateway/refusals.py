"""What a visitor is told when there is nothing for it: a status, a word and a sentence.

Source: protocol.md §6 (the texts that begin the sentences).
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import attrs

from sandboxrt.errors import (
    ClientClosedError,
    ResourceNotFoundError,
    SandboxClientError,
    SandboxNotReadyError,
    SandboxOperationError,
    TunnelConnectionRefusedError,
    TunnelPortNotAllowedError,
    ValidationError,
)

__all__ = ["RefusalError", "unreachable", "without_file"]


@attrs.define
class RefusalError(Exception):
    """The answer instead of the service's own.

    Attributes:
        status: HTTP status.
        word: For programs.
        message: For people.
        headers: More headers.
    """

    status: int
    word: str
    message: str
    headers: Mapping[str, str] = attrs.field(factory=dict)

    def body(self, *, as_json: bool) -> tuple[str, bytes]:
        """Media type and body: JSON as the API's errors for programs, a plain line for browsers."""
        if as_json:
            return "application/json", json.dumps({"detail": {"error": self.word, "message": self.message}}).encode()
        return "text/plain; charset=utf-8", (self.message + "\n").encode()


def unreachable(error: SandboxClientError) -> RefusalError:
    """The answer when a service cannot be connected to."""
    text = f"Service is not reachable: {error.args[0] if error.args else error}"
    match error:
        case TunnelConnectionRefusedError():
            return RefusalError(502, "ServiceUnreachable", text)
        case TunnelPortNotAllowedError():
            return RefusalError(403, "PortNotAllowed", text)
        case ResourceNotFoundError():
            return RefusalError(404, "NotFound", "Service is not reachable: there is no such sandbox any more")
        case SandboxNotReadyError() | ClientClosedError():
            return RefusalError(503, "NotReady", text, {"retry-after": "1"})
        case SandboxOperationError(error_type="TooManyConnections"):
            return RefusalError(429, "TooManyRequests", text, {"retry-after": "1"})
    return RefusalError(502, "ServiceUnreachable", text)


def without_file(error: SandboxClientError) -> RefusalError:
    """The answer when a file cannot be sent."""
    text = str(error.args[0] if error.args else error)
    match error:
        case ResourceNotFoundError(resource_type="file"):
            return RefusalError(404, "FileNotFound", text)
        case ResourceNotFoundError():
            return RefusalError(404, "NotFound", "There is no such sandbox any more")
        case SandboxNotReadyError() | ClientClosedError():
            return RefusalError(503, "NotReady", text, {"retry-after": "1"})
        case SandboxOperationError(error_type="PermissionDenied"):
            return RefusalError(403, "PermissionDenied", text)
        case ValidationError():
            return RefusalError(404, "FileNotFound", text)
    return RefusalError(404, "ReadError", text)
