"""The JSON of the control plane: requests and resources to and from the values of ``rest.py`` and ``models.py``.

Two temperaments. What a server is sent is read strictly: every field has a type and a range, and all that is wrong is
told at once, field by field; unknown fields are passed over, fields that stand for something this system does not do
are refused by name. What a client is answered is read leniently: a missing, null or odd field is the default that
protocol.md gives, because other servers are older, newer or terser.

Source: protocol.md §2.2-2.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs

from sandboxrt.models import DEFAULT_LIMITS, Limits, ResourceStatus, RunConfig, Snapshot
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox, CreateSnapshot, SandboxInfo, UpdateSandbox
from sandboxrt.protocol.rest_fields import (
    Cpus,
    Disk,
    Image,
    Labels,
    Memory,
    Millicores,
    Name,
    RunConfigBody,
    Seconds,
    SnapshotName,
    Tag,
    Text,
    Ttl,
    Variables,
    fault,
    invalid,
    structure,
)

__all__ = [
    "DEFAULT_IDLE_TTL_S",
    "Ceilings",
    "capture_snapshot_from_json",
    "capture_snapshot_to_json",
    "create_sandbox_from_json",
    "create_sandbox_to_json",
    "create_snapshot_from_json",
    "create_snapshot_to_json",
    "invalid",
    "run_config_from_json",
    "run_config_to_json",
    "sandbox_from_json",
    "sandbox_to_json",
    "snapshot_from_json",
    "snapshot_to_json",
    "status_from_json",
    "status_to_json",
    "update_sandbox_from_json",
    "update_sandbox_to_json",
]

T = TypeVar("T")

DEFAULT_IDLE_TTL_S = 600
"""What a create that names no idle TTL gets (protocol.md §2.2)."""
DEFAULT_CREATE_TIMEOUT_S = 30


@attrs.frozen(kw_only=True)
class Ceilings:
    """The most that a server lets one sandbox ask for."""

    vcpus: float = 64.0
    mem_bytes: int = 1024**4
    fs_capacity_bytes: int = 8 * 1024**4


# -- what a server is sent -------------------------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _CreateBody:
    wait_for_ready: bool | None = None
    timeout: Seconds | None = None
    snapshot_id: Name | None = None
    snapshot_name: Name | None = None
    snapshot: Name | None = None
    name: Text | None = None
    ttl_seconds: Ttl | None = None
    idle_ttl_seconds: Ttl | None = None
    delete_after_stop_seconds: Ttl | None = None
    vcpus: Cpus | None = None
    cpu_millicores: Millicores | None = None
    mem_bytes: Memory | None = None
    fs_capacity_bytes: Disk | None = None
    labels: Labels | None = None
    run_config: RunConfigBody | None = None
    env_vars: Variables | None = None


@attrs.frozen(kw_only=True)
class _UpdateBody:
    name: Text | None = None
    ttl_seconds: Ttl | None = None
    idle_ttl_seconds: Ttl | None = None
    delete_after_stop_seconds: Ttl | None = None
    run_config: RunConfigBody | None = None


@attrs.frozen(kw_only=True)
class _SnapshotBody:
    name: SnapshotName
    docker_image: Image
    fs_capacity_bytes: Disk
    registry_url: Name | None = None
    registry_username: Text | None = None
    registry_password: Text | None = None
    registry_id: Name | None = None
    tag: Tag | None = None
    run_config: RunConfigBody | None = None


@attrs.frozen(kw_only=True)
class _CaptureBody:
    name: SnapshotName
    tag: Tag | None = None
    fs_capacity_bytes: Disk | None = None
    run_config: RunConfigBody | None = None


_NOT_ON_CREATE = (
    "proxy_config",
    "mount_config",
    "access_delegation",
    "volumes",
    "persistent",
    "preserve_memory_on_stop",
    "restore_memory",
)
_NOT_ON_UPDATE = (*_NOT_ON_CREATE, "vcpus", "cpu_millicores", "mem_bytes", "fs_capacity_bytes", "labels")
_NOT_ON_SNAPSHOT = ("proxy_config", "mount_config")
_NOT_ON_CAPTURE = (
    "docker_image",
    "checkpoint",
    "include_memory",
    "include",
    "image_config",
    "labels",
    "description",
    "proxy_config",
    "mount_config",
)


def create_sandbox_from_json(
    body: object, *, make_name: str, ceilings: Ceilings | None = None, defaults: Limits = DEFAULT_LIMITS
) -> CreateSandbox:
    """A create request as a server is sent it.

    Args:
        body: The parsed JSON.
        make_name: The name for a sandbox that was given none.
        ceilings: The most that may be asked for.
        defaults: The limits of a sandbox that asks for none.

    Raises:
        ValidationError: With every fault in ``details``.
    """
    found = structure(_CreateBody, body, _NOT_ON_CREATE)
    named = [field for field in ("snapshot_id", "snapshot_name", "snapshot") if getattr(found, field)]
    same_name = found.snapshot is not None and found.snapshot == found.snapshot_name and not found.snapshot_id
    if len(named) > 1 and not same_name:
        raise invalid(f"must not be given together with {named[0]}", named[1])
    vcpus = found.vcpus if found.vcpus is not None else _cores(found.cpu_millicores)
    _within(ceilings or Ceilings(), vcpus=vcpus, mem_bytes=found.mem_bytes, fs_capacity_bytes=found.fs_capacity_bytes)
    limits = attrs.evolve(
        defaults,
        vcpus=defaults.vcpus if vcpus is None else vcpus,
        mem_bytes=defaults.mem_bytes if found.mem_bytes is None else found.mem_bytes,
        disk_bytes=defaults.disk_bytes if found.fs_capacity_bytes is None else found.fs_capacity_bytes,
    )
    return CreateSandbox(
        name=found.name or make_name,
        snapshot_id=found.snapshot_id,
        snapshot_name=None if found.snapshot else found.snapshot_name,
        snapshot=found.snapshot,
        wait_for_ready=found.wait_for_ready is not False,
        timeout_s=DEFAULT_CREATE_TIMEOUT_S if found.timeout is None else found.timeout,
        ttl_seconds=found.ttl_seconds,
        idle_ttl_seconds=DEFAULT_IDLE_TTL_S if found.idle_ttl_seconds is None else found.idle_ttl_seconds,
        delete_after_stop_seconds=found.delete_after_stop_seconds,
        limits=limits,
        disk_of_snapshot=found.fs_capacity_bytes is None,
        env=found.env_vars or {},
        labels=found.labels or {},
        run_config=_run_config(found.run_config),
        exclusive=True,
    )


def update_sandbox_from_json(body: object) -> UpdateSandbox:
    """An update request as a server is sent it. Raises ``ValidationError`` with every fault in ``details``."""
    found = structure(_UpdateBody, body, _NOT_ON_UPDATE)
    return UpdateSandbox(
        new_name=found.name,
        ttl_seconds=found.ttl_seconds,
        idle_ttl_seconds=found.idle_ttl_seconds,
        delete_after_stop_seconds=found.delete_after_stop_seconds,
        run_config=_run_config(found.run_config),
    )


def create_snapshot_from_json(body: object) -> CreateSnapshot:
    """A build request as a server is sent it; images come from registries only, never from the server's own files.

    Raises:
        ValidationError: With every fault in ``details``.
    """
    found = structure(_SnapshotBody, body, _NOT_ON_SNAPSHOT)
    return CreateSnapshot(
        name=found.name,
        docker_image=found.docker_image,
        fs_capacity_bytes=found.fs_capacity_bytes,
        registry_url=found.registry_url,
        registry_username=found.registry_username,
        registry_password=found.registry_password,
        registry_id=found.registry_id,
        tag=found.tag,
        run_config=_run_config(found.run_config),
    )


def capture_snapshot_from_json(body: object) -> CaptureSnapshot:
    """A capture request as a server is sent it. Raises ``ValidationError`` with every fault in ``details``."""
    found = structure(_CaptureBody, body, _NOT_ON_CAPTURE)
    request = CaptureSnapshot(
        name=found.name, fs_capacity_bytes=found.fs_capacity_bytes, run_config=_run_config(found.run_config)
    )
    return request if found.tag is None else attrs.evolve(request, tag=found.tag)


def _cores(millicores: int | None) -> float | None:
    return None if millicores is None else millicores / 1000


def _within(ceilings: Ceilings, **asked: float | None) -> None:
    faults: list[tuple[tuple[str | int, ...], str]] = [
        (("body", field), f"must not be more than {getattr(ceilings, field):.15g}")
        for field, value in asked.items()
        if value is not None and value > getattr(ceilings, field)
    ]
    if faults:
        raise fault(faults)


def _run_config(body: RunConfigBody | None) -> RunConfig | None:
    if body is None:
        return None
    return RunConfig(body.user or None, body.work_dir or None, body.env_vars)


# -- what a server answers -------------------------------------------------------------------------------------------


def sandbox_to_json(info: SandboxInfo, *, dataplane_url: str | None = None) -> dict[str, Any]:
    """The sandbox object of protocol.md §2.2, with the fields of every generation."""
    found = attrs.asdict(info, recurse=False)
    found.update(
        dataplane_url=info.dataplane_url if dataplane_url is None else dataplane_url,
        vcpus=_plain(info.vcpus),
        cpu_millicores=None if info.vcpus is None else round(info.vcpus * 1000),
        labels=dict(info.labels),
        run_config=run_config_to_json(info.run_config),
    )
    return found


def snapshot_to_json(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot object of protocol.md §2.5."""
    found = attrs.asdict(snapshot, recurse=False)
    found.update(tags=list(snapshot.tags), run_config=run_config_to_json(snapshot.run_config))
    return found


