"""The data plane: everything that is done inside one sandbox over HTTP and WebSockets, as routes below its URL.

Who may use which sandbox is decided before, by the function that a server hands in; here is what they may do with it,
how much of it at once, and how it is told what went wrong.

Source: protocol.md §3 and §4.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import attrs
import trio
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from sandboxrt.errors import SandboxClientError
from sandboxrt.host.attachment import AnyAttachment
from sandboxrt.host.host import Host
from sandboxrt.protocol.exec import Execute, Reconnect
from sandboxrt.protocol.wording import not_ready
from sandboxrt.server.entry import entry_of
from sandboxrt.server.exec_ws import InputBudget, SocketSettings, serve_socket
from sandboxrt.server.execute import execute
from sandboxrt.server.files import FileSettings, download, upload
from sandboxrt.server.replies import BusyError, error_reply, reply
from sandboxrt.server.resting import Rest, RestingSettings, RestingSockets
from sandboxrt.server.search import glob, grep
from sandboxrt.server.sse import StreamSettings, resume, start
from sandboxrt.server.tunnel_ws import TunnelSockets, TunnelSocketSettings

__all__ = ["DataPlane", "DataPlaneSettings"]

_log = logging.getLogger("sandboxrt.server")

_WAKE_S = 30.0

Handler = Callable[[str, Request], Awaitable[ASGIApp]]


@attrs.frozen(kw_only=True)
class DataPlaneSettings:
    """The bounds of the data plane.

    Attributes:
        sockets: Those of each command socket.
        resting: Those of command sockets between two commands.
        streams: Those of each stream of events.
        files: Those of each transfer.
        tunnels: Those of tunnels.
        input_bytes: Input that all sockets together take ahead of their commands.
        max_commands: Sockets, streams and waiting requests of one sandbox at once; one more gets a 429.
        max_transfers: Uploads and downloads of one sandbox at once, likewise.
        max_searches: Searches in one sandbox at once, likewise.
    """

    sockets: SocketSettings = attrs.field(factory=SocketSettings)
    resting: RestingSettings = attrs.field(factory=RestingSettings)
    streams: StreamSettings = attrs.field(factory=StreamSettings)
    files: FileSettings = attrs.field(factory=FileSettings)
    tunnels: TunnelSocketSettings = attrs.field(factory=TunnelSocketSettings)
    input_bytes: int = 256 * 1024**2
    max_commands: int = 512
    max_transfers: int = 32
    max_searches: int = 4


class DataPlane:
    """The data plane of a host.

    Args:
        host: Whose sandboxes.
        resolve: Says which sandbox a request is for, by its id, once it has seen that the caller may use it. Raises
            what the caller shall be told otherwise.
        settings: The bounds.
    """

    def __init__(
        self,
        host: Host,
        resolve: Callable[[HTTPConnection], Awaitable[str]],
        settings: DataPlaneSettings | None = None,
    ) -> None:
        self.stopping: trio.Event = trio.Event()
        """To be set when the server stops: sockets and streams then end in the way after which clients come back."""
        self._host = host
        self._resolve = resolve
        self._settings = settings or DataPlaneSettings()
        self.resting: RestingSockets = RestingSockets(self._settings.resting)
        """The command sockets that wait for another command."""
        self._input_budget = InputBudget(self._settings.input_bytes)
        self._under_way: Counter[tuple[str, str]] = Counter()
        self._tunnels = TunnelSockets(host.open_tunnel, self._settings.tunnels, self.stopping)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {self._under_way.total()} requests under way>"

    def routes(self, prefix: str = "") -> list[BaseRoute]:
        """The routes below ``prefix``, which is where ``dataplane_url`` points to."""
        settings = self._settings
        host, stopping = self._host, self.stopping

        def route(
            path: str, methods: list[str], kind: str, limit: int, handler: Handler, *, wakes: bool = True
        ) -> Route:
            return Route(prefix + path, _Endpoint(self, kind, limit, handler, wakes=wakes), methods=methods)

        return [
            WebSocketRoute(prefix + "/execute/ws", self._execute_ws),
            WebSocketRoute(prefix + "/tunnel", self._tunnel),
            route("/execute", ["POST"], "command", settings.max_commands, lambda s, r: execute(host, s, r, stopping)),
            route(
                "/execute/stream/start",
                ["POST"],
                "command",
                settings.max_commands,
                lambda s, r: start(host, s, r, stopping, settings.streams),
            ),
            route(
                "/execute/stream/resume",
                ["POST"],
                "command",
                settings.max_commands,
                lambda s, r: resume(host, s, r, stopping, settings.streams),
                wakes=False,
            ),
            route(
                "/upload",
                ["POST"],
                "transfer",
                settings.max_transfers,
                lambda s, r: upload(host, s, r, settings.files),
            ),
            route("/glob", ["POST"], "search", settings.max_searches, lambda s, r: glob(host, s, r)),
            route("/grep", ["POST"], "search", settings.max_searches, lambda s, r: grep(host, s, r)),
            route("/download", ["GET"], "transfer", settings.max_transfers, lambda s, r: download(host, s, r)),
            Route(prefix + "/tunnel", _no_upgrade, methods=["GET"]),
        ]

    @contextmanager
    def slot(self, sandbox: str, kind: str, limit: int) -> Iterator[None]:
        """Room for one more of a kind in a sandbox, for the length of the block.

        Raises:
            BusyError: There is none.
        """
        key = sandbox, kind
        if self._under_way[key] >= limit:
            raise BusyError(f"The sandbox has {limit} requests of this kind ('{kind}') under way, which is its limit")
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]

    async def find(self, connection: HTTPConnection) -> str:
        """The id of the sandbox that a request is for.

        Raises:
            SandboxClientError: What the caller is told instead.
        """
        return await self._resolve(connection)

    async def wake(self, sandbox: str) -> None:
        """Start a sandbox that is stopped: newer clients expect that when they use it, older ones do not even ask.

        Everybody who comes until it is ready waits for the same start.

        Raises:
            ResourceTimeoutError: It is not ready in half a minute; it still becomes so.
            ResourceCreationError: It could not be started.
        """
        info = await self._host.get_sandbox(sandbox)
        if info.status == "stopped" or info.is_waking:
            await self._host.start_sandbox(sandbox, _WAKE_S)

    async def _execute_ws(self, websocket: WebSocket) -> None:
        with ExitStack() as held:
            try:
                sandbox = await self._take_slot(websocket, held)
                await websocket.accept()
                await self._serve_socket(websocket, sandbox, held)
            except SandboxClientError as error:
                await websocket.send_denial_response(error_reply(error))

    async def _take_slot(self, websocket: WebSocket, held: ExitStack) -> str:
        """Room for a command in the sandbox that a socket is for; ``held`` gives it back. Raises why there is none."""
        sandbox = await self.find(websocket)
        info = await self._host.get_sandbox(sandbox)
        if info.status not in ("ready", "stopped") and not info.is_waking:
            raise not_ready(info.name, info.status, info.status_message)
        held.enter_context(self.slot(sandbox, "command", self._settings.max_commands))
        return sandbox

    async def _serve_socket(self, websocket: WebSocket, sandbox: str, held: ExitStack) -> None:
        async def attach(first: Execute | Reconnect) -> AnyAttachment:
            websocket.scope["sandboxrt.commands"] = websocket.scope.get("sandboxrt.commands", 0) + 1
            # Whoever comes back for a command finds none in a sandbox that was stopped, and need not wake it.
            if isinstance(first, Execute):
                await self.wake(sandbox)
            return await self._host.attach(sandbox, first)

        rest = self._rest(websocket, sandbox, held)
        await serve_socket(
            websocket, attach, self._settings.sockets, stopping=self.stopping, budget=self._input_budget, rest=rest
        )

    def _rest(self, websocket: WebSocket, sandbox: str, held: ExitStack) -> Rest:
        entry = entry_of(websocket)

        def let_go() -> None:
            held.close()
            if entry is not None:
                entry.step_out()

        async def resume() -> None:
            if entry is not None:
                await entry.come_in()
            await self._take_slot(websocket, held)

        key = "" if entry is None else entry.tenant.key_id
        return Rest(self.resting, key, let_go, resume, partial(self._host.wait_ended, sandbox))

    async def _tunnel(self, websocket: WebSocket) -> None:
        try:
            sandbox = await self.find(websocket)
            await self.wake(sandbox)
            await self._tunnels.serve(websocket, sandbox)
        except SandboxClientError as error:
            await websocket.send_denial_response(error_reply(error))


class _Endpoint:
    """One HTTP route: finds the sandbox, keeps the limit while the answer is sent, and words what went wrong."""

    def __init__(self, plane: DataPlane, kind: str, limit: int, handler: Handler, *, wakes: bool) -> None:
        self._plane = plane
        self._kind = kind
        self._limit = limit
        self._handler = handler
        self._wakes = wakes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        request = Request(scope, receive)
        try:
            sandbox = await self._plane.find(request)
            with self._plane.slot(sandbox, self._kind, self._limit):
                if self._wakes:
                    await self._plane.wake(sandbox)
                response = await self._handler(sandbox, request)
                await response(scope, receive, noting_send)
            return
        except ClientDisconnect:
            return
        except SandboxClientError as error:
            if started:
                # Half an answer is sent: breaking it off tells the client, a second answer in it would not.
                raise
            failure = error_reply(error)
        await failure(scope, receive, send)


async def _no_upgrade(request: Request) -> Response:
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return reply(426, "UpgradeRequired", "A tunnel is a WebSocket; ask for the upgrade", headers=headers)
