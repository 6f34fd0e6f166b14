"""Control-plane shapes: what is asked of a host and what it answers, as values.

Embedded, these values go to the host as they are. The JSON of protocol.md §2 is made from and parsed into them at the
wire, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs

from sandboxrt.models import Isolation, Limits, Quota, RunConfig, SandboxOwner

__all__ = [
    "LEASE_HEADER",
    "CaptureSnapshot",
    "CreateDownloadLink",
    "CreateSandbox",
    "CreateSnapshot",
    "SandboxInfo",
    "ServiceGrant",
    "UpdateSandbox",
]

LEASE_HEADER = "sandboxrt-lease"
"""Asks, with a create, for a lease of so many seconds. A server without leases passes over it."""


@attrs.frozen(kw_only=True)
class SandboxInfo:
    """A sandbox as its host knows it at one moment (protocol.md §2.2).

    Attributes:
        owner: Who runs it where that is not the host that was asked; never on the wire.
        is_waking: Whether it is ``provisioning`` because it is being started again, so that whoever wants to use it
            waits for that; never on the wire.
    """

    id: str
    name: str
    status: str
    status_message: str | None = None
    dataplane_url: str | None = None
    created_at: str | None = None
    updated_at: str | None = None
    ttl_seconds: int | None = None
    idle_ttl_seconds: int | None = None
    expires_at: str | None = None
    snapshot_id: str | None = None
    vcpus: float | None = None
    mem_bytes: int | None = None
    fs_capacity_bytes: int | None = None
    delete_after_stop_seconds: int | None = None
    stopped_at: str | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    run_config: RunConfig | None = None
    lease_seconds: int | None = None
    owner: SandboxOwner | None = None
    is_waking: bool = False


@attrs.frozen(kw_only=True)
class CreateSandbox:
    """Make a sandbox (protocol.md §2.3).

    ``name`` is made by the client, so that a repeated or cancelled create can be found again. ``limits`` has the
    defaults already filled in; with ``disk_of_snapshot`` the snapshot's own ``fs_capacity_bytes`` takes the place of
    the default disk size. ``require`` and ``allow_unenforced_limits`` go no further than embedded hosts.

    Attributes:
        snapshot: A snapshot's id, ``name:tag``, or bare name (protocol.md §2.5); instead of the other two.
        run_config: How commands run when their callers say nothing; over what the snapshot says.
        labels: The caller's own marks.
        tenant: Whose it is. Names are unique within a tenant; embedded hosts have the one tenant ``""``.
        exclusive: Refuse a name that is taken. Otherwise, and with the ``idempotency_key`` of the first request, a
            repeated create waits for the sandbox of the first.
        idempotency_key: Made by the client for one create and sent with its every repetition; ours.
        asked_limits: The fields of ``limits`` that the caller named; no other is sent to a server.
        lease_seconds: The sandbox goes when its owner has not renewed the lease for so long; ours.
        name_is_ours: Whether the client made the name up, so that nobody else's sandbox has it.
        quota: What the tenant's sandboxes may take with this one; set by servers, over the host's own.
    """

    name: str
    snapshot_id: str | None = None
    snapshot_name: str | None = None
    wait_for_ready: bool = True
    timeout_s: float = 30
    ttl_seconds: int | None = None
    idle_ttl_seconds: int | None = None
    limits: Limits = attrs.field(factory=Limits)
    disk_of_snapshot: bool = False
    require: frozenset[Isolation] | None = None
    allow_unenforced_limits: bool = False
    env: Mapping[str, str] = attrs.field(factory=dict)
    snapshot: str | None = None
    run_config: RunConfig | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    delete_after_stop_seconds: int | None = None
    tenant: str = ""
    exclusive: bool = False
    idempotency_key: str | None = attrs.field(default=None, repr=False)
    lease_seconds: int | None = None
    asked_limits: frozenset[str] = frozenset()
    name_is_ours: bool = False
    quota: Quota = attrs.field(factory=Quota)


@attrs.frozen(kw_only=True)
class UpdateSandbox:
    """Change a sandbox (protocol.md §2.4); ``None`` leaves as is, a TTL of 0 disables it."""

    new_name: str | None = None
    ttl_seconds: int | None = None
    idle_ttl_seconds: int | None = None
    delete_after_stop_seconds: int | None = None
    run_config: RunConfig | None = None


@attrs.frozen(kw_only=True)
class CreateSnapshot:
    """Build a snapshot from an image (protocol.md §2.5).

    Attributes:
        name: The snapshot's name.
        docker_image: A reference as container tools write it (``python:3.12-slim``), or ``oci:DIR[:TAG]``,
            ``docker-archive:FILE[:REF]``, ``docker://...`` as skopeo writes them.
        fs_capacity_bytes: Default disk size of its sandboxes, in bytes.
        registry_username: For a registry that asks.
        registry_password: For a registry that asks; never shown, never stored.
        registry_url: A registry to take short names from instead of the configured ones.
        registry_id: A named registry to use instead of those three.
        registry_name: What that is called, once a host has looked it up.
        tls_verify: ``False`` accepts a registry without TLS or with a certificate nobody signed.
        auth_file: A containers-auth.json to use instead of the user's own.
        tag: The snapshot's tag; once it is ready, ``name:tag`` means it and no longer the one before.
        run_config: How commands run in its sandboxes when nobody says otherwise.
        tenant: Whose it is, as of sandboxes.
    """

    name: str
    docker_image: str
    fs_capacity_bytes: int
    registry_url: str | None = None
    registry_username: str | None = None
    registry_password: str | None = attrs.field(default=None, repr=False)
    registry_id: str | None = None
    registry_name: str | None = None
    tls_verify: bool | None = None
    auth_file: Path | None = None
    tag: str | None = None
    run_config: RunConfig | None = None
    tenant: str = ""


@attrs.frozen(kw_only=True)
class CaptureSnapshot:
    """Make a snapshot of a sandbox's files (protocol.md §2.5).

    Attributes:
        name: The snapshot's name.
        tag: Once it is ready, ``name:tag`` means it and no longer the one before.
        fs_capacity_bytes: Default disk size of its sandboxes, in bytes; the captured one's where left out.
        run_config: How commands run in its sandboxes when nobody says otherwise; over what the snapshot says that the
            captured one was made from.
        tenant: Whose it is, as of sandboxes.
    """

    name: str
    tag: str = "latest"
    fs_capacity_bytes: int | None = None
    run_config: RunConfig | None = None
    tenant: str = ""


@attrs.frozen
class ServiceGrant:
    """The right to talk to a service for a while (protocol.md §2.6).

    Attributes:
        browser_url: For a browser: exchanges the token for a cookie.
        service_url: For a program, which sends the token with each request.
        token: The right.
        expires_at: Until when, as an ISO-8601 time.
    """

    browser_url: str = attrs.field(repr=False)
    service_url: str
    token: str = attrs.field(repr=False)
    expires_at: str


@attrs.frozen(kw_only=True)
class CreateDownloadLink:
    """Make a link to a file (protocol.md §2.7); what is ``None`` was left out."""

    path: str
    expires_in_seconds: int | None = None
    content_type: str | None = None
    content_disposition: Literal["attachment", "inline"] | None = None
