"""Every exception that sandboxrt raises on purpose.

The tree, with the attributes that carry what a caller needs (no message parsing)::

    SandboxClientError
    ├─ SandboxAPIError                    the server failed, or the endpoint is not a sandbox API
    ├─ SandboxAuthenticationError         the API key was refused
    ├─ SandboxConnectionError             network or WebSocket trouble; .stdout .stderr
    │  ├─ SandboxServerReloadError        the server announced a restart
    │  └─ SandboxRetryableConnectionError .retry_after
    │     └─ SandboxConnectTimeoutError
    ├─ ResourceNotFoundError              .resource_type
    ├─ ResourceTimeoutError               .resource_type .last_status
    ├─ ResourceInUseError                 .resource_type .used_by
    ├─ ResourceAlreadyExistsError         .resource_type
    ├─ ResourceNameConflictError          .resource_type
    ├─ ResourceCreationError              .resource_type .error_type
    │  ├─ IsolationError                  .missing: this host gives less isolation than was required
    │  ├─ EngineUnavailableError          a program or kernel feature is missing; the message has the fix
    │  └─ HostDiskFullError               .folder .free_bytes .min_free_bytes .usage: the host keeps what is left; it is
    │                                     a SandboxOperationError, too, for uploads are refused with it
    ├─ ValidationError                    .field .details .error_type
    ├─ QuotaExceededError                 .quota_type
    ├─ DataplaneNotConfiguredError
    ├─ SandboxNotReadyError
    ├─ SandboxOperationError              .operation .error_type .stdout .stderr (a command's output until then)
    │  ├─ CommandTimeoutError             .timeout
    │  ├─ CommandNotFoundError            the session expired, never existed, or lives in another process
    │  │  └─ CommandInterruptedError      it ended with its sandbox or server; how far it came may be unknown
    │  └─ OutputLostError                 .stream .requested_offset .first_offset: a gap, never a silent splice
    ├─ ClientClosedError                  the client (or its runtime) was closed, or belongs to another process
    └─ TunnelError
       ├─ TunnelPortNotAllowedError       .port
       ├─ TunnelConnectionRefusedError    .port
       └─ TunnelUnsupportedVersionError

Names, attributes and constructor arguments of the official clients are kept (protocol.md §9); what is not in that
section is ours, and always a subclass of what the official client would raise, so that existing ``except`` clauses
go on working. Mistakes in local arguments are ``ValueError`` or ``TypeError``, as in the official clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "ClientClosedError",
    "CommandInterruptedError",
    "CommandNotFoundError",
    "CommandTimeoutError",
    "DataplaneNotConfiguredError",
    "EngineUnavailableError",
    "HostDiskFullError",
    "IsolationError",
    "OutputLostError",
    "QuotaExceededError",
    "ResourceAlreadyExistsError",
    "ResourceCreationError",
    "ResourceInUseError",
    "ResourceNameConflictError",
    "ResourceNotFoundError",
    "ResourceTimeoutError",
    "SandboxAPIError",
    "SandboxAuthenticationError",
    "SandboxClientError",
    "SandboxConnectTimeoutError",
    "SandboxConnectionError",
    "SandboxNotReadyError",
    "SandboxOperationError",
    "SandboxRetryableConnectionError",
    "SandboxServerReloadError",
    "TunnelConnectionRefusedError",
    "TunnelError",
    "TunnelPortNotAllowedError",
    "TunnelUnsupportedVersionError",
    "ValidationError",
]


class SandboxClientError(Exception):
    """Base of every error that sandboxrt raises on purpose."""


class SandboxAPIError(SandboxClientError):
    """The server failed (500), or the endpoint does not serve the sandbox API (404 on a list)."""


class SandboxAuthenticationError(SandboxClientError):
    """The server refused the API key (401 or 403)."""


class SandboxConnectionError(SandboxClientError):
    """The network, the WebSocket or the sandbox itself went away.

    Attributes:
        stdout: What had come of a command's standard output, where its connection was lost for good; else empty.
        stderr: The same of its standard error.
    """

    stdout: str = ""
    stderr: str = ""


class SandboxServerReloadError(SandboxConnectionError):
    """The server closed a session because it restarts; attaching again at once is right."""


class SandboxRetryableConnectionError(SandboxConnectionError):
    """A connection failed in a way that is worth another try.

    Attributes:
        retry_after: Seconds to wait before the next try, where the server said so, else ``None``.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SandboxConnectTimeoutError(SandboxRetryableConnectionError):
    """The connection could not be made in time."""


