"""A command over one HTTP request, for networks and servers without WebSockets: no input, no output before its end.

Source: protocol.md §3.1; used only where the command provably has not started otherwise (§4.6).
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
import trio

from sandboxrt.errors import CommandTimeoutError, SandboxOperationError
from sandboxrt.protocol.exec import ClientFrame, ErrorFrame, Execute, Exit, Output, ServerFrame, Started, StreamName
from sandboxrt.protocol.exec_wire import DEFAULT_SHELL

__all__ = ["ExecuteOnce"]

Post = Callable[[Mapping[str, Any], float], Awaitable[Any]]
"""Sends a body to ``/execute`` with the command's time limit and returns the answer's JSON."""


@attrs.define(eq=False)
class ExecuteOnce:
    """An attachment that is one request. Kill and input are not possible; closing it breaks the request off."""

    _execute: Execute
    _post: Post
    _frames: deque[ServerFrame] | None = None
    _told: bool = False
    _scope: trio.CancelScope | None = None
    _closed: bool = False

    @staticmethod
    def can(execute: Execute) -> bool:
        """Whether a command can run that way: it takes no input and needs no terminal, nor another user."""
        return execute.close_stdin and not execute.pty and execute.user is None

    async def receive(self) -> ServerFrame:
        """``Started`` at once; the output and the exit when the command has ended."""
        if not self._told:
            self._told = True
            return Started(self._execute.command_id or "", 0)
        if self._frames is None:
            self._frames = deque(await self._answer())
        if not self._frames:
            raise trio.EndOfChannel
        return self._frames.popleft()

    async def send(self, frame: ClientFrame) -> None:
        """Raises ``SandboxOperationError``: nothing can be told to such a command."""
        raise SandboxOperationError(
            f"The server opens no WebSocket: {type(frame).__name__.lower()} is not possible", "command"
        )

    async def aclose(self) -> None:
        """Break the request off."""
        self._closed = True
        if self._scope is not None:
            self._scope.cancel()

    async def _answer(self) -> list[ServerFrame]:
        if self._closed:
            raise trio.ClosedResourceError
        execute = self._execute
        body = {
            "command": execute.command,
            "timeout": math.ceil(execute.timeout_s),
            "shell": execute.shell or DEFAULT_SHELL,
            **({"env": dict(execute.env)} if execute.env else {}),
            **({"cwd": execute.cwd} if execute.cwd else {}),
        }
        answer: Any = None
        with trio.CancelScope() as self._scope:
            try:
                answer = await self._post(body, execute.timeout_s)
            except CommandTimeoutError as error:
                return [ErrorFrame(str(error.args[0]), "CommandTimeout")]
        if self._scope.cancelled_caught:
            raise trio.ClosedResourceError
        return _frames(answer if isinstance(answer, dict) else {})


def _frames(answer: Mapping[str, Any]) -> list[ServerFrame]:
    frames: list[ServerFrame] = []
    streams: tuple[StreamName, ...] = ("stdout", "stderr")
    for stream in streams:
        text = answer.get(stream)
        if isinstance(text, str) and text:
            frames.append(Output(stream, text, 0))
    code = -1
    with contextlib.suppress(TypeError, ValueError):
        code = int(answer.get("exit_code", -1))
    return [*frames, Exit(code)]