def status_to_json(status: ResourceStatus) -> dict[str, Any]:
    """The answer of a status request."""
    return {"status": status.status, "status_message": status.status_message}


def run_config_to_json(config: RunConfig | None) -> dict[str, Any] | None:
    """A run configuration with the members that are set, or ``None``."""
    if config is None:
        return None
    members = {"user": config.user, "work_dir": config.work_dir, "env_vars": config.env_vars}
    return {name: dict(m) if isinstance(m, Mapping) else m for name, m in members.items() if m is not None}


def _plain(number: float | None) -> float | int | None:
    return int(number) if isinstance(number, float) and number.is_integer() else number


# -- what a client sends ---------------------------------------------------------------------------------------------


def create_sandbox_to_json(request: CreateSandbox) -> dict[str, Any]:
    """A create request as any server understands it: only what was asked for. Its key travels as a header."""
    wanted, asked = request.limits, request.asked_limits
    body: dict[str, Any] = {
        "wait_for_ready": request.wait_for_ready,
        "timeout": math.ceil(request.timeout_s) if request.wait_for_ready else None,
        "name": request.name or None,
        "snapshot_id": request.snapshot_id,
        "snapshot_name": request.snapshot_name,
        "snapshot": request.snapshot,
        "ttl_seconds": request.ttl_seconds,
        "idle_ttl_seconds": request.idle_ttl_seconds,
        "delete_after_stop_seconds": request.delete_after_stop_seconds,
        "vcpus": _plain(wanted.vcpus) if "vcpus" in asked else None,
        "mem_bytes": wanted.mem_bytes if "mem_bytes" in asked else None,
        "fs_capacity_bytes": wanted.disk_bytes if "disk_bytes" in asked else None,
        "labels": dict(request.labels) or None,
        "run_config": run_config_to_json(request.run_config),
        "env_vars": dict(request.env) or None,
    }
    return {name: value for name, value in body.items() if value is not None}


