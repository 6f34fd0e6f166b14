"""A command from one HTTP request to its one answer, for clients without WebSockets.

The command ends when its client goes away. The answer is as long as the output: what is more than a little is taken
from the replay buffer a second time while it is sent, so that it never stands in memory.

Source: protocol.md §3.1.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping

import attrs
import trio
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sandboxrt.host.attachment import AnyAttachment
from sandboxrt.host.host import Host
from sandboxrt.protocol.exec import ErrorFrame, Execute, Exit, Output, Reconnect, StreamName
from sandboxrt.protocol.exec_wire import WireError, parse_execute
from sandboxrt.server.replies import BodyError, frame_reply, read_json, reply

__all__ = ["execute"]

_INLINE_BYTES = 1024**2
_SESSION_S = 300.0
_escape = json.JSONEncoder(ensure_ascii=False).encode


async def execute(host: Host, sandbox: str, request: Request, stopping: trio.Event) -> ASGIApp:
    """Run a command to its end.

    Returns:
        The result, or what was wrong, as a response.

    Raises:
        SandboxClientError: The sandbox cannot run it; nothing was started.

    Cancellation: The command is killed.
    """
    try:
        parsed = parse_execute(await read_json(request), "timeout")
    except WireError as error:
        raise BodyError(str(error)) from error
    first = attrs.evolve(
        parsed,
        command_id=uuid.uuid4().hex,
        close_stdin=True,
        pty=False,
        kill_on_disconnect=True,
        idle_timeout_s=-1,
        ttl_s=_SESSION_S,
        input_id=None,
    )
    run = _Run()
    attachment = await host.attach(sandbox, first)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, request, nursery.cancel_scope)
            nursery.start_soon(_cancel_when_stopping, stopping, nursery.cancel_scope)
            await run.take(attachment)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await attachment.aclose()
    return await _answer(host, sandbox, first, run)


def _no_text() -> dict[StreamName, list[str]]:
    return {"stdout": [], "stderr": []}


@attrs.define
class _Run:
    """What came of the command: its end, and its output as long as it is short."""

    end: Exit | ErrorFrame | None = None
    offsets: dict[StreamName, int] = attrs.field(factory=lambda: {"stdout": 0, "stderr": 0})
    text: dict[StreamName, list[str]] | None = attrs.field(factory=_no_text)

    async def take(self, attachment: AnyAttachment) -> None:
        while self.end is None:
            frame = await attachment.receive()
            if isinstance(frame, Exit | ErrorFrame):
                self.end = frame
            elif isinstance(frame, Output):
                self.offsets[frame.stream] = frame.offset + len(frame.data.encode())
                if self.text is not None:
                    self.text[frame.stream].append(frame.data)
                if sum(self.offsets.values()) > _INLINE_BYTES:
                    self.text = None


async def _cancel_when_gone(request: Request, scope: trio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _cancel_when_stopping(stopping: trio.Event, scope: trio.CancelScope) -> None:
    await stopping.wait()
    scope.cancel()


async def _answer(host: Host, sandbox: str, first: Execute, run: _Run) -> ASGIApp:
    if run.end is None:
        return reply(500, "ServerShuttingDown", "The server stops; the command was ended")
    if isinstance(run.end, ErrorFrame):
        return frame_reply(run.end)
    if run.text is not None:
        result = {"stdout": "".join(run.text["stdout"]), "stderr": "".join(run.text["stderr"])}
        return JSONResponse({**result, "exit_code": run.end.exit_code})
    assert first.command_id is not None
    return _LongResult(host, sandbox, first.command_id, run.end, run.offsets)


@attrs.frozen
class _LongResult:
    """Sends the result piece by piece out of the replay buffer."""

    host: Host
    sandbox: str
    command_id: str
    end: Exit
    ends: Mapping[StreamName, int]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # Asking for one stream from its end on leaves the other one alone.
        for head, first in (
            ('{"stdout":"', Reconnect(self.command_id, 0, self.ends["stderr"])),
            ('","stderr":"', Reconnect(self.command_id, self.ends["stdout"], 0)),
        ):
            await _send_piece(send, head)
            attachment = await self.host.attach(self.sandbox, first)
            try:
                while not isinstance(frame := await attachment.receive(), Exit):
                    if isinstance(frame, ErrorFrame):
                        # The answer is half sent; to break it off is all that is left.
                        raise BodyError(f"The output is gone: {frame.error}")
                    if isinstance(frame, Output):
                        await _send_piece(send, _escape(frame.data)[1:-1])
            finally:
                with trio.CancelScope(shield=True):
                    await attachment.aclose()
        await _send_piece(send, f'","exit_code":{self.end.exit_code}}}', more=False)


async def _send_piece(send: Send, text: str, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
