"""Hypercorn's connections, with the guards that a server for strangers needs.

What the guards are for, each measured with hypercorn 0.18 on trio:

* An error on one connection (closing a WebSocket races a send) ended the whole server. Here nothing leaves a
  connection but into the log.
* A send to a peer that stopped reading was shielded without a deadline and blocked shutdown. Here a send has a deadline
  and can be cancelled; a connection whose send was cut short is dropped, for half a frame cannot be taken back.
* A connection whose application had answered before it had read the whole request could wait for ever. Here what is
  left of a closed connection is ended after a while.
* A peer that hangs while its kernel goes on to answer kept its commands and tunnels for ever. Here WebSockets that are
  silent are pinged, and dropped when that is not answered again and again.
* Request headers that never end, peers that vanish without a word, and more connections than there is room for.

HTTP/2 is not offered: no client of this protocol speaks it.

Source: ours; the connection's protocol handling is hypercorn's.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Sequence
from typing import Any, Protocol

import attrs
import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import EndBody
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol, H11WSConnection
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr, wrap_app
from starlette.types import ASGIApp
from wsproto.events import Ping

from sandboxrt.gateway.front import Front, GoneError
from sandboxrt.host.descriptors import open_limit, raise_limit
from sandboxrt.server.accepting import accept_all
from sandboxrt.sockets import send_at_once

__all__ = ["ConnectionLimits", "SideDoor", "serve_connections"]

_log = logging.getLogger("sandboxrt.server")
_MAX_RECV = 2**16
_SMALL_BYTES = 16 * 1024
_IN_A_ROW = 16
"""Sends after which a connection lets all others run, whether it has to wait or not."""
_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError, OSError)
_MAX_REFUSED = 64
"""So many connections beyond the limit are told why they are closed, at once; others are closed without a word."""
_REFUSAL_S = 1.0
_HEALTH = b"GET /healthz "
_HEALTHY_BODY = b'{"status":"ok"}'
_HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_HEALTHY_BODY),
    _HEALTHY_BODY,
)
_FULL_BODY = b'{"detail":{"error":"ServiceUnavailable","message":"The server has as many connections as it may"}}'
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)


@attrs.frozen(kw_only=True)
class ConnectionLimits:
    """The bounds of connections.

    Attributes:
        max_connections: At once; one more is told 503 and closed.
        max_header_bytes: Request line and headers together.
        header_s: From a request's first byte to the end of its headers.
        handshake_s: For TLS.
        idle_s: How long a connection may stay open without a request.
        send_stall_s: How long a peer may take nothing of what it is sent.
        vanished_s: After how long the kernel gives up a peer that does not answer at all.
        ping_s: After how long without a word from a WebSocket's peer it is sent a ping.
        max_pings: How many in succession may be unanswered; after as many the connection is dropped.
        linger_s: What an application is given to end after its connection was closed.
        drain_s: What all are given to end when the server stops.
    """

    max_connections: int = 4096
    max_header_bytes: int = 32 * 1024
    header_s: float = 10.0
    handshake_s: float = 10.0
    idle_s: float = 75.0
    send_stall_s: float = 60.0
    vanished_s: float = 60.0
    ping_s: float = 30.0
    max_pings: int = 4
    linger_s: float = 30.0
    drain_s: float = 10.0


class SideDoor(Protocol):
    """Takes some of the requests before the application sees them, with the bytes of their connection."""

    def takes(self, request: h11.Request) -> bool:
        """Whether a request is for it."""
        ...

    async def serve(self, front: Front, request: h11.Request) -> bool:
        """Answer a request; whether the connection is good for another one."""
        ...


async def serve_connections(
    app: ASGIApp,
    listeners: Sequence[trio.SocketListener],
    *,
    stopping: trio.Event,
    side_door: SideDoor | None = None,
    limits: ConnectionLimits | None = None,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an application on listening sockets until ``stopping`` is set and everything has ended, or was ended.

    Cancellation: Everything is dropped at once.
    """
    raise_limit()
    server = _Server(app, limits or ConnectionLimits(), tls, side_door)
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            for listener in listeners:
                accepting.start_soon(accept_all, listener, server.serve, server.turn_away, connections)
            task_status.started()
            await stopping.wait()
            accepting.cancel_scope.cancel()
        await server.context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + server.limits.drain_s


