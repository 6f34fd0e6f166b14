"""What a user asks of a sandbox to be, checked and as a request.

Source: protocol.md §2.3.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import attrs

from sandboxrt.models import DEFAULT_LIMITS, Isolation, Limits
from sandboxrt.protocol.rest import CreateSandbox

__all__ = ["Creator", "check_ttl"]


@attrs.frozen(kw_only=True)
class Creator:
    """Makes the creation requests of one client.

    Attributes:
        limits: What a sandbox may use when its creation names no limits.
        require: Isolation without which an embedded host creates none.
        allow_unenforced_limits: Accept limits that a host cannot enforce.
        remote: Whether the requests go to a server, which has limits of its own.
    """

    limits: Limits
    require: frozenset[Isolation]
    allow_unenforced_limits: bool
    remote: bool

    def request(
        self,
        snapshot_id: str | None,
        *,
        snapshot_name: str | None,
        name: str | None,
        timeout: float,
        ttl_seconds: int | None,
        idle_ttl_seconds: int | None,
        delete_after_stop_seconds: int | None,
        limits: Limits | None,
        vcpus: float | None,
        mem_bytes: int | None,
        fs_capacity_bytes: int | None,
        env: Mapping[str, str] | None,
        wait_for_ready: bool = True,
    ) -> CreateSandbox:
        """The request for these arguments. Raises ``ValueError`` for those that make no sense."""
        if snapshot_id is not None and snapshot_name is not None:
            raise ValueError("give snapshot_id or snapshot_name, not both")
        if timeout <= 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        check_ttl("ttl_seconds", ttl_seconds)
        check_ttl("idle_ttl_seconds", idle_ttl_seconds)
        check_ttl("delete_after_stop_seconds", delete_after_stop_seconds)
        given: dict[str, float | None] = {"vcpus": vcpus, "mem_bytes": mem_bytes, "disk_bytes": fs_capacity_bytes}
        return CreateSandbox(
            name=name or f"sandbox-{secrets.token_hex(4)}",
            snapshot_id=snapshot_id,
            snapshot_name=snapshot_name,
            wait_for_ready=wait_for_ready,
            timeout_s=timeout,
            ttl_seconds=ttl_seconds,
            idle_ttl_seconds=idle_ttl_seconds,
            delete_after_stop_seconds=delete_after_stop_seconds,
            limits=_limits(limits or self.limits, given),
            asked_limits=self._asked_limits(limits, given),
            disk_of_snapshot=limits is None and fs_capacity_bytes is None,
            name_is_ours=not name,
            idempotency_key=secrets.token_hex(16) if self.remote else None,
            require=self.require,
            allow_unenforced_limits=self.allow_unenforced_limits,
            env=dict(env or {}),
        )

    def _asked_limits(self, limits: Limits | None, given: Mapping[str, float | None]) -> frozenset[str]:
        """What of a sandbox's limits a server is told; it has defaults of its own for the rest."""
        wanted = limits or self.limits
        differing = {
            field.name
            for field in attrs.fields(Limits)
            if getattr(wanted, field.name) != getattr(DEFAULT_LIMITS, field.name)
        }
        untold = sorted(differing - set(given))
        if self.remote and untold:
            raise ValueError(f"a server cannot be told {', '.join(untold)}; leave that out")
        named = set(given) if limits is not None else differing
        return frozenset(named | {name for name, value in given.items() if value is not None})


def check_ttl(name: str, seconds: int | None) -> None:
    """Refuse a TTL that the protocol does not know. Raises ``ValueError``."""
    if seconds is not None and (seconds < 0 or seconds % 60):
        raise ValueError(f"{name} must be 0 or a multiple of 60 seconds, not {seconds}")


def _limits(base: Limits, given: Mapping[str, float | None]) -> Limits:
    named = {name: value for name, value in given.items() if value is not None}
    for name, value in named.items():
        if value <= 0:
            raise ValueError(
                f"{'fs_capacity_bytes' if name == 'disk_bytes' else name} must be more than 0, not {value}"
            )
    return attrs.evolve(base, **named)  # type: ignore[arg-type]
