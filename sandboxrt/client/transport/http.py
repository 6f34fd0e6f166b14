"""The remote transport: a server's control plane and data plane, over HTTP and WebSockets.

Source: protocol.md §2 (control plane), §3 (data plane over HTTP), §1.4 (limits).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

import attrs
import httpx
import trio

from sandboxrt.client.config import RemoteConfig
from sandboxrt.client.transport.base import Attachment, Dialer, naming
from sandboxrt.client.transport.download import Download
from sandboxrt.client.transport.execute import ExecuteOnce
from sandboxrt.client.transport.link import CommandLink, NotStartedError
from sandboxrt.client.transport.pages import all_sandboxes
from sandboxrt.client.transport.pool import SocketPool, place_of
from sandboxrt.client.transport.replies import dataplane_error
from sandboxrt.client.transport.requests import Course, Requests
from sandboxrt.client.transport.socket_settings import socket_limits
from sandboxrt.client.transport.tunnel import TunnelLink
from sandboxrt.client.transport.websocket import Socket, SocketLimits, open_socket, socket_url
from sandboxrt.errors import (
    DataplaneNotConfiguredError,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxAPIError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxOperationError,
    ValidationError,
)
from sandboxrt.models import DownloadURL, IsolationReport, Registry, RegistryPage, ResourceStatus, Snapshot
from sandboxrt.protocol.exec import Execute, Reconnect
from sandboxrt.protocol.isolation_wire import isolation_from_json
from sandboxrt.protocol.links_wire import (
    download_request_to_json,
    download_url_from_json,
    service_grant_from_json,
)
from sandboxrt.protocol.registries import CreateRegistry, ListRegistries, UpdateRegistry
from sandboxrt.protocol.registries_wire import (
    create_registry_to_json,
    list_registries_to_query,
    registry_from_json,
    registry_page_from_json,
    update_registry_to_json,
)
from sandboxrt.protocol.rest import (
    LEASE_HEADER,
    CaptureSnapshot,
    CreateDownloadLink,
    CreateSandbox,
    CreateSnapshot,
    SandboxInfo,
    ServiceGrant,
    UpdateSandbox,
)
from sandboxrt.protocol.rest_errors import Call, control_error, parse_error
from sandboxrt.protocol.rest_wire import (
    capture_snapshot_to_json,
    create_sandbox_to_json,
    create_snapshot_to_json,
    sandbox_from_json,
    snapshot_from_json,
    status_from_json,
    update_sandbox_to_json,
)
from sandboxrt.protocol.wording import file_not_found, not_ready

__all__ = ["HttpTransport"]

_UNDO_S: Final = 10.0
_START_POLL_S: Final = 0.1
_CREATE_MARGIN_S: Final = 30.0
_EXECUTE_MARGIN_S: Final = 10.0
_PART_HEAD: Final = (
    'Content-Disposition: form-data; name="file"; filename="file"\r\nContent-Type: application/octet-stream\r\n\r\n'
)


@attrs.frozen
class HttpTransport:
    """One server, spoken to as one caller. Links live in the nursery of :meth:`open`."""

    config: RemoteConfig
    requests: Requests
    _nursery: trio.Nursery
    _sockets: SocketPool
    _limits: SocketLimits = attrs.field(factory=socket_limits)
    _served: trio.Event = attrs.field(factory=trio.Event)
    """Whether the control plane ever did what it was asked."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, config: RemoteConfig) -> AsyncIterator[HttpTransport]:
        """A transport for the length of the block; leaving it detaches from every command."""
        async with (
            Requests.open(config) as requests,
            SocketPool.opened() as sockets,
            trio.open_nursery() as nursery,
        ):
            try:
                yield cls(config, requests, nursery, sockets)
            finally:
                nursery.cancel_scope.cancel()

    @property
    def mode(self) -> Literal["remote"]:
        """Which kind it is."""
        return "remote"

    def with_headers(self, headers: Mapping[str, str] | None) -> HttpTransport:
        """The same with a call's own headers, which take the place of those of the same name."""
        return attrs.evolve(self, requests=self.requests.with_headers(headers)) if headers else self

    # -- sandboxes ---------------------------------------------------------------------------------------------------

    async def create_sandbox(self, request: CreateSandbox) -> SandboxInfo:
        """Make a sandbox."""
        _check_creation(request)
        course = Course()
        try:
            return await self._create(request, course)
        except ResourceAlreadyExistsError:
            if not (request.name_is_ours and course.repeated):
                raise
            # Made by the first attempt, for a server that knows no keys.
            return await self.wait_for_sandbox(request.name, request.timeout_s, _START_POLL_S)
        except (trio.Cancelled, SandboxConnectionError):
            if course.begun:
                await self._undo(request)  # it may have been made all the same
            raise

    async def _create(self, request: CreateSandbox, course: Course) -> SandboxInfo:
        limit = self.config.timeout_s
        if limit > 0:  # else there is none, whatever the server takes
            limit = max(limit, _CREATE_MARGIN_S) + (request.timeout_s if request.wait_for_ready else 0)
        headers = {} if request.idempotency_key is None else {"idempotency-key": request.idempotency_key}
        if request.lease_seconds is not None:
            headers[LEASE_HEADER] = str(request.lease_seconds)
        answer = await self._control(
            Call.CREATE_SANDBOX,
            "POST",
            "/boxes",
            json=create_sandbox_to_json(request),
            headers=headers,
            timeout_s=limit,
            repeatable=request.idempotency_key is not None,
            course=course,
        )
        return sandbox_from_json(answer)

    async def _undo(self, request: CreateSandbox) -> None:
        """Delete what a create made whose answer nobody takes."""
        with trio.move_on_after(_UNDO_S, shield=True):
            try:
                if request.name_is_ours:
                    while True:
                        await self.delete_sandbox(request.name)
                        await trio.sleep(0.02)  # a request that is still on its way would make it again
                # A name of the user's may be somebody else's sandbox. The key tells: repeated, the create gives us what
                # it made, or is refused for a name that is taken.
                made = await self._create(attrs.evolve(request, wait_for_ready=False), Course())
                await self.delete_sandbox(made.id)
            except SandboxClientError:
                pass

    async def get_sandbox(self, name: str) -> SandboxInfo:
        """A sandbox by name or id."""
        return sandbox_from_json(await self._control(Call.SANDBOX, "GET", _box(name), subject=name))

    async def list_sandboxes(self, *, elsewhere: bool = False) -> list[SandboxInfo]:
        """Every sandbox of the caller, page by page where the server gives pages; none is elsewhere."""

        async def page(offset: int) -> object:
            params = {"offset": offset} if offset else None
            return await self._control(Call.LIST, "GET", "/boxes", params=params)

        return await all_sandboxes(page)

    async def update_sandbox(self, name: str, request: UpdateSandbox) -> SandboxInfo:
        """Change a sandbox."""
        answer = await self._control(
            Call.UPDATE_SANDBOX,
            "PATCH",
            _box(name),
            json=update_sandbox_to_json(request),
            subject=name,
            new_name=request.new_name or "",
        )
        return sandbox_from_json(answer)

    async def delete_sandbox(self, name: str) -> None:
        """Delete a sandbox."""
        await self._delete(Call.SANDBOX, _box(name), name)

    async def sandbox_status(self, name: str) -> ResourceStatus:
        """How far a sandbox is."""
        return status_from_json(await self._control(Call.SANDBOX, "GET", _box(name) + "/status", subject=name))

    async def wait_for_sandbox(self, name: str, timeout_s: float, poll_interval_s: float) -> SandboxInfo:
        """Ask for the status until it is ready."""
        ask = partial(self.sandbox_status, name)
        await _until_ready(ask, timeout_s, poll_interval_s, "sandbox", name, "Sandbox provisioning failed")
        return await self.get_sandbox(name)

    async def start_sandbox(self, name: str, timeout_s: float) -> SandboxInfo:
        """Ask for the start, then for the status until it is ready."""
        await self._order(name, "start")
        return await self.wait_for_sandbox(name, timeout_s, _START_POLL_S)

    async def stop_sandbox(self, name: str) -> None:
        """Ask for the stop, and wait until it is done, as far as the server says so."""
        await self._order(name, "stop")

    async def renew_lease(self, name: str, seconds: int) -> None:
        """Say that a sandbox's owner lives."""
        await self._order(name, "lease", timeout_s=max(seconds / 4, 1), urgent=True)

    async def _order(self, name: str, order: str, **options: Any) -> None:
        """Something that is the same done once or twice."""
        path = f"{_box(name)}/{order}"
        await self._control(Call.SANDBOX, "POST", path, json={}, subject=name, repeatable=True, **options)

    # -- snapshots ---------------------------------------------------------------------------------------------------

    async def create_snapshot(self, request: CreateSnapshot) -> Snapshot:
        """Begin to build a snapshot."""
        body = create_snapshot_to_json(request)
        return snapshot_from_json(await self._control(Call.CREATE_SNAPSHOT, "POST", "/snapshots", json=body))

    async def create_registry(self, request: CreateRegistry) -> Registry:
        """Make a named registry."""
        body = create_registry_to_json(request)
        return registry_from_json(await self._registry("POST", subject=request.name, json=body))

    async def get_registry(self, name: str) -> Registry:
        """A named registry."""
        return registry_from_json(await self._registry("GET", name, subject=name))

    async def list_registries(self, request: ListRegistries) -> RegistryPage:
        """A page of named registries."""
        return registry_page_from_json(await self._registry("GET", params=list_registries_to_query(request)))

    async def update_registry(self, name: str, change: UpdateRegistry) -> Registry:
        """Change a named registry."""
        body = update_registry_to_json(change)
        return registry_from_json(await self._registry("PATCH", name, subject=name, json=body))

    async def delete_registry(self, name: str) -> None:
        """Forget a named registry."""
        await self._registry("DELETE", name, subject=name)

    async def _registry(self, method: str, name: str | None = None, **options: Any) -> Any:
        path = "/registries" if name is None else "/registries/" + quote(name, safe="")
        call = Call.LIST if name is None and method == "GET" else Call.REGISTRY
        return await self._control(call, method, path, base_url=self.config.registries_base_url, **options)

    async def capture_snapshot(self, name: str, request: CaptureSnapshot) -> Snapshot:
        """Begin to make a snapshot of a sandbox's files."""
        body = capture_snapshot_to_json(request)
        return snapshot_from_json(
            await self._control(Call.SANDBOX, "POST", _box(name) + "/snapshot", json=body, subject=name)
        )

    async def get_snapshot(self, snapshot_id: str) -> Snapshot:
        """A snapshot by id, ``name:tag`` or name."""
        path = "/snapshots/" + quote(snapshot_id, safe=":")
        return snapshot_from_json(await self._control(Call.SNAPSHOT, "GET", path, subject=snapshot_id))

    async def list_snapshots(self, name_contains: str | None, limit: int | None, offset: int | None) -> list[Snapshot]:
        """A page of snapshots."""
        asked = {"name_contains": name_contains, "limit": limit, "offset": offset}
        params = {name: value for name, value in asked.items() if value is not None}
        body = await self._control(Call.LIST, "GET", "/snapshots", params=params)
        return [snapshot_from_json(item) for item in (body.get("snapshots") if isinstance(body, dict) else None) or ()]

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a snapshot."""
        await self._delete(Call.SNAPSHOT, "/snapshots/" + quote(snapshot_id, safe=""), snapshot_id)

    async def wait_for_snapshot(self, snapshot_id: str, timeout_s: float, poll_interval_s: float) -> Snapshot:
        """Ask for the snapshot until it is ready."""
        ask = partial(self.get_snapshot, snapshot_id)
        return await _until_ready(ask, timeout_s, poll_interval_s, "snapshot", snapshot_id, "Snapshot build failed")

    # -- commands and files ------------------------------------------------------------------------------------------

    async def attach(self, sandbox: SandboxInfo, first: Execute | Reconnect) -> Attachment:
        """Start a command or attach to one.

        Where no WebSocket can be had at all, a command that needs none runs over plain HTTP.
        """
        url = await self._dataplane(sandbox)
        address, headers = socket_url(url) + "/execute/ws", self.requests.headers
        place = place_of(address, headers)
        new = partial(open_socket, address, headers, self._limits, self.requests.tls)

        def dial(fresh: bool) -> contextlib.AbstractAsyncContextManager[Socket]:
            return self._sockets.borrow(place, new, fresh=fresh)

        link = CommandLink(dial, first, self._limits.budget_s)
        self._nursery.start_soon(link.run)
        try:
            with naming(sandbox):
                await link.ready()
        except NotStartedError:
            await link.aclose()
            if isinstance(first, Execute) and ExecuteOnce.can(first):
                return ExecuteOnce(first, partial(self._execute, url))
            raise
        except BaseException:
            await link.aclose()
            raise
        return link

    @contextlib.asynccontextmanager
    async def tunnel(self, sandbox: SandboxInfo, port: int, max_reconnects: int) -> AsyncIterator[Dialer]:
        """A way to a port inside, over a WebSocket of its own."""
        url = socket_url(await self._dataplane(sandbox)) + "/tunnel"

        def dial(headers: Mapping[str, str]) -> contextlib.AbstractAsyncContextManager[Socket]:
            return open_socket(url, {**self.requests.headers, **headers}, self._limits, self.requests.tls)

        with naming(sandbox):
            async with TunnelLink.opened(dial, port, max_reconnects) as link:
                yield link

    async def _execute(self, url: str, body: Mapping[str, Any], timeout_s: float) -> Any:
        limit = timeout_s + _EXECUTE_MARGIN_S if timeout_s else 0
        answer = await self.requests.send("POST", url + "/execute", json=body, timeout_s=limit)
        if not answer.is_success:
            raise dataplane_error(answer)
        return _json(answer)

    async def read_file(self, sandbox: SandboxInfo, path: str) -> bytes:
        """A file's content; what broke off is taken up again."""
        url = await self._dataplane(sandbox)
        found = await Download(self.requests, url + "/download", path).fetch()
        if isinstance(found, bytes):
            return found
        error = dataplane_error(found, "read")
        if isinstance(error, ResourceNotFoundError) and error.resource_type == "file":
            raise file_not_found(path, sandbox.name)
        with naming(sandbox):
            raise error

    async def write_file(self, sandbox: SandboxInfo, path: str, content: AsyncIterator[bytes]) -> None:
        """Put a file in place."""
        url = await self._dataplane(sandbox)
        # Made anew for each file: whoever wrote the file could put a boundary that he knows into it.
        boundary = f"sandboxrt-{secrets.token_hex(16)}"
        head, end = f"--{boundary}\r\n{_PART_HEAD}".encode(), f"\r\n--{boundary}--\r\n".encode()
        pieces = [head, *[piece async for piece in content], end]
        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(sum(map(len, pieces))),
        }

        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        answer = await self.requests.send(
            "POST", url + "/upload", params={"path": path}, body=body, headers=headers, timeout_s=0
        )
        if not answer.is_success:
            with naming(sandbox):
                raise dataplane_error(answer, "write")

    async def service_url(self, name: str, port: int, expires_in_seconds: int) -> ServiceGrant:
        """The right to talk to a service."""
        body = {"port": port, "expires_in_seconds": expires_in_seconds}
        path = _box(name) + "/service-url"
        answer = await self._control(Call.SANDBOX, "POST", path, json=body, subject=name, repeatable=True)
        return service_grant_from_json(answer)

    async def service_connections(self) -> httpx.AsyncBaseTransport:
        """Those of the API's requests too; nothing that one of them sends is sent with another."""
        return self.requests.connections

    async def download_url(self, name: str, request: CreateDownloadLink) -> DownloadURL:
        """A link to a file."""
        body = download_request_to_json(request)
        answer = await self._control(Call.SANDBOX, "POST", _box(name) + "/download-url", json=body, subject=name)
        return download_url_from_json(answer)

    async def isolation(self, sandbox: SandboxInfo) -> IsolationReport:
        """What isolation a sandbox really has; only servers of our kind say it."""
        answer = await self.requests.send("GET", self.config.base_url + _box(sandbox.name) + "/isolation")
        found = isolation_from_json(_json(answer)) if answer.is_success else None
        if found is None:
            raise SandboxOperationError(f"The server does not tell the isolation of '{sandbox.name}'", "isolation")
        return found

    async def _dataplane(self, sandbox: SandboxInfo) -> str:
        if not sandbox.dataplane_url:
            sandbox = await self.get_sandbox(sandbox.name)
        if sandbox.dataplane_url:
            return sandbox.dataplane_url.rstrip("/")
        if sandbox.status != "ready":
            raise not_ready(sandbox.name, sandbox.status, sandbox.status_message)
        raise DataplaneNotConfiguredError(f"Sandbox '{sandbox.name}' has no data-plane URL")

    # -- requests ----------------------------------------------------------------------------------------------------

    async def _delete(self, call: Call, path: str, subject: str) -> None:
        course = Course()
        try:
            await self._control(call, "DELETE", path, subject=subject, repeatable=True, course=course)
        except ResourceNotFoundError:
            if not course.repeated:
                raise
            # Gone is what was wanted; most likely it was the first request, whose answer was lost.

    async def _control(
        self,
        call: Call,
        method: str,
        path: str,
        *,
        subject: str = "",
        new_name: str = "",
        base_url: str | None = None,
        **options: Any,
    ) -> Any:
        url = (base_url or self.config.base_url) + path
        answer = await self.requests.send(method, url, **options)
        if answer.is_success:
            found = _json(answer)
            self._served.set()
            return found
        body = parse_error(_json(answer), _status_text(answer))
        error = control_error(answer.status_code, body, call, subject=subject, new_name=new_name, url=url)
        if answer.status_code in (404, 405) and not self._served.is_set() and self.config.advice:
            raise SandboxAPIError(f"{body.message}: {self.config.advice}") from error
        raise error


