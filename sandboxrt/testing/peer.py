"""A server on loopback that does what its script says, misbehaviour included, to test clients of the protocol with.

::

    async with open_peer() as peer:
        peer.script(Accept(), Started(), Send({"type": "stdout", "data": "he", "offset": 0}), Drop())
        peer.script(Accept(), Started("reconnect"), Send({"type": "exit", "exit_code": 0}))
        async with AsyncSandboxClient(api_endpoint=peer.endpoint, api_key="k") as client:
            ...

Each WebSocket takes the next script; HTTP requests get the answer that was laid out for them, or else that of a small
control plane in memory, in which sandboxes are made and deleted but nothing runs. Everything that clients send is kept.
With a ``MockClock`` hours pass at once, and only while nothing is under way (:mod:`sandboxrt.testing.loopback`).

Source: protocol.md §2, §3, §4.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
import h11
import trio
import trio.testing

from sandboxrt.testing.loopback import jumping
from sandboxrt.testing.peer_steps import ClientGoneError, PeerSocket, Refuse, Step

__all__ = ["Answer", "Peer", "PeerRequest", "open_peer"]

_READ_BYTES = 64 * 1024
_CONTROL = re.compile(r"^(?:/api)?/v2/sandboxes(?=/)")
_DATA = re.compile(r"^/dp/[^/]+(?=/)")


@attrs.frozen
class Answer:
    """The answer to one HTTP request.

    Attributes:
        status: Its status.
        body: Bytes as they are; text encoded; ``None`` for nothing; anything else becomes JSON.
        headers: More headers.
        delay_s: Nothing is said for so long; ``math.inf`` = ever.
        drop: End the connection instead of answering.
        raw: These bytes instead of an answer, and then the end of the connection.
    """

    status: int = 200
    body: object = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    delay_s: float = 0.0
    drop: bool = False
    raw: bytes | None = None

    def encode(self) -> bytes:
        """The body's bytes."""
        match self.body:
            case None:
                return b""
            case bytes():
                return self.body
            case str():
                return self.body.encode()
        return json.dumps(self.body).encode()


