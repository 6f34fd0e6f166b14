"""Sandboxes over HTTP: create, list, find, change, delete.

Source: protocol.md §2.1-2.4.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import attrs
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from sandboxrt.errors import ResourceNotFoundError
from sandboxrt.host.host import Host
from sandboxrt.models import Limits, ResourceStatus
from sandboxrt.protocol.isolation_wire import isolation_to_json
from sandboxrt.protocol.rest import LEASE_HEADER, CreateSandbox, SandboxInfo
from sandboxrt.protocol.rest_fields import invalid
from sandboxrt.protocol.rest_wire import (
    Ceilings,
    capture_snapshot_from_json,
    create_sandbox_from_json,
    sandbox_to_json,
    snapshot_to_json,
    status_to_json,
    update_sandbox_from_json,
)
from sandboxrt.server.auth import Tenant, tenant_of
from sandboxrt.server.in_time import instead, never_twice
from sandboxrt.server.paths import parameter
from sandboxrt.server.replies import BodyError, pass_over_body, read_json

__all__ = ["Boxes", "whole"]

_STOP_S: Final = 8.0
_WITHOUT_DATAPLANE: Final = frozenset({"provisioning", "failed", "deleting"})
_MAX_PAGE: Final = 500
_BODY_S: Final = 10.0
_MAX_KEY: Final = 256
_MAX_LEASE_S: Final = 3600
_SORTS: Final = {
    "name": lambda info: info.name,
    "status": lambda info: info.status,
    "created_at": lambda info: info.created_at or "",
    "stopped_at": lambda info: info.stopped_at or "",
    "idle_ttl_seconds": lambda info: info.idle_ttl_seconds or 0,
    "delete_after_stop_seconds": lambda info: info.delete_after_stop_seconds or 0,
}


@attrs.frozen(kw_only=True)
class Boxes:
    """The sandboxes of a host, each tenant's for itself.

    Attributes:
        host: Whose.
        dataplane: A sandbox's id to the URL of its data plane.
        limits: Those of a sandbox whose creator names none.
        ceilings: The most that a creator may ask for.
        default_snapshot: What a sandbox starts from when its creator says nothing; raises where there is none.
    """

    host: Host
    dataplane: Callable[[str], str]
    limits: Limits
    ceilings: Ceilings
    default_snapshot: Callable[[CreateSandbox], Awaitable[CreateSandbox]]

    def routes(self, prefix: str) -> list[BaseRoute]:
        """The routes below ``prefix``."""
        one = prefix + "/boxes/{name}"
        return [
            Route(prefix + "/boxes", self._create, methods=["POST"]),
            Route(prefix + "/boxes", self._list, methods=["GET"]),
            Route(one, self._get, methods=["GET"]),
            Route(one, self._update, methods=["PATCH"]),
            Route(one, self._delete, methods=["DELETE"]),
            Route(one + "/status", self._status, methods=["GET"]),
            Route(one + "/start", self._start, methods=["POST"]),
            Route(one + "/stop", self._stop, methods=["POST"]),
            Route(one + "/snapshot", self._capture, methods=["POST"]),
            Route(one + "/lease", self._renew_lease, methods=["POST"]),
            Route(one + "/isolation", self._isolation, methods=["GET"]),
        ]

    async def _create(self, request: Request) -> Response:
        tenant = tenant_of(request)
        with trio.move_on_after(_BODY_S) as scope:
            body = await read_json(request)
        if scope.cancelled_caught:
            raise BodyError("The body does not come: it was cut short, or is too slow", 408, "RequestTimeout")
        wanted = create_sandbox_from_json(
            body, make_name=f"sandbox-{secrets.token_hex(5)}", ceilings=self.ceilings, defaults=self.limits
        )
        key = _idempotency_key(request)
        lease = _lease(request)
        wanted = attrs.evolve(wanted, tenant=tenant.id, quota=tenant.quota, idempotency_key=key, lease_seconds=lease)
        wanted = await self.default_snapshot(wanted)
        info = await self._create_while_wanted(request, wanted)
        return Response(status_code=499) if info is None else self._reply(info, 201)

    async def _create_while_wanted(self, request: Request, wanted: CreateSandbox) -> SandboxInfo | None:
        """``None`` when the client went away, and with it what was made for it."""
        info: SandboxInfo | None = None
        error: Exception | None = None
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            try:
                info = await self.host.create_sandbox(wanted)
            except Exception as caught:  # noqa: BLE001  raised below, out of the nursery
                error = caught
            nursery.cancel_scope.cancel()
        if error is not None:
            raise error
        return info

    async def _list(self, request: Request) -> Response:
        found = await self.host.list_sandboxes(tenant_of(request).id)
        found = [info for info in found if info.id and _matches(info, request)]
        key = request.query_params.get("sort_by")
        if key is not None:
            if key not in _SORTS:
                raise invalid(f"must be one of {', '.join(_SORTS)}", "query", "sort_by")
            found.sort(key=_SORTS[key])
        direction = request.query_params.get("sort_direction") or request.query_params.get("sort_order") or ""
        if direction.lower() == "desc":
            found.reverse()
        page, following = _page_of(found, request)
        boxes = [sandbox_to_json(info, dataplane_url=self._url(info)) for info in page]
        return JSONResponse({"sandboxes": boxes, "items": boxes, "next_cursor": None, "offset": following})

    async def _get(self, request: Request) -> Response:
        return self._reply(await self.find(tenant_of(request), parameter(request, "name")))

    @never_twice
    async def _update(self, request: Request) -> Response:
        found = await self.find(tenant_of(request), parameter(request, "name"))
        wanted = update_sandbox_from_json(await read_json(request))
        return self._reply(await self.host.update_sandbox(found.id, wanted))

    async def _delete(self, request: Request) -> Response:
        found = await self.find(tenant_of(request), parameter(request, "name"))

        async def deleted() -> Response:
            return Response(status_code=204)

        key = _idempotency_key(request)
        if key is None:
            # The removal goes on by itself; whoever asks again meanwhile is told that it is being deleted.
            instead(request, deleted)
        await self.host.delete_sandbox(found.id, made_with=key)
        return await deleted()

    async def _status(self, request: Request) -> Response:
        found = await self.find(tenant_of(request), parameter(request, "name"))
        return JSONResponse(status_to_json(ResourceStatus(found.status, found.status_message)))

    async def _start(self, request: Request) -> Response:
        await pass_over_body(request)
        found = await self.find(tenant_of(request), parameter(request, "name"))
        return self._reply(await self.host.start_sandbox(found.id, None), 202)

    async def _stop(self, request: Request) -> Response:
        await pass_over_body(request)
        found = await self.find(tenant_of(request), parameter(request, "name"))
        # The stop goes on by itself; from its beginning on the sandbox says that it is stopped.
        with trio.move_on_after(_STOP_S):
            await self.host.stop_sandbox(found.id)
        return self._reply(await self.host.get_sandbox(found.id), 200)

    @never_twice
    async def _capture(self, request: Request) -> Response:
        tenant = tenant_of(request)
        found = await self.find(tenant, parameter(request, "name"))
        wanted = attrs.evolve(capture_snapshot_from_json(await read_json(request)), tenant=tenant.id)
        return JSONResponse(snapshot_to_json(await self.host.capture_snapshot(found.id, wanted)), 201)

    async def _renew_lease(self, request: Request) -> Response:
        await pass_over_body(request)
        found = await self.find(tenant_of(request), parameter(request, "name"))
        return JSONResponse({"lease_seconds": await self.host.renew_lease(found.id)})

    async def _isolation(self, request: Request) -> Response:
        found = await self.find(tenant_of(request), parameter(request, "name"))
        return JSONResponse(isolation_to_json(await self.host.isolation(found.id)))

    async def find(self, tenant: Tenant, name_or_id: str) -> SandboxInfo:
        """A tenant's sandbox. Raises ``ResourceNotFoundError``, for those of others too."""
        found = await self.host.get_sandbox(name_or_id, tenant.id)
        if not found.id:
            raise ResourceNotFoundError(f"Sandbox '{name_or_id}' not found", "sandbox")
        return found

    def _reply(self, info: SandboxInfo, status: int = 200) -> Response:
        return JSONResponse(sandbox_to_json(info, dataplane_url=self._url(info)), status)

    def _url(self, info: SandboxInfo) -> str | None:
        usable = info.status not in _WITHOUT_DATAPLANE or info.is_waking
        return self.dataplane(info.id) if usable else None