class _Server:
    """What the connections of a server share."""

    def __init__(
        self, app: ASGIApp, limits: ConnectionLimits, tls: ssl.SSLContext | None, side_door: SideDoor | None
    ) -> None:
        self.limits = limits
        self._side_door = side_door
        self.context = WorkerContext(None)
        self._tls = tls
        self._open = self._refused = 0
        self._config = config = Config()
        config.h11_max_incomplete_size = limits.max_header_bytes
        config.keep_alive_timeout = limits.idle_s
        config.keep_alive_max_requests = 100_000
        config.ssl_handshake_timeout = limits.handshake_s
        config.include_server_header = False
        config.websocket_max_message_size = 4 * 1024**2
        config.errorlog = None
        self._app: AppWrapper = wrap_app(app, 0, "asgi")  # type: ignore[arg-type]

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end. Never raises but when cancelled."""
        # What connections are for needs descriptors, too.
        if self._open >= min(self.limits.max_connections, open_limit() // 2):
            if self._refused < _MAX_REFUSED:
                await self.turn_away(stream)
            await trio.aclose_forcefully(stream)
            return
        self._open += 1
        try:
            _watch_peer(stream.socket, self.limits.vanished_s)
            guarded: Any = stream if self._tls is None else self._encrypted(stream)
            await _Connection(self._app, self._config, self.context, guarded, self.limits, self._side_door).run()
        except* trio.Cancelled:
            raise
        except* _RefusedError:
            pass
        except* Exception as group:  # noqa: BLE001  one connection's trouble is nobody else's
            _log.warning("a connection ended with an error", exc_info=group)
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)

    async def turn_away(self, stream: trio.SocketStream) -> None:
        """Tell one that comes when there is no room; who asks for the server's health gets it. Within a second."""
        self._refused += 1
        try:
            with trio.move_on_after(_REFUSAL_S):
                await _refuse(stream, self._tls is not None)
        finally:
            self._refused -= 1
            await trio.aclose_forcefully(stream)

    def _encrypted(self, stream: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
        assert self._tls is not None
        return trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)


class _RefusedError(Exception):
    """The peer speaks what is not offered."""


class _Http11(H11Protocol):
    """HTTP/1.1 and WebSockets alone."""

    guard: _Connection
    """Whose protocol it is."""

    @property
    def at_rest(self) -> bool:
        """Whether no part of a request is here."""
        connection = self.connection
        if not isinstance(connection, h11.Connection) or connection.their_state is not h11.IDLE:
            return False
        return not connection.trailing_data[0]

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.http_version not in (b"1.0", b"1.1"):
            raise _RefusedError

    async def _create_stream(self, request: h11.Request) -> None:
        side_door = self.guard.side_door
        if side_door is not None and isinstance(self.connection, h11.Connection) and side_door.takes(request):
            await self._step_aside(side_door, self.connection, request)
            return
        headers = [(name, value) for name, value in request.headers if name != b"sec-websocket-extensions"]
        if len(headers) < len(request.headers):
            # Compression is declined by not seeing its offer. It takes this thread some milliseconds for each frame of
            # output, and hundreds of kilobytes for each socket.
            request = h11.Request(
                method=request.method, headers=headers, target=request.target, http_version=request.http_version
            )
        await super()._create_stream(request)
        if isinstance(self.stream, WSStream):
            self.task_group.spawn(self.guard.ping, self.stream)

    async def _step_aside(self, side_door: SideDoor, connection: h11.Connection, request: h11.Request) -> None:
        """Leave the connection to the side door for one request; it reads and sends by itself meanwhile."""
        peer = self.client[0] if self.client else ""
        front = Front(connection, self.guard.read_aside, self.guard.send_aside, self.guard.end_aside, peer)
        self.keep_alive_requests += 1
        if await side_door.serve(front, request) and not self.context.terminated.is_set():
            await self.send(Updated(idle=True))
        else:
            self.connection = _Ended()
            await self.send(Closed())

    async def stream_send(self, event: StreamEvent) -> None:
        """What a request's stream sends; a WebSocket that was refused ends its connection."""
        refused = isinstance(event, EndBody) and isinstance(self.stream, WSStream)
        await super().stream_send(event)
        if refused:
            # Hypercorn leaves it open, with nothing that would ever end it.
            await self.send(Closed())


