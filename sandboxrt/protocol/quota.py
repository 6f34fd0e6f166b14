"""What all sandboxes of a tenant may take together: a pure check of one more.

Sandboxes that are stopped count in full. Whoever uses one wakes it, and must not find then that others took its place.

Source: protocol.md §2.9 (clients derive the kind of a quota from the message's words).
"""

from __future__ import annotations

import attrs

from sandboxrt.errors import QuotaExceededError
from sandboxrt.models import Limits, Quota

__all__ = ["Usage", "check_quota"]


@attrs.frozen(kw_only=True)
class Usage:
    """What a tenant's sandboxes take together, by their limits."""

    sandboxes: int = 0
    vcpus: float = 0.0
    mem_bytes: int = 0
    storage_bytes: int = 0


def check_quota(quota: Quota, usage: Usage, asked: Limits) -> None:
    """Refuse one more sandbox that does not fit.

    Raises:
        QuotaExceededError: ``quota_type`` says of what; delete sandboxes, or ask for less.
    """
    if quota.sandboxes is not None and usage.sandboxes >= quota.sandboxes:
        raise QuotaExceededError(
            f"Sandbox limit reached: {usage.sandboxes} of {quota.sandboxes} exist, stopped ones too. "
            "Delete one, or ask for a larger quota",
            "sandbox_count",
        )
    _check("CPU", "cpu", "vCPUs", quota.vcpus, usage.vcpus, asked.vcpus)
    _check("Memory", "memory", "bytes", quota.mem_bytes, usage.mem_bytes, asked.mem_bytes)
    _check("Storage", "storage", "bytes", quota.storage_bytes, usage.storage_bytes, asked.disk_bytes)


def _check(title: str, kind: str, unit: str, most: float | None, taken: float, asked: float | None) -> None:
    # Clients look for the words "sandbox" and "limit", then for "cpu", "memory", "storage", in this order.
    if most is None or (asked is not None and taken + asked <= most):
        return
    wanted = "an unbounded amount was" if asked is None else f"{asked:.15g} more were"
    raise QuotaExceededError(
        f"{title} quota exceeded: {taken:.15g} of {most:.15g} {unit} are taken and {wanted} asked for. "
        "Delete something, or ask for less",
        kind,
    )
