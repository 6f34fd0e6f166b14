"""HTTP requests that are sent again where that is right, and whose failures are errors of ours.

A request may be sent again when nobody was reached, when the server refused it for now, and when its connection broke
before it was sent as a whole; after that only where doing it twice is doing it once.

Source: protocol.md §1.2, §1.3; what is repeated after a broken connection is ours.
"""

from __future__ import annotations

import contextlib
import math
import random
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import attrs
import httpx
import trio

from sandboxrt.client.config import RemoteConfig
from sandboxrt.client.transport.failures import FailedAttempt, broken, unreached
from sandboxrt.errors import SandboxConnectionError
from sandboxrt.http_pool import URGENT, http_connections
from sandboxrt.protocol.backoff import RETRIED_STATUSES, request_delay

__all__ = ["Body", "Course", "Requests", "Tries"]

_CONNECT_S: Final = 10.0
_STALL_S: Final = 60.0
"""How long a peer may take none of a body that is being sent."""

Body = Callable[[], AsyncIterator[bytes]]
"""Makes a request's body, once for each attempt."""


@attrs.define(eq=False)
class Course:
    """How far a request has got.

    Attributes:
        begun: Whether a byte of it may have been sent, in any attempt.
        sent: Whether the last attempt was sent as a whole, so that the server may have carried it out.
        reused: Whether the last attempt went over a connection that had served another request.
        repeated: Whether an attempt before the last was sent as a whole.
    """

    begun: bool = False
    sent: bool = False
    reused: bool = True
    repeated: bool = False


@attrs.define(eq=False)
class _Attempt:
    """One attempt; its time limit counts from when it begins to be sent, not while it waits for a connection."""

    course: Course
    limit_s: float
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """What httpcore tells of it."""
        match event:
            case "connection.connect_tcp.started":
                self.course.reused = False
            case "http11.send_request_headers.started":
                self.course.begun = True
                self.scope.deadline = trio.current_time() + self.limit_s
            case "http11.send_request_body.complete":
                self.course.sent = True


@attrs.define(eq=False)
class Tries:
    """Counts the attempts of one request, and waits between them."""

    _most: int
    _made: int = 0

    def progressed(self) -> None:
        """Count from the beginning: this one got further than those before."""
        self._made = 0

    async def after_failure(self, failure: FailedAttempt, *, repeatable: bool) -> None:
        """Wait for the next attempt. Raises the failure's error when there shall be none."""
        self._made += 1
        if failure.final or self._made > self._most or not (failure.harmless or repeatable):
            raise failure.told(self._made) from failure.__cause__
        if not (failure.stale and self._made == 1):  # whoever kept a connection too long need not wait
            await trio.sleep(request_delay(self._made - 1, random.random()))  # noqa: S311  spread only

    async def after_answer(self, answer: httpx.Response) -> bool:
        """Wait for the next attempt where the server refused this one for now; whether there is one."""
        if answer.status_code not in RETRIED_STATUSES or self._made >= self._most:
            return False
        asked = answer.headers.get("retry-after")
        await trio.sleep(request_delay(self._made, random.random(), answer.status_code, asked))  # noqa: S311
        self._made += 1
        return True


@attrs.frozen
class Requests:
    """Sends requests to one server.

    Attributes:
        config: Which.
        connections: What carries them.
        headers: Sent with each; names in lower case.
        tls: Whom to trust, for WebSockets too. Made once: reading the authorities takes many milliseconds.
    """

    config: RemoteConfig
    _http: httpx.AsyncClient
    connections: httpx.AsyncBaseTransport
    headers: Mapping[str, str]
    tls: ssl.SSLContext
    _reached: trio.Event = attrs.field(factory=trio.Event)
    """Whether anybody ever was: a server that was there restarts, one that never was is not going to come."""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, config: RemoteConfig) -> AsyncIterator[Requests]:
        """Connections are kept for the length of the block."""
        headers = {} if config.api_key is None else {"x-api-key": config.api_key}
        headers |= {name.lower(): value for name, value in config.headers.items()}
        tls = await trio.to_thread.run_sync(httpx.create_ssl_context)
        transport = http_connections(tls)
        async with httpx.AsyncClient(transport=transport, follow_redirects=False) as http:
            yield cls(config, http, transport, headers, tls)

    def with_headers(self, headers: Mapping[str, str]) -> Requests:
        """The same with more headers, which take the place of those of the same name."""
        return attrs.evolve(self, headers={**self.headers, **{name.lower(): text for name, text in headers.items()}})

    async def send(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        params: Mapping[str, str | int] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        repeatable: bool | None = None,
        urgent: bool = False,
        course: Course | None = None,
    ) -> httpx.Response:
        """Send a request and read the whole answer, whatever its status.

        Args:
            method: The HTTP method.
            url: Where to.
            json: A JSON body.
            params: The query.
            body: Any other body.
            headers: For this request alone.
            timeout_s: For each attempt, from when it begins to be sent until its answer is there; the configured one
                if left out; 0 or less = none.
            repeatable: Whether to be carried out twice is the same as once, so that it is sent again when its answer
                was lost; left out, that is so of GET.
            urgent: Whether it goes ahead of all that waits for a connection.
            course: Is kept up to date with how far it got.

        Raises:
            SandboxConnectTimeoutError: Nobody could be reached.
            SandboxConnectionError: The connection broke, or nothing was answered in time; whether the request was
                carried out is not known.

        Cancellation: The connection is closed; whether the request was carried out is not known.
        """
        tries = Tries(self.config.max_retries)
        course = Course() if course is None else course
        while True:
            try:
                async with self.attempt(
                    method,
                    url,
                    json=json,
                    params=params,
                    content=None if body is None else body(),
                    headers=headers,
                    timeout_s=self.config.timeout_s if timeout_s is None else timeout_s,
                    urgent=urgent,
                    course=course,
                ) as answer:
                    await answer.aread()
            except FailedAttempt as failure:
                await tries.after_failure(failure, repeatable=method == "GET" if repeatable is None else repeatable)
                continue
            if not await tries.after_answer(answer):
                return answer

    @contextlib.asynccontextmanager
    async def attempt(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        params: Mapping[str, str | int] | None = None,
        content: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 0,
        urgent: bool = False,
        course: Course | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """One attempt of a request: its answer, to be read in the block, which the time limit includes.

        Raises:
            FailedAttempt: It came to nothing, in the block too.
        """
        course = Course() if course is None else course
        course.repeated, course.sent, course.reused = course.repeated or course.sent, False, True
        attempt = _Attempt(course, timeout_s if timeout_s > 0 else math.inf)
        connect_s = min(_CONNECT_S, attempt.limit_s)
        failed: FailedAttempt | None = None
        with attempt.scope:
            try:
                async with self._http.stream(
                    method,
                    url,
                    json=json,
                    params=params,
                    content=content,
                    headers={**self.headers, **(headers or {})},
                    timeout=httpx.Timeout(None, connect=connect_s, write=_STALL_S),
                    extensions={"trace": attempt.trace, URGENT: urgent},
                ) as answer:
                    self._reached.set()
                    yield answer
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = await unreached(error, url, known=self._reached.is_set())
            except httpx.InvalidURL as error:
                raise SandboxConnectionError(f"Cannot send a request to {url!r}: {error}") from error
            except httpx.HTTPError as error:
                failed = await broken(error, url, sent=course.sent, stale=course.reused, known=self._reached.is_set())
        if attempt.scope.cancelled_caught:
            raise FailedAttempt(SandboxConnectionError(f"No answer from {url} in {attempt.limit_s:g} s"), final=True)
        if failed is not None:
            raise failed
