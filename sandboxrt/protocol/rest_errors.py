"""Errors of the control plane on the wire: bodies as servers write them, and the exceptions that clients make of them.

Source: protocol.md §2.9.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final

import attrs

from sandboxrt.errors import (
    HostDiskFullError,
    QuotaExceededError,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxAPIError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxNotReadyError,
    ValidationError,
)

__all__ = [
    "HOST_DISK_FULL",
    "HOST_DISK_FULL_STATUS",
    "Call",
    "ErrorBody",
    "control_error",
    "error_to_json",
    "faults_to_json",
    "host_disk_full",
    "host_disk_full_to_json",
    "parse_error",
]

HOST_DISK_FULL: Final = "HostDiskFull"
"""The word for a server whose file system is full, and the status that goes with it: Insufficient Storage."""
HOST_DISK_FULL_STATUS: Final = 507


def error_to_json(error: str, message: str, *, error_id: str | None = None, **more: Any) -> dict[str, Any]:
    """The standard body: ``{"detail": {"error": ..., "message": ...}}``; members that are ``None`` are left out."""
    detail = {"error": error, "message": message, "error_id": error_id, **more}
    return {"detail": {name: value for name, value in detail.items() if value is not None}}


def host_disk_full_to_json(error: HostDiskFullError) -> dict[str, Any]:
    """What an error body has besides word and message, so that the other side can raise the same."""
    return {
        "folder": error.folder,
        "free_bytes": error.free_bytes,
        "min_free_bytes": error.min_free_bytes,
        "usage": error.usage,
        "resource_type": error.resource_type,
    }


def host_disk_full(message: str, detail: Mapping[str, Any], operation: str | None = None) -> HostDiskFullError:
    """The error of such a body; what has a wrong type in it counts as left out.

    Args:
        message: For people.
        detail: The body's ``detail``.
        operation: What was asked for.
    """

    def typed(name: str, kind: type) -> Any:
        value = detail.get(name)
        return value if isinstance(value, kind) and not isinstance(value, bool) else None

    usage = typed("usage", dict) or {}
    return HostDiskFullError(
        message,
        folder=typed("folder", str),
        free_bytes=typed("free_bytes", int),
        min_free_bytes=typed("min_free_bytes", int),
        usage={kind: size for kind, size in usage.items() if isinstance(size, int)},
        resource_type=typed("resource_type", str),
        operation=operation,
    )


def faults_to_json(error: ValidationError) -> dict[str, Any]:
    """The body that lists what is wrong with which field."""
    details = [dict(detail) for detail in error.details]
    message = str(error.args[0]) if error.args else str(error)
    loc = ["body", *([error.field] if error.field else [])]
    return {"detail": details or [{"loc": loc, "msg": message, "type": "value_error"}]}


@attrs.frozen
class ErrorBody:
    """What an error response says, whatever its shape.

    Attributes:
        message: For people; the fallback where the body has none.
        error: The server's word for what went wrong, if it has one.
        details: The entries of a body that lists faults.
        more: All of a body that has one error.
    """

    message: str
    error: str | None = None
    details: tuple[Mapping[str, Any], ...] | None = None
    more: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def field(self) -> str | None:
        """The field of the first fault."""
        loc = self.details[0].get("loc") if self.details else None
        return str(loc[-1]) if isinstance(loc, list) and loc else None

    @property
    def is_value_error(self) -> bool:
        """Whether some fault is a value out of range."""
        return any(detail.get("type") == "value_error" for detail in self.details or ())


def parse_error(body: object, fallback: str) -> ErrorBody:
    """An error response's parsed JSON (``None`` where it is none) as what it says."""
    detail = body.get("detail") if isinstance(body, dict) else None
    if isinstance(detail, str):
        return ErrorBody(detail or fallback)
    if isinstance(detail, list):
        entries = tuple(entry for entry in detail if isinstance(entry, dict))
        texts = [entry["msg"] for entry in entries if isinstance(entry.get("msg"), str)]
        return ErrorBody("; ".join(texts) or fallback, None, entries)
    if not isinstance(detail, dict):
        return ErrorBody(fallback)
    message, word, error_id = detail.get("message"), detail.get("error"), detail.get("error_id")
    text = message if isinstance(message, str) and message else fallback
    if isinstance(error_id, str) and error_id:
        text = f"{text} (error_id={error_id})"
    return ErrorBody(text, word if isinstance(word, str) and word else None, more=detail)


