"""Services and download links of a server: the gateway before its application, and the routes that make links.

Source: protocol.md §2.6, §2.7, §6.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import h11
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sandboxrt.gateway.front import Front
from sandboxrt.gateway.gateway import Gateway
from sandboxrt.gateway.links import Links
from sandboxrt.protocol.links_wire import (
    download_link_from_json,
    download_link_to_json,
    service_from_json,
    service_to_json,
)
from sandboxrt.protocol.rest import SandboxInfo
from sandboxrt.protocol.service_urls import FileHost, FilePath, ServiceHost, ServicePath, Target
from sandboxrt.server.access_log import AccessLog, Visit
from sandboxrt.server.auth import Tenant, tenant_of
from sandboxrt.server.errors import not_implemented
from sandboxrt.server.paths import parameter
from sandboxrt.server.replies import pass_over_body, read_json

__all__ = ["LinkRoutes", "ServiceDoor"]

_ROUTES: Final[dict[type[Target], str]] = {
    ServiceHost: "service origin",
    FileHost: "download",
    FilePath: "download",
    ServicePath: "service path",
}


@attrs.frozen
class LinkRoutes:
    """The routes that make links to services and files.

    Attributes:
        links: Makes them.
        find: A tenant's sandbox by name or id; raises ``ResourceNotFoundError``.
    """

    links: Links
    find: Callable[[Tenant, str], Awaitable[SandboxInfo]]

    def routes(self, prefix: str) -> list[BaseRoute]:
        """The routes below ``prefix``."""
        one = prefix + "/boxes/{name}"
        return [
            Route(one + "/service-url", self._service, methods=["POST"]),
            Route(one + "/service-urls", self._grants, methods=["GET", "DELETE"]),
            Route(one + "/download-url", self._download, methods=["POST"]),
        ]

    async def _service(self, request: Request) -> Response:
        tenant, found = await self._found(request)
        port, expires_in_seconds = service_from_json(await read_json(request))
        return JSONResponse(service_to_json(await self.links.service(found.id, tenant.id, port, expires_in_seconds)))

    async def _download(self, request: Request) -> Response:
        tenant, found = await self._found(request)
        wanted = download_link_from_json(await read_json(request))
        return JSONResponse(download_link_to_json(await self.links.download(found.id, tenant.id, wanted)))

    async def _grants(self, request: Request) -> Response:
        """Tokens are not recorded: they are good until they expire, and nobody could tell who has one."""
        await pass_over_body(request)
        await self._found(request)
        return not_implemented("list of service URLs: their tokens are not recorded, and end by themselves")

    async def _found(self, request: Request) -> tuple[Tenant, SandboxInfo]:
        tenant = tenant_of(request)
        return tenant, await self.find(tenant, parameter(request, "name"))


@attrs.frozen
class ServiceDoor:
    """The gateway as a server's side door (``guarded.py``), with its lines in the log."""

    gateway: Gateway
    log: AccessLog

    def takes(self, request: h11.Request) -> bool:
        """Whether a request is for a service or a file."""
        return self.gateway.target_of(request) is not None

    async def serve(self, front: Front, request: h11.Request) -> bool:
        """Answer a request."""
        target = self.gateway.target_of(request)
        assert target is not None
        started = time.monotonic()
        with self.log.visiting():
            try:
                return await self.gateway.serve(front, request, target)
            finally:
                self.log.write(
                    Visit(
                        method=request.method.decode("ascii"),
                        path=request.target.decode("latin-1").partition("?")[0],
                        route=_ROUTES.get(type(target), "unknown"),
                        client=front.peer or None,
                        status=front.status,
                        sent_bytes=front.sent_bytes,
                        seconds=time.monotonic() - started,
                    )
                )