def update_sandbox_to_json(request: UpdateSandbox) -> dict[str, Any]:
    """An update request: only what changes."""
    body = attrs.asdict(request, recurse=False)
    body["name"] = body.pop("new_name")
    body["run_config"] = run_config_to_json(request.run_config)
    return {name: value for name, value in body.items() if value is not None}


def create_snapshot_to_json(request: CreateSnapshot) -> dict[str, Any]:
    """A build request: only what was asked for. ``tls_verify`` and ``auth_file`` never leave this machine."""
    body: dict[str, Any] = {
        "name": request.name,
        "docker_image": request.docker_image,
        "fs_capacity_bytes": request.fs_capacity_bytes,
        "registry_url": request.registry_url,
        "registry_username": request.registry_username,
        "registry_password": request.registry_password,
        "registry_id": request.registry_id,
        "tag": request.tag,
        "run_config": run_config_to_json(request.run_config),
    }
    return {name: value for name, value in body.items() if value is not None}


def capture_snapshot_to_json(request: CaptureSnapshot) -> dict[str, Any]:
    """A capture request: only what was asked for."""
    body: dict[str, Any] = {
        "name": request.name,
        "tag": None if request.tag == "latest" else request.tag,
        "fs_capacity_bytes": request.fs_capacity_bytes,
        "run_config": run_config_to_json(request.run_config),
    }
    return {name: value for name, value in body.items() if value is not None}


