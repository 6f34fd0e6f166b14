"""HTTP requests that are sent again where that is right, and whose failures are errors of ours.

Source: protocol.md §1.2, §1.3.
"""

from __future__ import annotations

import contextlib
import random
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import attrs
import httpx
import trio

from sandboxrt.client.config import RemoteConfig
from sandboxrt.client.transport.connections import http_connections
from sandboxrt.errors import SandboxConnectionError, SandboxConnectTimeoutError
from sandboxrt.protocol.backoff import RETRIED_STATUSES, request_delay

__all__ = ["Body", "Requests"]

_CONNECT_S = 10.0
_POOL = httpx.Limits(max_connections=256, max_keepalive_connections=64, keepalive_expiry=30.0)

Body = Callable[[], AsyncIterator[bytes]]
"""Makes a request's body, once for each attempt."""


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

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, config: RemoteConfig) -> AsyncIterator[Requests]:
        """Connections are kept for the length of the block."""
        headers = {} if config.api_key is None else {"x-api-key": config.api_key}
        headers |= {name.lower(): value for name, value in config.headers.items()}
        tls = await trio.to_thread.run_sync(httpx.create_ssl_context)
        transport = http_connections(_POOL, tls)
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
    ) -> httpx.Response:
        """Send a request and read the whole answer, whatever its status.

        Args:
            method: The HTTP method.
            url: Where to.
            json: A JSON body.
            params: The query.
            body: Any other body.
            headers: For this request alone.
            timeout_s: For each step of it (connect, send, each part of the answer); the configured one if left out;
                0 or less = none.

        Raises:
            SandboxConnectTimeoutError: Nobody could be reached.
            SandboxConnectionError: The connection broke, or nothing was answered in time; whether the request was
                carried out is not known.

        Cancellation: The connection is closed; whether the request was carried out is not known.
        """
        attempt = 0
        while True:
            failure: SandboxConnectTimeoutError | None = None
            delay = 0.0
            try:
                response = await self._send_once(method, url, json, params, body, headers, timeout_s)
                if response.status_code not in RETRIED_STATUSES or attempt >= self.config.max_retries:
                    return response
                asked = response.headers.get("retry-after")
                delay = request_delay(attempt, random.random(), response.status_code, asked)  # noqa: S311  spread only
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in _causes(error)):
                    raise SandboxConnectionError(f"Cannot trust the server: {_text(error)} ({url})") from error
                failure = SandboxConnectTimeoutError(
                    f"Failed to connect to server after {attempt + 1} attempts: {_text(error)} ({url})"
                )
                failure.__cause__ = error
                delay = request_delay(attempt, random.random())  # noqa: S311
            if failure is not None and attempt >= self.config.max_retries:
                raise failure
            attempt += 1
            await trio.sleep(delay)

    async def _send_once(
        self,
        method: str,
        url: str,
        json: Any,
        params: Mapping[str, str | int] | None,
        body: Body | None,
        headers: Mapping[str, str] | None,
        timeout_s: float | None,
    ) -> httpx.Response:
        limit = self.config.timeout_s if timeout_s is None else timeout_s
        wait = httpx.Timeout(limit if limit > 0 else None, connect=_CONNECT_S)
        try:
            return await self._http.request(
                method,
                url,
                json=json,
                params=params,
                content=None if body is None else body(),
                headers={**self.headers, **(headers or {})},
                timeout=wait,
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            raise
        except httpx.TimeoutException as error:
            raise SandboxConnectionError(f"No answer from {url} in {limit:g} s") from error
        except httpx.InvalidURL as error:
            raise SandboxConnectionError(f"Cannot send a request to {url!r}: {error}") from error
        except httpx.HTTPError as error:
            raise SandboxConnectionError(f"The connection to {url} broke: {_text(error)}") from error


def _text(error: BaseException) -> str:
    """What the error says, or else what the one beneath it says."""
    return next((str(cause) for cause in _causes(error) if str(cause)), type(error).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
