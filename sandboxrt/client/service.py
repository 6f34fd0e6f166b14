"""An HTTP service inside a sandbox, in the user's hands: its addresses, its token, requests to it.

Source: protocol.md §6, §7.8.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

import httpx
import trio

from sandboxrt.client.grants import GrantKeeper
from sandboxrt.errors import SandboxConnectionError
from sandboxrt.protocol.rest import ServiceGrant
from sandboxrt.protocol.service_urls import TOKEN_HEADER

__all__ = ["AsyncServiceURL"]

_STEP_S: Final = 5.0


class AsyncServiceURL:
    """An HTTP service on a port inside a sandbox. Made by ``sandbox.service``; any number of tasks may use it.

    The token is replaced before it expires, whenever something here is used that has to do with it: half a minute
    before, or for tokens that live no longer than that, in the last third of their life.

    The helpers send the token with each request and nothing else of yours: not the API key, and no cookies of earlier
    requests. They follow no redirects unless asked to, return an answer of any status, and raise
    :class:`~sandboxrt.errors.SandboxConnectionError` (its ``__cause__`` is the error of ``httpx``) when there is none.
    Each step of a request (connect, send, each part of the answer) may take five seconds unless told otherwise
    (``timeout=``), not counting its wait for others of the same client.

    Source: protocol.md §7.8.
    """

    def __init__(self, keeper: GrantKeeper) -> None:
        self._keeper = keeper

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.service_url} until {self.expires_at}>"

    @property
    def token(self) -> str:
        """The newest token, which may have expired; :meth:`get_token` gives a good one."""
        return self._grant.token

    @property
    def service_url(self) -> str:
        """The service's address for programs, as of the newest token; see :meth:`get_service_url`."""
        return self._grant.service_url

    @property
    def browser_url(self) -> str:
        """The newest address for a browser, which may have expired; :meth:`get_browser_url` gives a good one."""
        return self._grant.browser_url

    @property
    def expires_at(self) -> str:
        """When the newest token expires, or has expired, as an ISO-8601 time."""
        return self._grant.expires_at

    async def get_token(self) -> str:
        """A good token, for the header ``X-Langsmith-Sandbox-Service-Token``.

        Raises:
            ResourceNotFoundError: The sandbox is gone.
            SandboxConnectionError: The server could not be asked for a new one.
        """
        return (await self._keeper.fresh()).token

    async def get_service_url(self) -> str:
        """The service's address for programs, which send the token with each request. Raises as ``get_token``."""
        return (await self._keeper.fresh()).service_url

    async def get_browser_url(self) -> str:
        """An address for a browser: it exchanges the token in it for a cookie. Raises as ``get_token``."""
        return (await self._keeper.fresh()).browser_url

    async def get_expires_at(self) -> str:
        """When the token expires, as an ISO-8601 time. Raises as ``get_token``."""
        return (await self._keeper.fresh()).expires_at

    async def request(self, method: str, path: str = "/", **kwargs: Any) -> httpx.Response:
        """Send a request to the service, and read the whole answer.

        Args:
            method: The HTTP method.
            path: Below the service's own root.
            kwargs: What ``httpx.AsyncClient.request`` takes: ``json``, ``data``, ``content``, ``files``, ``params``,
                ``headers``, ``cookies``, ``timeout``, ``follow_redirects``. A plain iterator as ``content`` is run in a
                thread.

        Raises:
            SandboxConnectionError: There was no answer; whether the request was carried out is not known.
            SandboxClientError: There is no good token, as ``get_token``.
            ValueError: The arguments make no request.

        Cancellation: The connection is closed; whether the request was carried out is not known.
        """
        grant = await self._keeper.fresh()
        base = httpx.URL(grant.service_url)
        if "content" in kwargs:
            kwargs["content"] = _body(kwargs["content"])

        async def keep_token_here(request: httpx.Request) -> None:
            """The token goes to this service alone, wherever it redirects to."""
            here = request.url.copy_with(raw_path=base.raw_path) == base
            if here and request.url.path.startswith(base.path):
                request.headers[TOKEN_HEADER] = grant.token
            elif TOKEN_HEADER in request.headers:
                del request.headers[TOKEN_HEADER]

        client = httpx.AsyncClient(
            transport=await self._keeper.owner.transport.service_connections(),
            trust_env=False,
            event_hooks={"request": [keep_token_here]},
            timeout=httpx.Timeout(_STEP_S, pool=None),
        )
        url = str(base).rstrip("/") + "/" + path.lstrip("/")
        try:
            # Not closed: it holds nothing but the connections, which are kept.
            return await client.request(method, url, **kwargs)
        except (httpx.RequestError, httpx.StreamError) as error:
            what = str(error) or type(error).__name__
            raise SandboxConnectionError(f"No answer from the service at {url}: {what}") from error
        except httpx.InvalidURL as error:
            raise ValueError(f"{path!r} makes no URL: {error}") from error

    async def get(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP GET; see :meth:`request`."""
        return await self.request("GET", path, **kwargs)

    async def post(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP POST; see :meth:`request`."""
        return await self.request("POST", path, **kwargs)

    async def put(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP PUT; see :meth:`request`."""
        return await self.request("PUT", path, **kwargs)

    async def patch(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP PATCH; see :meth:`request`."""
        return await self.request("PATCH", path, **kwargs)

    async def delete(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP DELETE; see :meth:`request`."""
        return await self.request("DELETE", path, **kwargs)

    @property
    def _grant(self) -> ServiceGrant:
        assert self._keeper.grant is not None  # fetched before this object was made
        return self._keeper.grant


def _body(content: object) -> Any:
    """A body that can be sent from the trio thread: what a plain iterator does in between would hold that up."""
    if content is None or isinstance(content, str | bytes) or not isinstance(content, Iterable):
        return content
    pieces = iter(content)

    async def sent() -> AsyncIterator[bytes]:
        while (piece := await trio.to_thread.run_sync(next, pieces, None)) is not None:
            yield piece

    return sent()