# -- what a client is answered ---------------------------------------------------------------------------------------


def sandbox_from_json(body: object) -> SandboxInfo:
    """A sandbox as some server describes it; what is missing or odd is the default of protocol.md §2.2."""
    found = body if isinstance(body, dict) else {}
    texts = ("status_message", "dataplane_url", "created_at", "updated_at", "expires_at", "snapshot_id", "stopped_at")
    numbers = (
        "ttl_seconds",
        "idle_ttl_seconds",
        "delete_after_stop_seconds",
        "mem_bytes",
        "fs_capacity_bytes",
        "lease_seconds",
    )
    return SandboxInfo(
        id=_or(found, "id", str, ""),
        name=_or(found, "name", str, ""),
        status=_or(found, "status", str, "ready"),
        vcpus=_number(found, "vcpus"),
        labels=_string_map(found.get("labels")) or {},
        run_config=run_config_from_json(found.get("run_config")),
        **{name: _or(found, name, str, None) for name in texts},
        **{name: _whole(found, name) for name in numbers},
    )


def snapshot_from_json(body: object) -> Snapshot:
    """A snapshot as some server describes it; what is missing or odd is the default of protocol.md §2.5."""
    found = body if isinstance(body, dict) else {}
    texts = (
        "docker_image",
        "image_digest",
        "source_sandbox_id",
        "status_message",
        "created_by",
        "registry_id",
        "error_type",
        "created_at",
        "updated_at",
    )
    tags = found.get("tags")
    return Snapshot(
        id=_or(found, "id", str, ""),
        name=_or(found, "name", str, ""),
        status=_or(found, "status", str, "building"),
        fs_capacity_bytes=_whole(found, "fs_capacity_bytes") or 0,
        fs_used_bytes=_whole(found, "fs_used_bytes"),
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        run_config=run_config_from_json(found.get("run_config")),
        **{name: _or(found, name, str, None) for name in texts},
    )


def status_from_json(body: object) -> ResourceStatus:
    """A status as some server tells it; a missing one means ``provisioning`` (protocol.md §7.2)."""
    found = body if isinstance(body, dict) else {}
    return ResourceStatus(_or(found, "status", str, "provisioning"), _or(found, "status_message", str, None))


def run_config_from_json(body: object) -> RunConfig | None:
    """A run configuration, or ``None`` for what is no object."""
    if not isinstance(body, dict):
        return None
    return RunConfig(
        _or(body, "user", str, None), _or(body, "work_dir", str, None), _string_map(body.get("env_vars")) or None
    )


def _or(found: Mapping[str, Any], name: str, kind: type[T], default: Any) -> Any:
    value = found.get(name)
    return value if isinstance(value, kind) else default


def _number(found: Mapping[str, Any], name: str) -> float | None:
    value = found.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(found: Mapping[str, Any], name: str) -> Any:
    value = _number(found, name)
    return int(value) if value is not None and math.isfinite(_as_float(value)) else None


def _string_map(value: object) -> dict[str, str] | None:
    if not isinstance(value, dict):
        return None
    return {key: text for key, text in value.items() if isinstance(key, str) and isinstance(text, str)}


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