class _ResourceError(SandboxClientError):
    def __init__(self, message: str, resource_type: str | None = None) -> None:
        super().__init__(message)
        self.resource_type = resource_type


class ResourceNotFoundError(_ResourceError):
    """The sandbox, snapshot or file does not exist (``resource_type`` says which kind)."""


class ResourceTimeoutError(_ResourceError):
    """A resource did not reach the awaited state in time; ``last_status`` is the one it was in."""

    def __init__(self, message: str, resource_type: str | None = None, last_status: str | None = None) -> None:
        super().__init__(message, resource_type)
        self.last_status = last_status

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} (last_status: {self.last_status})" if self.last_status else text


class ResourceInUseError(_ResourceError):
    """The resource cannot be removed because others use it; ``used_by`` names them."""

    def __init__(self, message: str, resource_type: str | None = None, used_by: Iterable[str] = ()) -> None:
        super().__init__(message, resource_type)
        self.used_by: tuple[str, ...] = tuple(used_by)


class ResourceAlreadyExistsError(_ResourceError):
    """A resource of that name exists already."""


class ResourceNameConflictError(_ResourceError):
    """The new name belongs to another resource."""


class ResourceCreationError(_ResourceError):
    """Provisioning failed; ``error_type`` is the protocol's word for why (``ImagePull``, ``SandboxConfig``, ...)."""

    def __init__(self, message: str, resource_type: str | None = None, error_type: str | None = None) -> None:
        super().__init__(message, resource_type)
        self.error_type = error_type

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} [{self.error_type}]" if self.error_type else text


class IsolationError(ResourceCreationError):
    """This host gives less isolation than ``require=`` asked for, or cannot enforce a limit.

    Attributes:
        missing: The names of the properties or limits that are missing. ``sandboxrt doctor`` prints how to get them.
    """

    def __init__(self, message: str, missing: Iterable[str] = ()) -> None:
        super().__init__(message, "sandbox", "Isolation")
        self.missing: tuple[str, ...] = tuple(missing)


