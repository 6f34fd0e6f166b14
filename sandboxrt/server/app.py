"""The whole server as one ASGI application: who may come in, what there is, and what is said when it is not there.

From outside in: a line in the log, paths as they were meant, who asks and how often, the routes; and around the routes
the net in which every error ends as one of the documented bodies.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import attrs
import trio
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandboxrt.actors import sole_error
from sandboxrt.errors import SandboxClientError
from sandboxrt.gateway.gateway import Gateway, GatewaySettings
from sandboxrt.gateway.links import Keys, Links, RememberedKeys
from sandboxrt.host.host import Host
from sandboxrt.models import DEFAULT_LIMITS, Limits
from sandboxrt.protocol.rest_errors import HOST_DISK_FULL, error_to_json
from sandboxrt.protocol.rest_wire import Ceilings
from sandboxrt.protocol.service_urls import ServiceSite, default_site
from sandboxrt.server.access_log import AccessLog
from sandboxrt.server.auth import Authenticator, tenant_of
from sandboxrt.server.boxes import Boxes
from sandboxrt.server.dataplane import DataPlane, DataPlaneSettings
from sandboxrt.server.entry import Entry
from sandboxrt.server.errors import control_reply, internal_error
from sandboxrt.server.in_time import answer_in_time, is_never_twice
from sandboxrt.server.limits import KeyLimits, TooFastError, Turnstile
from sandboxrt.server.metrics import Metrics
from sandboxrt.server.openapi import document
from sandboxrt.server.paths import WholeSegments, parameter
from sandboxrt.server.registries import RegistryRoutes
from sandboxrt.server.services import LinkRoutes, ServiceDoor
from sandboxrt.server.snapshots import SnapshotRoutes
from sandboxrt.server.unread import CloseUnread

__all__ = ["CONTROL_PREFIXES", "DATA_PREFIX", "App", "AppSettings"]

CONTROL_PREFIXES: Final = ("/api/v2/sandboxes", "/v2/sandboxes", "/api/v1/v2/sandboxes")
"""Where every generation of clients looks for the control plane (protocol.md §1.1)."""
DATA_PREFIX: Final = "/api/v2/sandboxes/dp/{sandbox}"

_REGISTRIES_OF_0_11: Final = "/api/api/v2/sandboxes"
"""Where clients of that generation look for named registries when their endpoint ends in ``/api/v2/sandboxes``."""
_USAGE_AGE_S: Final = 60.0
"""How old may be what metrics say of files: they are looked at one by one."""
_OPEN: Final = frozenset({"/healthz", "/metrics", "/openapi.json"})


@attrs.frozen(kw_only=True)
class AppSettings:
    """What the application is told.

    Attributes:
        public_url: How clients reach this server; no trailing slash. Never taken from a request.
        site: The addresses of services and download links.
        limits: Those of a sandbox whose creator names none.
        ceilings: The most that a creator may ask for.
        default_snapshot: See :class:`~sandboxrt.server.snapshots.SnapshotRoutes`; ``auth_file`` likewise.
        key_limits: What one key may do.
        dataplane: The bounds of the data plane.
        gateway: Those of the way to services.
        answer_s: How long the control plane may take for an answer, but for a create's.
    """

    public_url: str
    site: ServiceSite | None = None
    limits: Limits = DEFAULT_LIMITS
    ceilings: Ceilings = attrs.field(factory=Ceilings)
    default_snapshot: str | None = None
    auth_file: Path | None = None
    key_limits: KeyLimits = attrs.field(factory=KeyLimits)
    dataplane: DataPlaneSettings = attrs.field(factory=DataPlaneSettings)
    gateway: GatewaySettings = attrs.field(factory=GatewaySettings)
    answer_s: float = 9.0


class App:
    """A host as an ASGI application.

    Args:
        host: Whose sandboxes and snapshots.
        authenticator: Says who asks.
        settings: The rest.
        link_keys: What tokens of services and download links are signed with.
    """

    def __init__(self, host: Host, authenticator: Authenticator, settings: AppSettings, link_keys: Keys) -> None:
        self.dataplane: DataPlane = DataPlane(host, self._resolve, settings.dataplane)
        self.metrics: Metrics = Metrics(
            {
                ("sandboxrt_sandboxes", "status", "Sandboxes of this host."): host.count_by_status,
                ("sandboxrt_output_bytes", "place", "Output of commands that is kept for readers."): host.output_bytes,
                (
                    "sandboxrt_disk_bytes",
                    "kind",
                    "The state folder's file system: free, kept back, and promised to running sandboxes.",
                ): host.room.figures,
                (
                    "sandboxrt_disk_sandboxes",
                    "state",
                    "Running sandboxes that may not take all of their disks, and that stand still for lack of room.",
                ): lambda: {"restricted": host.room.restricted, "frozen": host.room.frozen},
                ("sandboxrt_state_bytes", "kind", "What takes the room in the state folder."): lambda: (
                    host.room.latest_usage
                ),
                ("sandboxrt_sockets_resting", "kind", "WebSockets that wait for another command."): lambda: {
                    "command": len(self.dataplane.resting)
                },
            }
        )
        self._host = host
        snapshots = SnapshotRoutes(host=host, offered=settings.default_snapshot, auth_file=settings.auth_file)
        registries = RegistryRoutes(host.registries)
        url = settings.public_url.rstrip("/") + DATA_PREFIX.removesuffix("/{sandbox}")
        boxes = Boxes(
            host=host,
            dataplane=lambda sandbox_id: f"{url}/{sandbox_id}",
            limits=settings.limits,
            ceilings=settings.ceilings,
            default_snapshot=snapshots.choose,
        )
        site = settings.site or default_site(settings.public_url)
        links = LinkRoutes(Links(site, link_keys), boxes.find)
        self.routes: list[BaseRoute] = [*self.dataplane.routes(DATA_PREFIX)]
        """Everything that is served, in the order in which it is looked for."""
        for prefix in CONTROL_PREFIXES:
            self.routes += boxes.routes(prefix)
            self.routes += links.routes(prefix)
            self.routes += snapshots.routes(prefix)
        for prefix in (*CONTROL_PREFIXES, _REGISTRIES_OF_0_11):
            self.routes += registries.routes(prefix)
        self.routes += [
            Route("/healthz", self._healthz, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
        ]
        gate = _Gate(_Routes(self.routes, settings.answer_s), authenticator, Turnstile(settings.key_limits))
        log = AccessLog(CloseUnread(WholeSegments(gate)), self.metrics)
        self._app: ASGIApp = log
        gateway = Gateway(host, site, RememberedKeys(link_keys), settings.gateway, stopping=self.stopping)
        self.side_door: ServiceDoor = ServiceDoor(gateway, log)
        """What takes the requests for services and files, before this application sees them."""
        self._document = document(settings.public_url, settings.ceilings)

    def __repr__(self) -> str:
        return f"<App of {self._host!r}>"

    @property
    def stopping(self) -> trio.Event:
        """To be set when the server stops: streams then end in the way after which clients come back."""
        return self.dataplane.stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        await self._app(scope, receive, send)

    async def _resolve(self, connection: HTTPConnection) -> str:
        tenant = tenant_of(connection)
        return (await self._host.get_sandbox(parameter(connection, "sandbox"), tenant.id)).id

    async def _healthz(self, request: Request) -> Response:
        if self.stopping.is_set():
            return JSONResponse({"status": "stopping"}, 503)
        if self._host.room.is_low:
            # Not 503: whoever takes this server out, or starts it again, ends what still works, deletions among it.
            return JSONResponse({"status": "degraded", "reason": HOST_DISK_FULL})
        return JSONResponse({"status": "ok"})

    async def _metrics(self, request: Request) -> Response:
        await self._host.room.usage(_USAGE_AGE_S)
        return PlainTextResponse(self.metrics.render(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)


class _Routes:
    """Finds the route of a request; notes its pattern for the log, and says in JSON when there is none."""

    def __init__(self, routes: Sequence[BaseRoute], answer_s: float) -> None:
        self._routes = routes
        self._answer_s = answer_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        allowed: set[str] = set()
        for route in self._routes:
            match, more = route.matches(scope)
            if match is Match.FULL:
                scope.update(more)
                scope["sandboxrt.route"] = getattr(route, "path", "unknown")
                await self._bounded(route, scope, receive, send)
                return
            if match is Match.PARTIAL:
                allowed |= getattr(route, "methods", None) or set()
        if allowed:
            body = error_to_json("MethodNotAllowed", f"{scope.get('method', 'A WebSocket')} is not possible here")
            response = JSONResponse(body, 405, {"Allow": ", ".join(sorted(allowed))})
        else:
            response = JSONResponse(error_to_json("NotFound", "There is nothing at this address"), 404)
        await response(scope, receive, send)

    async def _bounded(self, route: BaseRoute, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle it; within ten seconds where the protocol promises that."""
        creates = scope.get("method") == "POST" and scope["sandboxrt.route"].endswith("/boxes")
        if creates or scope["sandboxrt.route"].startswith(DATA_PREFIX):
            await route.handle(scope, receive, send)
            return
        settles_late = is_never_twice(route)
        await answer_in_time(route.handle, scope, receive, send, within_s=self._answer_s, settles_late=settles_late)


class _Gate:
    """Lets in whom it knows, as often as they may; whatever goes wrong behind it ends here as an answer."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator, turnstile: Turnstile) -> None:
        self._app = app
        self._authenticator = authenticator
        self._turnstile = turnstile

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] in (
                "http.response.start",
                "websocket.accept",
                "websocket.http.response.start",
            )
            await send(message)

        try:
            await self._enter(scope, receive, noting)
        except Exception as caught:  # noqa: BLE001  no request may end the server, nor show its insides
            error = sole_error(caught)
            response = _answer_to(error)
            if not started:
                await response(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        tenant = scope["sandboxrt.tenant"] = await self._authenticator.authenticate(headers)
        with self._turnstile.admit(tenant.key_id) as admission:
            Entry(tenant, self._authenticator, headers, admission).note(scope)
            await self._app(scope, receive, send)


def _answer_to(error: BaseException) -> Response:
    if isinstance(error, TooFastError):
        headers = {"Retry-After": str(error.retry_after_s)}
        return JSONResponse(error_to_json("TooManyRequests", str(error)), 429, headers)
    return control_reply(error) if isinstance(error, SandboxClientError) else internal_error(error)
