"""Snapshots over HTTP: build, list, find by reference, delete.

Source: protocol.md §2.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sandboxrt.errors import ResourceNotFoundError, SandboxClientError, SandboxNotReadyError
from sandboxrt.host.host import Host
from sandboxrt.models import Snapshot
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.protocol.rest_errors import error_to_json
from sandboxrt.protocol.rest_fields import invalid
from sandboxrt.protocol.rest_wire import create_snapshot_from_json, snapshot_to_json
from sandboxrt.server.auth import tenant_of
from sandboxrt.server.boxes import whole
from sandboxrt.server.in_time import instead, never_twice
from sandboxrt.server.paths import parameter
from sandboxrt.server.replies import read_json

__all__ = ["HOST_SNAPSHOT", "SnapshotRoutes"]

HOST_SNAPSHOT: Final = "host"
_DEFAULT_PAGE: Final = 50


@attrs.frozen(kw_only=True)
class SnapshotRoutes:
    """The snapshots of a host, each tenant's for itself.

    Attributes:
        host: Whose.
        offered: A snapshot of the machine's own that every tenant may start from, and does when it names none;
            ``"host"`` is the built-in one, ``None`` offers nothing.
        auth_file: The registry credentials of builds that bring none; never the server's user's own.
    """

    host: Host
    offered: str | None
    auth_file: Path | None

    def routes(self, prefix: str) -> list[BaseRoute]:
        """The routes below ``prefix``."""
        return [
            Route(prefix + "/snapshots", self._create, methods=["POST"]),
            Route(prefix + "/snapshots", self._list, methods=["GET"]),
            Route(prefix + "/snapshots/{ref:path}", self._get, methods=["GET"]),
            Route(prefix + "/snapshots/{ref:path}", self._delete, methods=["DELETE"]),
            Route(prefix + "/snapshots-by-name/{ref:path}", self._tags, methods=["GET"]),
        ]

    async def choose(self, wanted: CreateSandbox) -> CreateSandbox:
        """A create request with the snapshot that it means by id.

        Raises:
            ValidationError: It names none, and there is no default.
            ResourceNotFoundError: There is none such for that tenant.
            SandboxNotReadyError: It is still being built, or failed.
        """
        reference, field = _reference(wanted)
        if reference is None:
            if self.offered is None:
                raise invalid("is required: this server has no default snapshot", "snapshot_id")
            return _from(wanted, await self._offered())
        found = await self._find(reference, wanted.tenant, newest=field == "snapshot_name")
        if found.status != "ready":
            raise SandboxNotReadyError(f"Snapshot '{reference}' is {found.status}, not ready")
        return _from(wanted, found)

    @never_twice
    async def _create(self, request: Request) -> Response:
        wanted = create_snapshot_from_json(await read_json(request))
        tag = wanted.tag or _own_tag(wanted.docker_image)
        made = await self.host.create_snapshot(
            attrs.evolve(wanted, tag=tag, tenant=tenant_of(request).id, auth_file=self.auth_file)
        )
        return JSONResponse(snapshot_to_json(made), 201)

    async def _list(self, request: Request) -> Response:
        limit = whole(request, "limit", 1, 500)
        limit = limit or whole(request, "page_size", 1, 500) or _DEFAULT_PAGE
        start = whole(request, "offset", 0, 2**53) or 0
        part = request.query_params.get("name_contains")
        tenant = tenant_of(request).id
        found = await self.host.list_snapshots(part, limit, start, tenant)
        more = len(found) == limit and bool(await self.host.list_snapshots(part, 1, start + limit, tenant))
        items = [snapshot_to_json(snapshot) for snapshot in found]
        following = start + limit if more else 0
        return JSONResponse({"snapshots": items, "items": items, "next_cursor": None, "offset": following})

    async def _get(self, request: Request) -> Response:
        found = await self._find(parameter(request, "ref"), tenant_of(request).id)
        return JSONResponse(snapshot_to_json(found))

    async def _delete(self, request: Request) -> Response:
        snapshot_id = parameter(request, "ref")
        found = await self.host.get_snapshot(snapshot_id, tenant_of(request).id)
        if found.id != snapshot_id.lower():
            raise ResourceNotFoundError(f"Snapshot '{snapshot_id}' not found; it is deleted by its id", "snapshot")

        async def deleted() -> Response:
            try:
                await self.host.get_snapshot(found.id, tenant_of(request).id)
            except ResourceNotFoundError:
                # Its files go behind the answer, which may take long.
                return Response(status_code=204)
            raise SandboxNotReadyError(f"Snapshot '{found.id}' is still there")

        instead(request, deleted)
        await self.host.delete_snapshot(found.id)
        return Response(status_code=204)

    async def _tags(self, request: Request) -> Response:
        name = parameter(request, "ref")
        if ":" in name:
            body = error_to_json("InvalidRequest", f"'{name}' is a name with a tag; ask for the name alone")
            return JSONResponse(body, 400)
        tags = await self.host.snapshot_tags(name, tenant_of(request).id)
        return JSONResponse({"name": name, "tags": [{"tag": tag, "snapshot_id": found} for tag, found in tags]})

    async def _find(self, reference: str, tenant: str, *, newest: bool = False) -> Snapshot:
        try:
            return await self.host.get_snapshot(reference, tenant, newest=newest)
        except ResourceNotFoundError:
            if self.offered is None:
                raise
            offered = await self._offered()
            if reference in (offered.id, offered.name):
                return offered
            raise

    async def _offered(self) -> Snapshot:
        assert self.offered is not None
        if self.offered == HOST_SNAPSHOT:
            return await self.host.host_snapshot()
        try:
            return await self.host.get_snapshot(self.offered)
        except ResourceNotFoundError as error:
            raise SandboxClientError(f"The server's default snapshot '{self.offered}' does not exist") from error


def _reference(wanted: CreateSandbox) -> tuple[str | None, str]:
    for field in ("snapshot", "snapshot_id", "snapshot_name"):
        if (reference := getattr(wanted, field)) is not None:
            return reference, field
    return None, "snapshot_id"


def _from(wanted: CreateSandbox, snapshot: Snapshot) -> CreateSandbox:
    return attrs.evolve(wanted, snapshot=None, snapshot_name=None, snapshot_id=snapshot.id)


def _own_tag(image: str) -> str:
    """The tag that an image's reference has, else ``latest``."""
    name = image.partition("@")[0].rpartition("/")[2]
    return name.partition(":")[2] or "latest"
