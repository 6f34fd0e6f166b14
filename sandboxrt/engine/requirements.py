"""What must be there before a container is started: its runtime, its isolation, its limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sandboxrt.engine.base import ContainerSpec
from sandboxrt.engine.findings import BY_RUNTIME, HostFacts, RuntimeFacts
from sandboxrt.errors import EngineUnavailableError, IsolationError
from sandboxrt.models import Isolation, IsolationReport

__all__ = ["LIMIT_PROPERTIES", "require_container", "require_isolation", "require_runtime"]

LIMIT_PROPERTIES: Mapping[str, Isolation] = {
    "vcpus": Isolation.CPU_LIMIT,
    "mem_bytes": Isolation.MEMORY_LIMIT,
    "pids": Isolation.PIDS_LIMIT,
    "disk_bytes": Isolation.DISK_LIMIT,
    "inotify_instances": Isolation.INOTIFY_LIMIT,
}
"""What enforces which field of :class:`~sandboxrt.models.Limits`."""


def require_runtime(runtime: RuntimeFacts) -> None:
    """Refuse a runtime that is not there.

    Raises:
        EngineUnavailableError: With what to install or to use instead.
    """
    if runtime.path is None:
        raise EngineUnavailableError(f"the OCI runtime {runtime.name!r} is not installed: {runtime.how_to_get}")


def require_container(report: IsolationReport, facts: HostFacts) -> None:
    """Refuse a host that runs no container at all, whatever is required of it.

    Raises:
        EngineUnavailableError: With the cause and what helps.
    """
    if not facts.container.ok:
        raise EngineUnavailableError(f"sandboxes cannot run here: {_reasons(report, BY_RUNTIME)}")


def require_isolation(spec: ContainerSpec, report: IsolationReport) -> None:
    """Refuse what this host cannot give.

    Raises:
        IsolationError: A property or limit of the spec is missing; it names all that are, the cause and what helps.
    """
    missing = report.missing(spec.require)
    unenforced = tuple(
        prop
        for name, prop in LIMIT_PROPERTIES.items()
        if getattr(spec.limits, name) is not None and not report.has(prop) and not spec.allow_unenforced_limits
    )
    if missing:
        raise IsolationError(
            f"this host does not provide {_names(missing)}: {_reasons(report, missing)}. "
            "`sandboxrt doctor` tries it again; require= says what you can do without",
            [prop.value for prop in missing],
        )
    if unenforced:
        raise IsolationError(
            f"this host cannot enforce {_names(unenforced)}: {_reasons(report, unenforced)}. "
            "`sandboxrt doctor` tries it again; allow_unenforced_limits=True accepts it",
            [prop.value for prop in unenforced],
        )


def _names(props: Iterable[Isolation]) -> str:
    return ", ".join(prop.value for prop in props)


def _reasons(report: IsolationReport, props: Iterable[Isolation]) -> str:
    """Each cause once, with what helps."""
    told = dict.fromkeys((report.findings[prop].detail, report.findings[prop].fix) for prop in props)
    return "; ".join(f"{detail}. What helps: {fix}" if fix else detail for detail, fix in told)
