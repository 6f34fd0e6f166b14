"""A command's output as server-sent events: output only, offsets in place of acknowledgements, resumable.

Source: protocol.md §3.5.
"""

from __future__ import annotations

import base64
import binascii
import json
import shlex
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import trio
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sandboxrt.host.attachment import AnyAttachment
from sandboxrt.host.host import Host
from sandboxrt.protocol.exec import (
    CloseStdin,
    ErrorFrame,
    Execute,
    Exit,
    Input,
    Output,
    Reconnect,
    ServerFrame,
    Started,
    StreamName,
)
from sandboxrt.protocol.exec_wire import WireError, parse_execute, parse_reconnect
from sandboxrt.server.replies import BodyError, frame_reply, read_json

__all__ = ["StreamSettings", "resume", "start"]

_Request = TypeVar("_Request", Execute, Reconnect)
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_STDIN_BYTES = 240 * 1024
"""What a new command's input queue takes without waiting for the command."""
_STDIN_ID = "server-sent-events"


@attrs.frozen(kw_only=True)
class StreamSettings:
    """The bounds of one stream of events.

    Attributes:
        ping_s: How often a silent stream shows that it lives.
    """

    ping_s: float = 15.0


async def start(host: Host, sandbox: str, request: Request, stopping: trio.Event, settings: StreamSettings) -> ASGIApp:
    """Start a command, or attach to it from its beginning when it was started before.

    Raises:
        SandboxClientError: It was not started, for the reason given.
    """
    fields = await read_json(request)
    argv = fields.get("command")
    if isinstance(argv, list) and argv and all(isinstance(word, str) for word in argv):
        fields["command"] = shlex.join(argv)
    stdin = _stdin(fields)
    first = _parse(parse_execute, fields)
    if first.pty:
        raise BodyError("A terminal needs input and therefore a WebSocket; leave 'pty' out", 400, "PTYUnsupported")
    first = attrs.evolve(
        first, command_id=first.command_id or uuid.uuid4().hex, close_stdin=stdin is None, input_id=_STDIN_ID
    )
    attachment = await host.attach(sandbox, first)
    return await _stream(attachment, stopping, settings, stdin)


async def resume(host: Host, sandbox: str, request: Request, stopping: trio.Event, settings: StreamSettings) -> ASGIApp:
    """Attach to a command from the given offsets on.

    Raises:
        SandboxClientError: The request or the sandbox is not what it should be.
    """
    first = _parse(parse_reconnect, await read_json(request))
    attachment = await host.attach(sandbox, attrs.evolve(first, input_id=None))
    return await _stream(attachment, stopping, settings, first=first)


def _parse(parser: Callable[[dict[str, Any]], _Request], fields: dict[str, Any]) -> _Request:
    try:
        return parser(fields)
    except WireError as error:
        raise BodyError(str(error)) from error


def _stdin(fields: dict[str, Any]) -> str | None:
    value = fields.get("stdin")
    if value is None:
        return None
    try:
        data = base64.b64decode(value, validate=True)
        text = data.decode()
    except (TypeError, ValueError, binascii.Error):
        raise BodyError("'stdin' must be base64 of UTF-8 text") from None
    if len(data) > _STDIN_BYTES:
        raise BodyError(
            f"'stdin' is longer than {_STDIN_BYTES} bytes; upload a file and redirect from it", 413, "PayloadTooLarge"
        )
    return text


async def _stream(
    attachment: AnyAttachment,
    stopping: trio.Event,
    settings: StreamSettings,
    stdin: str | None = None,
    first: Reconnect | None = None,
) -> ASGIApp:
    try:
        if stdin is not None:
            await attachment.send(Input(stdin, 0))
            await attachment.send(CloseStdin())
        frame = await attachment.receive()
    except BaseException:
        with trio.CancelScope(shield=True):
            await attachment.aclose()
        raise
    if isinstance(frame, ErrorFrame):
        await attachment.aclose()
        return frame_reply(frame)
    ends: dict[StreamName, int] = {
        "stdout": first.stdout_offset if first else 0,
        "stderr": first.stderr_offset if first else 0,
    }
    return _EventStream(attachment, frame, stopping, settings.ping_s, ends)


@attrs.define
class _EventStream:
    """The response: events until the command's end, the peer's departure, or the server's."""

    attachment: AnyAttachment
    first: ServerFrame
    stopping: trio.Event
    ping_s: float
    ends: dict[StreamName, int]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await _send(send, self._events(self.first))
            last = b""
            async with trio.open_nursery() as nursery:
                gone = trio.Event()
                nursery.start_soon(_watch, receive, gone, nursery.cancel_scope)
                nursery.start_soon(_cancel_when, self.stopping, nursery.cancel_scope)
                last = await self._pass_on(send)
                nursery.cancel_scope.cancel()
            if not gone.is_set():
                last = last or _event("error", error="The server stops; resume", error_type="ServerShuttingDown")
                await _send(send, last, more=False)
        finally:
            with trio.CancelScope(shield=True):
                await self.attachment.aclose()

    async def _pass_on(self, send: Send) -> bytes:
        """Pass on what comes, up to the last events, which are returned."""
        while True:
            frame = None
            with trio.move_on_after(self.ping_s):
                frame = await self.attachment.receive()
            events = b": ping\n\n" if frame is None else self._events(frame)
            if isinstance(frame, Exit | ErrorFrame):
                return events
            if events:
                await _send(send, events)

    def _events(self, frame: ServerFrame) -> bytes:
        match frame:
            case Started(command_id, pid, stdin_received):
                more = {} if stdin_received is None else {"stdin_received": stdin_received}
                return _event("started", command_id=command_id, pid=pid, **more)
            case Output(stream, text, offset):
                data = text.encode()
                self.ends[stream] = offset + len(data)
                return _event(stream, offset=offset, data=base64.b64encode(data).decode())
            case Exit(exit_code):
                ends = [_event("stream_end", stream=stream, offset=offset) for stream, offset in self.ends.items()]
                return b"".join(ends) + _event("exit", exit_code=exit_code)
            case ErrorFrame(error, error_type):
                return _event("error", error=error, error_type=error_type)
            case _:
                return b""


def _event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(fields, separators=(',', ':'))}\n\n".encode()


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _watch(receive: Receive, gone: trio.Event, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()
    scope.cancel()


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
