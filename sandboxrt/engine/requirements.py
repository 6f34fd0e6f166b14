"""What must be there before a container is started: its runtime, its isolation, its limits."""

from __future__ import annotations

from sandboxrt.engine.base import ContainerSpec
from sandboxrt.engine.findings import RuntimeFacts
from sandboxrt.errors import EngineUnavailableError, IsolationError
from sandboxrt.models import Isolation, IsolationReport

__all__ = ["require_isolation", "require_runtime"]

_LIMIT_PROPERTIES: tuple[tuple[str, Isolation], ...] = (
    ("vcpus", Isolation.CPU_LIMIT),
    ("mem_bytes", Isolation.MEMORY_LIMIT),
    ("pids", Isolation.PIDS_LIMIT),
    ("disk_bytes", Isolation.DISK_LIMIT),
    ("inotify_instances", Isolation.INOTIFY_LIMIT),
)


def require_runtime(runtime: RuntimeFacts) -> None:
    """Refuse a runtime that is not there.

    Raises:
        EngineUnavailableError: With what to install or to use instead.
    """
    if runtime.path is None:
        raise EngineUnavailableError(f"the OCI runtime {runtime.name!r} is not installed: {runtime.how_to_get}")


def require_isolation(spec: ContainerSpec, report: IsolationReport) -> None:
    """Refuse what this host cannot give.

    Raises:
        IsolationError: A property or limit of the spec is missing; it names all that are.
    """
    missing = [prop.value for prop in report.missing(spec.require)]
    unenforced = [
        prop.value
        for name, prop in _LIMIT_PROPERTIES
        if getattr(spec.limits, name) is not None and not report.has(prop) and not spec.allow_unenforced_limits
    ]
    if missing:
        raise IsolationError(
            f"this host does not provide {', '.join(missing)}; `sandboxrt doctor` says why and how to get it, "
            "and require= says what you can do without",
            missing,
        )
    if unenforced:
        raise IsolationError(
            f"this host cannot enforce {', '.join(unenforced)}; `sandboxrt doctor` says how to change that, "
            "allow_unenforced_limits=True accepts it",
            unenforced,
        )