_Resource = TypeVar("_Resource", ResourceStatus, Snapshot)


async def _until_ready(
    ask: Callable[[], Awaitable[_Resource]], timeout_s: float, interval_s: float, kind: str, name: str, failure: str
) -> _Resource:
    """Ask, once at least, until the answer is that it is ready."""
    deadline = trio.current_time() + timeout_s
    while True:
        found = await ask()
        if found.status == "ready":
            return found
        if found.status == "failed":
            why = found.error_type if isinstance(found, Snapshot) else None
            raise ResourceCreationError(found.status_message or failure, kind, why)
        left = deadline - trio.current_time()
        if left <= 0:
            raise ResourceTimeoutError(
                f"{kind.capitalize()} '{name}' not ready after {timeout_s:g}s", kind, found.status
            )
        await trio.sleep(min(interval_s, left))


def _json(answer: httpx.Response) -> Any:
    """The answer's JSON; ``None`` for none.

    Raises:
        SandboxAPIError: A success without JSON: whatever answered, it is no sandbox API.
    """
    if not answer.content:
        return None
    try:
        return answer.json()
    except ValueError:
        if answer.is_success:
            raise SandboxAPIError(
                f"{answer.url} answered with something that is no JSON; is this a sandbox API?"
            ) from None
        return None


def _status_text(answer: httpx.Response) -> str:
    return f"{answer.request.method} {answer.url}: HTTP {answer.status_code} {answer.reason_phrase}".rstrip()


def _box(name: str) -> str:
    if not name:
        raise ValueError("the sandbox's name must not be empty")
    return "/boxes/" + quote(name, safe="")


def _check_creation(request: CreateSandbox) -> None:
    if request.snapshot_id is not None and request.snapshot_name is not None:
        raise ValueError("give snapshot_id or snapshot_name, not both")
    if not request.name:
        raise ValidationError("the sandbox's name must not be empty", "name")