@attrs.frozen
class PeerRequest:
    """One HTTP request as it came; ``path`` without the control or data plane's prefix, header names in lower case."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    target: str

    @property
    def json(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)


@attrs.define(eq=False)
class Peer:
    """The server of :func:`open_peer`.

    Attributes:
        port: Where it listens on 127.0.0.1.
        requests: Every HTTP request, in order.
        sockets: Every WebSocket, in order.
        boxes: The sandboxes by name, as the control plane shows them.
        snapshots: The snapshots by id, likewise.
        files: What was uploaded: request bodies by path.
        connections: How many TCP connections are open.
        waiting: How many HTTP requests wait for a delayed answer.
    """

    port: int
    requests: list[PeerRequest] = attrs.field(factory=list)
    sockets: list[PeerSocket] = attrs.field(factory=list)
    boxes: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    snapshots: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    files: dict[str, bytes] = attrs.field(factory=dict)
    connections: int = 0
    waiting: int = 0
    _scripts: deque[tuple[Step, ...]] = attrs.field(factory=deque)
    _answers: dict[tuple[str, str], deque[Answer]] = attrs.field(factory=dict)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    @property
    def url(self) -> str:
        """The API's root."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def endpoint(self) -> str:
        """The control plane's URL, for ``api_endpoint``."""
        return f"{self.url}/v2/sandboxes"

    @property
    def unplayed(self) -> int:
        """How many scripts no WebSocket has taken."""
        return len(self._scripts)

    @property
    def open_sockets(self) -> int:
        """How many WebSockets are open."""
        return sum(socket.open for socket in self.sockets)

    def script(self, *steps: Step) -> None:
        """Lay out what the next WebSocket gets that has no script yet. Without one it is refused with 410."""
        self._scripts.append(steps)

    def answer(self, method: str, path: str, *answers: Answer) -> None:
        """Lay out the answers to the next requests of that method and path (without its prefix)."""
        self._answers.setdefault((method, path), deque()).extend(answers)

    def frames(self, kind: str) -> list[dict[str, Any]]:
        """Every frame of one type that any WebSocket got."""
        return [frame for socket in self.sockets for frame in socket.frames if frame.get("type") == kind]

    def asked(self, method: str, path: str) -> list[PeerRequest]:
        """Every request of that method and path (without its prefix)."""
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to be so, looked at whenever something happens here."""
        while not condition():
            await self._changed.park()

    def _note(self) -> None:
        self._changed.unpark_all()

    # -- connections -------------------------------------------------------------------------------------------------

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        try:
            await self._speak_http(stream)
        except (ClientGoneError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            pass
        finally:
            self.connections -= 1
            self._note()
            await trio.aclose_forcefully(stream)

    async def _speak_http(self, stream: trio.SocketStream) -> None:
        wire = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
        while True:
            request, body = None, bytearray()
            while not isinstance(event := wire.next_event(), h11.EndOfMessage):
                match event:
                    case h11.Request():
                        request = event
                    case h11.Data():
                        body += event.data
                    case h11.ConnectionClosed() | h11.PAUSED:
                        return
                    case _:
                        wire.receive_data(await stream.receive_some(_READ_BYTES))
            assert request is not None
            headers = {name.decode(): text.decode("latin-1") for name, text in request.headers}
            target = request.target.decode("latin-1")
            if headers.get("upgrade", "").lower() == "websocket":
                await self._play(stream, target, headers)
                return
            answer = self._answer(request.method.decode(), target, headers, bytes(body))
            if answer.delay_s:
                await self._delay(stream, answer.delay_s)
            if answer.drop or answer.raw is not None:
                await stream.send_all(answer.raw or b"")
                return
            await self._reply(stream, wire, request.method, answer)
            if wire.our_state is h11.MUST_CLOSE:
                return
            wire.start_next_cycle()

    async def _reply(self, stream: trio.SocketStream, wire: h11.Connection, method: bytes, answer: Answer) -> None:
        body = answer.encode()
        headers = {"content-length": str(len(body)), "content-type": "application/json", **answer.headers}
        if method == b"HEAD" or answer.status in (204, 304):
            body = b""
        data = wire.send(h11.Response(status_code=answer.status, headers=list(headers.items()))) or b""
        data += wire.send(h11.Data(data=body)) or b"" if body else b""
        await stream.send_all(data + (wire.send(h11.EndOfMessage()) or b""))

    async def _delay(self, stream: trio.SocketStream, seconds: float) -> None:
        self.waiting += 1
        self._note()
        try:
            with trio.move_on_after(seconds if seconds < math.inf else math.inf):
                if not await stream.receive_some(1):
                    raise ClientGoneError
                raise AssertionError("a client sent something while it waits for an answer")
        finally:
            self.waiting -= 1

    async def _play(self, stream: trio.SocketStream, target: str, headers: Mapping[str, str]) -> None:
        socket = PeerSocket(target, headers, stream, self._note)
        self.sockets.append(socket)
        steps: tuple[Step, ...] = (Refuse(410, {"detail": "the peer's script has no further connection"}),)
        if self._scripts:
            steps = self._scripts.popleft()
        self._note()
        try:
            for step in steps:
                await step.play(socket)
            await socket.stay()
        finally:
            socket.open = False

    # -- the control plane -------------------------------------------------------------------------------------------

    def _answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        parts = urlsplit(target)
        path = _DATA.sub("", _CONTROL.sub("", parts.path))
        request = PeerRequest(method, path, parse_qs(parts.query), headers, body, target)
        self.requests.append(request)
        self._note()
        laid_out = self._answers.get((method, path))
        return laid_out.popleft() if laid_out else self._usual(request)

    def _usual(self, request: PeerRequest) -> Answer:
        match [request.method, *request.path.strip("/").split("/")]:
            case ["POST", "boxes"]:
                return Answer(201, self.box(**request.json))
            case ["GET", "boxes"]:
                return Answer(200, {"sandboxes": list(self.boxes.values())})
            case [method, "boxes", name, *what] if unquote(name) in self.boxes:
                return self._box(method, unquote(name), "/".join(what), request)
            case ["POST", "snapshots"]:
                return Answer(201, self.snapshot(**request.json))
            case ["GET", "snapshots"]:
                return Answer(200, {"snapshots": list(self.snapshots.values())})
            case ["GET", "snapshots", key] if unquote(key) in self.snapshots:
                return Answer(200, self.snapshots[unquote(key)])
            case ["DELETE", "snapshots", key] if unquote(key) in self.snapshots:
                del self.snapshots[unquote(key)]
                return Answer(204)
        return self._of_sandbox(request)

    def _of_sandbox(self, request: PeerRequest) -> Answer:
        match [request.method, *request.path.strip("/").split("/")]:
            case ["POST", "execute"]:
                return Answer(200, {"stdout": "over HTTP\n", "stderr": "", "exit_code": 0})
            case ["POST", "upload"]:
                self.files[request.query["path"][0]] = request.body
                return Answer(200, {})
            case ["GET", "download"] if (path := request.query["path"][0]) in self.files:
                return Answer(200, self.files[path])
        return Answer(404, {"detail": {"error": "NotFound", "message": f"nothing at {request.path}"}})

    def _box(self, method: str, name: str, what: str, request: PeerRequest) -> Answer:
        box = self.boxes[name]
        match method, what:
            case "GET", "":
                return Answer(200, box)
            case "GET", "status":
                return Answer(200, {"status": box["status"], "status_message": box.get("status_message")})
            case "PATCH", "":
                box |= request.json
                self.boxes[box["name"]] = self.boxes.pop(name)
                return Answer(200, box)
            case "DELETE", "":
                del self.boxes[name]
                return Answer(204)
            case "POST", "start" | "stop":
                box["status"] = "ready" if what == "start" else "stopped"
                return Answer(200, box)
        return Answer(404, {"detail": {"error": "NotFound", "message": f"a sandbox has no {what}"}})

    def box(self, **fields: Any) -> dict[str, Any]:
        """Make a sandbox; what ``GET`` says of it. ``status`` is ``ready`` if it is not given."""
        number = len(self.boxes) + 1
        name = fields.get("name") or f"box-{number}"
        shown = {"id": f"00000000-0000-4000-8000-{number:012d}", "status": "ready", **fields, "name": name}
        shown.setdefault("dataplane_url", f"{self.url}/dp/{name}")
        self.boxes[name] = shown
        return shown

    def snapshot(self, **fields: Any) -> dict[str, Any]:
        """Make a snapshot; what ``GET`` says of it. ``status`` is ``ready`` if it is not given."""
        shown = {"id": f"snapshot-{len(self.snapshots) + 1}", "name": "snapshot", "status": "ready", **fields}
        self.snapshots[str(shown["id"])] = shown
        return shown


@contextlib.asynccontextmanager
async def open_peer(clock: trio.testing.MockClock | None = None) -> AsyncIterator[Peer]:
    """A peer for the length of the block; leaving it ends every connection.

    Args:
        clock: The run's clock, ``MockClock(rate=0)``; it jumps to the next deadline whenever nothing is under way
            between the peer and its clients.

    Raises:
        AssertionError: A client did something else than the script expects of it.
    """
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    peer = Peer(listeners[0].socket.getsockname()[1])
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_listeners, peer._serve, listeners))
            async with contextlib.nullcontext() if clock is None else jumping(clock, peer.port):
                yield peer
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