def _page_of(found: list[SandboxInfo], request: Request) -> tuple[list[SandboxInfo], int]:
    """The part of a list that ``limit`` and ``offset`` ask for, and where the next begins (0 at the end)."""
    limit = whole(request, "limit", 1, _MAX_PAGE)
    limit = whole(request, "page_size", 1, _MAX_PAGE) if limit is None else limit
    start = whole(request, "offset", 0, 2**53) or 0
    if limit is None:
        return found[start:], 0
    following = start + limit
    return found[start:following], following if following < len(found) else 0


def whole(request: Request, name: str, low: int, high: int) -> int | None:
    """An integer of the query. Raises ``ValidationError``."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    digits = text.removeprefix("-")
    if len(digits) > 20 or not (digits.isascii() and digits.isdigit()):
        raise invalid("must be an integer", "query", name)
    if not low <= int(text) <= high:
        raise invalid(f"must be between {low} and {high}", "query", name)
    return int(text)


def _idempotency_key(request: Request) -> str | None:
    """A create's own mark, which its repetitions have, and its withdrawal."""
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _MAX_KEY:
        raise invalid(f"must have 1 to {_MAX_KEY} characters", "header", "idempotency-key")
    return key


def _lease(request: Request) -> int | None:
    """How many seconds the sandbox may outlive an owner that is silent; a header, so that bodies stay common."""
    text = request.headers.get(LEASE_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not 1 <= int(text) <= _MAX_LEASE_S:
        raise invalid(f"must be a whole number of seconds from 1 to {_MAX_LEASE_S}", "header", LEASE_HEADER)
    return int(text)


def _matches(info: SandboxInfo, request: Request) -> bool:
    query = request.query_params
    part, status = query.get("name_contains", "").casefold(), query.get("status")
    return (
        part in info.name.casefold()
        and status in (None, "", info.status)
        and all(_has_label(info, label) for label in _labels(query.getlist("label")))
    )


def _labels(given: Iterable[str]) -> list[tuple[str, str | None]]:
    split = (label.partition("=") for label in given)
    return [(key, value if equals else None) for key, equals, value in split]


def _has_label(info: SandboxInfo, label: tuple[str, str | None]) -> bool:
    key, value = label
    return key in info.labels and value in (None, info.labels[key])
