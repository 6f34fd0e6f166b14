"""Answers that come in time: what a client is told when the work for its request takes longer than it may.

The work is not torn apart for that: it is cancelled, and whatever of it is shielded goes on behind the answer. Only one
answer is ever begun; what the work says afterwards is passed over.

Source: protocol.md §10, point 4 (answers within ten seconds, 503 only where a repetition is safe); the rest is ours.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandboxrt.actors import sole_error
from sandboxrt.errors import SandboxClientError
from sandboxrt.protocol.rest_errors import error_to_json

__all__ = ["answer_in_time", "instead", "is_never_twice", "never_twice"]

_log = logging.getLogger("sandboxrt.server")
_INSTEAD: Final = "sandboxrt.instead"
_NEVER_TWICE: Final = "_sandboxrt_never_twice"
_INSTEAD_S: Final = 0.5

Endpoint = TypeVar("Endpoint", bound=Callable[..., Awaitable[Response]])
Instead = Callable[[], Awaitable[Response]]


def never_twice(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint whose request means something else when it comes again: it makes something, or renames it.

    When the time is up and its work cannot be cancelled any more, it is about to be done. Its true answer is waited for
    then, since a 503 would have the client ask again.
    """
    endpoint.__dict__[_NEVER_TWICE] = True
    return endpoint


def is_never_twice(route: BaseRoute) -> bool:
    """Whether that mark is on a route's endpoint."""
    return bool(getattr(getattr(route, "endpoint", None), _NEVER_TWICE, False))


def instead(connection: HTTPConnection, answer: Instead) -> None:
    """Say how to find out what is to be answered, in place of a 503, when the time is up; it is given half a second."""
    connection.scope[_INSTEAD] = answer


async def answer_in_time(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, *, within_s: float, settles_late: bool
) -> None:
    """Serve one request, with the beginning of an answer within so many seconds.

    Args:
        app: Does the work. It is cancelled when the time is up.
        scope: The request; ``receive`` and ``send`` likewise.
        receive: See ``scope``.
        send: See ``scope``.
        within_s: How long the work may take until its answer begins.
        settles_late: When the work does not end although it is cancelled, wait for its answer.
    """
    begun = is_ours = False
    failure: Exception | None = None
    news, ended = trio.Event(), trio.Event()
    work = trio.CancelScope()

    async def noting(message: Message) -> None:
        nonlocal begun
        if is_ours:
            return
        begun = True
        news.set()
        # An answer that has begun is sent to its end; how long a client may take for it is the connection's business.
        with trio.CancelScope(shield=work.cancel_called):
            await send(message)

    async def serve() -> None:
        nonlocal failure
        try:
            with work:
                await app(scope, receive, noting)
        except Exception as error:  # noqa: BLE001  raised below, or told in the log
            failure = sole_error(error)
            if is_ours:
                _log.error("a request failed after it was answered", exc_info=failure)
        finally:
            ended.set()
            news.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with trio.move_on_after(within_s):
            await news.wait()
        if not begun and failure is None:
            work.cancel()
            if settles_late:
                await ended.wait()
            if not begun and failure is None:
                is_ours = True
                response = await _late(scope, nursery)
                await response(scope, receive, send)
    if failure is not None and not is_ours:
        raise failure


async def _late(scope: Scope, nursery: trio.Nursery) -> Response:
    answer: Instead | None = scope.get(_INSTEAD)
    if answer is not None:
        found, told = trio.open_memory_channel[Response](1)

        async def find(answer: Instead) -> None:
            with found:
                try:
                    found.send_nowait(await answer())
                except SandboxClientError:
                    pass  # then it is the usual one

        # Beside it, since it may wait for the very thing that cannot be cancelled.
        nursery.start_soon(find, answer)
        with trio.move_on_after(_INSTEAD_S), contextlib.suppress(trio.EndOfChannel):
            return await told.receive()
    body = error_to_json("Timeout", "The server could not answer in time; ask again")
    return JSONResponse(body, 503, {"Retry-After": "1"})