class Call(enum.Enum):
    """What was asked, as far as it changes what an error means."""

    CREATE_SANDBOX = enum.auto()
    UPDATE_SANDBOX = enum.auto()
    SANDBOX = enum.auto()
    """Any other request about one sandbox."""
    SNAPSHOT = enum.auto()
    """A request about one snapshot."""
    SNAPSHOT_NAME = enum.auto()
    """The tags of a snapshot's name."""
    CREATE_SNAPSHOT = enum.auto()
    REGISTRY = enum.auto()
    """A request about one named registry."""
    LIST = enum.auto()
    OTHER = enum.auto()


def control_error(
    status: int, body: ErrorBody, call: Call, *, subject: str = "", new_name: str = "", url: str = ""
) -> SandboxClientError:
    """The exception for an error response.

    Args:
        status: The HTTP status, 300 or more.
        body: What the response says.
        call: What was asked.
        subject: The name or id that was asked about.
        new_name: What an update would rename it to.
        url: What was asked, for a list that is not there.
    """
    special: SandboxClientError | None
    if body.error == HOST_DISK_FULL:
        return host_disk_full(body.message, body.more)
    if call is Call.CREATE_SANDBOX:
        special = _of_create(status, body)
    elif call is Call.CREATE_SNAPSHOT and status == 404:
        special = ResourceNotFoundError(body.message, "registry")
    elif call is Call.REGISTRY:
        special = _of_registry(status, body, subject)
    else:
        special = _of_call(status, call, subject, new_name, url)
    return special or _general(status, body)


def _of_create(status: int, body: ErrorBody) -> SandboxClientError | None:
    if status == 408:
        return ResourceTimeoutError(body.message, "sandbox")
    if status == 404:
        return ResourceNotFoundError(body.message, "snapshot")
    if status == 400 and body.error == "NotReady":
        return SandboxNotReadyError(body.message)
    if status == 422 and not body.is_value_error:
        return ResourceCreationError(body.message, "sandbox", body.error)
    if status == 503:
        return ResourceCreationError(body.message, "sandbox", body.error or "Unschedulable")
    return None


def _of_call(status: int, call: Call, subject: str, new_name: str, url: str) -> SandboxClientError | None:
    if status == 409 and call is Call.UPDATE_SANDBOX:
        return ResourceNameConflictError(f"Sandbox name '{new_name}' already in use", "sandbox")
    if status != 404:
        return None
    match call:
        case Call.SANDBOX | Call.UPDATE_SANDBOX:
            return ResourceNotFoundError(f"Sandbox '{subject}' not found", "sandbox")
        case Call.SNAPSHOT:
            return ResourceNotFoundError(f"Snapshot '{subject}' not found", "snapshot")
        case Call.SNAPSHOT_NAME:
            return ResourceNotFoundError(f"Snapshot name '{subject}' not found", "snapshot")
        case Call.LIST:
            return SandboxAPIError(f"API endpoint not found: {url}. Check that the endpoint serves the sandbox API")
    return None


def _of_registry(status: int, body: ErrorBody, subject: str) -> SandboxClientError | None:
    if status == 404:
        return ResourceNotFoundError(f"Registry '{subject}' not found", "registry")
    if status == 409 and body.error == "NameConflict":
        return ResourceNameConflictError(body.message, "registry")
    if status == 409 and body.error == "InUse":
        return ResourceInUseError(body.message, "registry")
    return ResourceAlreadyExistsError(body.message, "registry") if status == 409 else None


def _general(status: int, body: ErrorBody) -> SandboxClientError:
    match status:
        case 401 | 403:
            return SandboxAuthenticationError(body.message)
        case 404:
            return ResourceNotFoundError(body.message)
        case 422:
            return ValidationError(body.message, body.field, body.details, body.error)
        case 429:
            return QuotaExceededError(body.message, _quota_type(body.message))
        case 502 if body.error == "ConnectionError":
            return SandboxConnectionError(body.message)
        case 500:
            return SandboxAPIError(body.message)
        case 409 if body.error == "AlreadyExists":
            return ResourceAlreadyExistsError(body.message)
        case 409 if body.error == "InUse":
            return ResourceInUseError(body.message)
    return SandboxClientError(body.message)


def _quota_type(message: str) -> str | None:
    text = message.lower()
    if "sandbox" in text and ("count" in text or "limit" in text):
        return "sandbox_count"
    return next((kind for kind in ("cpu", "memory", "storage") if kind in text), None)
