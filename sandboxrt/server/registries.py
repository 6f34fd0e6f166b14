"""Named registries over HTTP: make, list, find, change, delete.

Source: protocol.md §2.8.
"""

from __future__ import annotations

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sandboxrt.errors import ValidationError
from sandboxrt.host.registries import Registries
from sandboxrt.protocol.registries import ListRegistries, cursor_start
from sandboxrt.protocol.registries_wire import (
    create_registry_from_json,
    registry_page_to_json,
    registry_to_json,
    update_registry_from_json,
)
from sandboxrt.protocol.rest_errors import error_to_json
from sandboxrt.server.auth import tenant_of
from sandboxrt.server.boxes import whole
from sandboxrt.server.in_time import never_twice
from sandboxrt.server.paths import parameter
from sandboxrt.server.replies import read_json

__all__ = ["RegistryRoutes"]


@attrs.frozen
class RegistryRoutes:
    """The named registries of a host, each tenant's for itself."""

    registries: Registries

    def routes(self, prefix: str) -> list[BaseRoute]:
        """The routes below ``prefix``."""
        one = prefix + "/registries/{name}"
        return [
            Route(prefix + "/registries", self._create, methods=["POST"]),
            Route(prefix + "/registries", self._list, methods=["GET"]),
            Route(one, self._get, methods=["GET"]),
            Route(one, self._update, methods=["PATCH"]),
            Route(one, self._delete, methods=["DELETE"]),
        ]

    @never_twice
    async def _create(self, request: Request) -> Response:
        tenant = tenant_of(request)
        wanted = create_registry_from_json(await read_json(request))
        made = await self.registries.create(attrs.evolve(wanted, tenant=tenant.id, by=tenant.key_id))
        return JSONResponse(registry_to_json(made), 201)

    async def _list(self, request: Request) -> Response:
        cursor = request.query_params.get("cursor") or None
        try:
            page_size = whole(request, "page_size", 1, 100)
            if cursor is not None:
                cursor_start(cursor)
        except ValidationError as error:
            return JSONResponse(error_to_json("InvalidRequest", str(error)), 400)
        wanted = ListRegistries(
            name_contains=request.query_params.get("name_contains"),
            limit=whole(request, "limit", 1, 500),
            offset=whole(request, "offset", 0, 2**53),
            page_size=page_size,
            cursor=cursor,
            tenant=tenant_of(request).id,
        )
        return JSONResponse(registry_page_to_json(await self.registries.list(wanted)))

    async def _get(self, request: Request) -> Response:
        found = await self.registries.get(parameter(request, "name"), tenant_of(request).id)
        return JSONResponse(registry_to_json(found))

    @never_twice
    async def _update(self, request: Request) -> Response:
        tenant = tenant_of(request)
        change = attrs.evolve(update_registry_from_json(await read_json(request)), by=tenant.key_id)
        found = await self.registries.update(parameter(request, "name"), change, tenant.id)
        return JSONResponse(registry_to_json(found))

    @never_twice
    async def _delete(self, request: Request) -> Response:
        await self.registries.delete(parameter(request, "name"), tenant_of(request).id)
        return Response(status_code=204)