class _Ended(H11WSConnection):
    """The state of a connection that is over: whatever still comes means nothing."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def receive_data(self, data: bytes) -> None:
        """Pass over it."""


class _Connection(TCPServer):
    """One connection, guarded."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        stream: Any,
        limits: ConnectionLimits,
        side_door: SideDoor | None,
    ) -> None:
        super().__init__(app, config, context, ConnectionState({}), stream)
        self.stream: Any = stream
        self.side_door: SideDoor | None = side_door
        self._http: _Http11
        self._limits = limits
        self._scope = trio.CancelScope()
        self._idle = True
        self._dropped = False
        self._unheard = False
        self._pinging = trio.CancelScope()
        self._spoke = False
        """Whether anything came from the peer since somebody looked."""
        self._in_a_row = 0

    async def run(self) -> None:
        """Serve it to its end; what is left of it by then is cancelled."""
        is_tls = isinstance(self.stream, trio.SSLStream)
        transport: Any = self.stream.transport_stream if is_tls else self.stream
        try:
            client = parse_socket_addr(transport.socket.family, transport.socket.getpeername())
            server = parse_socket_addr(transport.socket.family, transport.socket.getsockname())
            if is_tls:
                with trio.fail_after(self._limits.handshake_s):
                    await self.stream.do_handshake()
        except (*_BROKEN, ssl.SSLError, trio.TooSlowError):
            return
        try:
            with self._scope:
                async with TaskGroup() as task_group:
                    self._task_group = task_group
                    self.protocol = protocol = _Http11(  # type: ignore[assignment]
                        self.app,
                        self.config,
                        self.context,
                        task_group,
                        ConnectionState({}),
                        is_tls,
                        client,
                        server,
                        self.protocol_send,
                    )
                    protocol.guard = self
                    await self.idle_task.restart(task_group, self._idle_timeout)
                    self._http = protocol
                    await self._read_data()
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        """Send bytes, close, or note that a request begins or has ended."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Closed):
            await self._close()
        elif isinstance(event, Updated):
            self._idle = event.idle
            if event.idle:
                await self.idle_task.restart(self._task_group, self._idle_timeout)
            else:
                await self.idle_task.stop()

    def _sent_at_once(self, data: bytes) -> int:
        """How much of something small could be sent without waiting; others run before it, every now and then."""
        self._in_a_row = (self._in_a_row + 1) % _IN_A_ROW
        if not self._in_a_row or len(data) > _SMALL_BYTES or not isinstance(self.stream, trio.SocketStream):
            return 0
        if self.send_lock.locked() or self._dropped or self._unheard:
            return 0
        return send_at_once(self.stream.socket, data)

    async def _send(self, data: bytes) -> None:
        rest = data[self._sent_at_once(data) :]
        if not rest:
            return
        if locked := len(rest) < len(data):
            # Nothing waited since it was found free; nobody else's bytes may come between the two parts.
            self.send_lock.acquire_nowait()
        sent = False
        try:
            with trio.move_on_after(self._limits.send_stall_s):
                if not locked:
                    await self.send_lock.acquire()
                    locked = True
                if not self._dropped and not self._unheard:
                    await self.stream.send_all(rest)
                sent = not self._dropped
        except _BROKEN:
            # The peer is gone, but its last words may be here already, a kill for instance. The reader takes them, and
            # then finds the end of the connection.
            self._unheard = sent = True
        finally:
            # The protocol counts these bytes as sent, so without all of them the connection is of no more use.
            if not sent:
                self._drop()
            if locked:
                self.send_lock.release()

    async def ping(self, stream: WSStream) -> None:
        """Ask a WebSocket's peer for a sign of life while it says nothing; drop one that gives none, time after time.

        Counted in pings that were sent, so that a pause of this server itself is not held against anybody.
        """
        unanswered = 0
        with self._pinging:
            while not stream.closed and not self._dropped:
                self._spoke = False
                await trio.sleep(self._limits.ping_s)
                if self._spoke or stream.state is not ASGIWebsocketState.CONNECTED:
                    unanswered = 0
                    continue
                if unanswered >= self._limits.max_pings:
                    self._drop()
                    return
                await stream._send_wsproto_event(Ping())
                unanswered += 1

    async def read_aside(self) -> bytes:
        """The next bytes, for a side door; the reader waits for it meanwhile."""
        try:
            return bytes(await self.stream.receive_some(_MAX_RECV))
        except _BROKEN:
            return b""

    async def send_aside(self, data: bytes) -> None:
        """Send bytes for a side door. Raises ``GoneError`` when nobody is there to take them."""
        await self._send(data)
        if self._unheard or self._dropped:
            raise GoneError

    async def end_aside(self) -> None:
        """Tell a side door's client that there is no more for it; over TLS only closing says so."""
        if not isinstance(self.stream, trio.SSLStream):
            with contextlib.suppress(*_BROKEN):
                await self.stream.send_eof()

    async def _read_data(self) -> None:
        deadline = math.inf
        while True:
            try:
                with trio.move_on_at(deadline) as scope:
                    data = await self.stream.receive_some(_MAX_RECV)
            except _BROKEN:
                break
            if scope.cancelled_caught:
                break
            self._spoke = True
            await self.protocol.handle(RawData(bytes(data)))
            if not data:
                break
            if not self._idle or self._http.at_rest:
                deadline = math.inf
            elif deadline == math.inf:
                deadline = trio.current_time() + self._limits.header_s
        await self._end()

    async def _end(self) -> None:
        """Tell the application that its peer is gone; then it has a while to end."""
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._limits.linger_s)
        self._pinging.cancel()
        await self.idle_task.stop()
        await self.protocol.handle(Closed())

    def _drop(self) -> None:
        """Close the socket at once; whoever reads from it finds out."""
        if not self._dropped:
            self._dropped = True
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + self._limits.linger_s)
            transport = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
            transport.socket.close()

    async def _close(self) -> None:
        if self._dropped:
            return
        with trio.move_on_after(2.0), contextlib.suppress(*_BROKEN):
            await self.end_aside()
            await self.stream.aclose()
        self._drop()

    async def _initiate_server_close(self) -> None:
        # Closing is enough: the reader finds out and tells the application.
        await self._close()


def _watch_peer(sock: trio.socket.SocketType, vanished_s: float) -> None:
    """Have the kernel find out about peers that are gone without a word."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, int(vanished_s / 2))),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, int(vanished_s / 6))),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(vanished_s * 1000)),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        try:
            sock.setsockopt(level, option, value)
        except OSError:
            return


async def _refuse(stream: trio.SocketStream, is_tls: bool) -> None:
    try:
        if not is_tls:
            asked = b""
            with trio.move_on_after(_REFUSAL_S / 2):
                while len(asked) < len(_HEALTH) and _HEALTH.startswith(asked):
                    asked += (more := await stream.receive_some(len(_HEALTH)))
                    if not more:
                        return
            await stream.send_all(_HEALTHY if asked.startswith(_HEALTH) else _FULL)
            await stream.send_eof()
            # What of the request is still unread would have the kernel reset the connection, and the answer with it.
            while await stream.receive_some(_MAX_RECV):
                pass
    except _BROKEN:
        pass