class EngineUnavailableError(ResourceCreationError):
    """Sandboxes cannot run here: a program or a kernel feature is missing. The message says how to get it."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "sandbox", "EngineUnavailable")


class ValidationError(SandboxClientError):
    """A value was refused; ``field`` names it where it is known."""

    def __init__(
        self,
        message: str,
        field: str | None = None,
        details: Sequence[Mapping[str, Any]] | None = None,
        error_type: str | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.details: list[Mapping[str, Any]] = list(details or ())
        self.error_type = error_type


class QuotaExceededError(SandboxClientError):
    """A quota is used up; ``quota_type`` is ``sandbox_count``, ``cpu``, ``memory``, ``storage`` or ``None``."""

    def __init__(self, message: str, quota_type: str | None = None) -> None:
        super().__init__(message)
        self.quota_type = quota_type


class DataplaneNotConfiguredError(SandboxClientError):
    """The sandbox has no data-plane URL, so nothing can be run in it through this server."""


class SandboxNotReadyError(SandboxClientError):
    """The sandbox is not ready for operations: still provisioning, stopped, or failed."""


class SandboxOperationError(SandboxClientError):
    """An operation inside a sandbox failed.

    Attributes:
        operation: ``"command"``, ``"reconnect"``, ``"read"``, ``"write"``, ``"kill"``, ``"send_input"`` or ``None``.
        error_type: The protocol's word for the reason, e.g. ``"CommandNotFound"``, ``"PermissionDenied"``.
        stdout: What had come of a command's standard output until the error ended it; else empty.
        stderr: The same of its standard error.
    """

    stdout: str = ""
    stderr: str = ""

    def __init__(self, message: str, operation: str | None = None, error_type: str | None = None) -> None:
        super().__init__(message)
        self.operation = operation
        self.error_type = error_type

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} [{self.error_type}]" if self.error_type else text


class HostDiskFullError(ResourceCreationError, SandboxOperationError):
    """The host's file system has too little room left, so nothing new begins there; what runs goes on.

    Sandboxes are not made or started, nothing is captured, built, imported or uploaded. Deleting and stopping work.

    Attributes:
        folder: The host's state folder.
        free_bytes: What its file system has left.
        min_free_bytes: What the host keeps of that, for what runs already and for its records.
        usage: What takes the room in the folder: bytes by kind (``sandboxes``, ``snapshots``, ``records``, ...).
        resource_type: ``"sandbox"`` or ``"snapshot"``, where one was to be made or started, else ``None``.
        operation: ``"write"`` where an upload was refused, else ``None``.
        error_type: ``"HostDiskFull"``.
    """

    def __init__(
        self,
        message: str,
        *,
        folder: str | None = None,
        free_bytes: int | None = None,
        min_free_bytes: int | None = None,
        usage: Mapping[str, int] | None = None,
        resource_type: str | None = None,
        operation: str | None = None,
    ) -> None:
        ResourceCreationError.__init__(self, message, resource_type, "HostDiskFull")
        self.operation = operation
        self.folder = folder
        self.free_bytes = free_bytes
        self.min_free_bytes = min_free_bytes
        self.usage: dict[str, int] = dict(usage or {})

    def __str__(self) -> str:
        return f"{self.args[0]} [{self.error_type}]"


class CommandTimeoutError(SandboxOperationError):
    """A command ran longer than its ``timeout``; its whole process tree was ended.

    Attributes:
        timeout: The limit in seconds, where known.
        stdout: What the command had written to standard output until then.
        stderr: What the command had written to standard error until then.
    """

    def __init__(self, message: str, timeout: float | None = None, *, stdout: str = "", stderr: str = "") -> None:
        super().__init__(message, "command", "CommandTimeout")
        self.timeout = timeout
        self.stdout = stdout
        self.stderr = stderr


class CommandNotFoundError(SandboxOperationError):
    """There is no such command session here: it expired, never existed, or lives in another process."""


class CommandInterruptedError(CommandNotFoundError):
    """A command ended because its sandbox was stopped or deleted, or died, or because its server ended.

    Also raised by a start that was sent again because its answer was lost, and that arrived after such an end: the
    command is not run a second time, and whether it ran to its end, or at all, is not known. ``stdout`` and ``stderr``
    have what had come until then.
    """


class OutputLostError(SandboxOperationError):
    """Output between two offsets is gone: the replay limits of the command were exceeded.

    Attributes:
        stream: ``"stdout"`` or ``"stderr"``.
        requested_offset: The byte offset that was asked for.
        first_offset: The first byte offset that is still there; ``reconnect`` with it to go on knowingly.
    """

    def __init__(self, message: str, *, stream: str, requested_offset: int, first_offset: int) -> None:
        super().__init__(message, "reconnect", "ReadOffsetUnavailable")
        self.stream = stream
        self.requested_offset = requested_offset
        self.first_offset = first_offset


class ClientClosedError(SandboxClientError):
    """The client was closed, its runtime has ended, or the object was made in another process before a fork."""


class TunnelError(SandboxClientError):
    """Base of the tunnel errors."""


class TunnelPortNotAllowedError(TunnelError):
    """The sandbox's policy does not allow tunnels to that port."""

    def __init__(self, message: str, *, port: int) -> None:
        super().__init__(message)
        self.port = port


class TunnelConnectionRefusedError(TunnelError):
    """Nothing listens on that port inside the sandbox."""

    def __init__(self, message: str, *, port: int) -> None:
        super().__init__(message)
        self.port = port


class TunnelUnsupportedVersionError(TunnelError):
    """The two ends of the tunnel speak different versions of the protocol."""
