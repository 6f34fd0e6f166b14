"""The classes of ``sandboxrt.client.service``, on asyncio.

Generated from sandboxrt/client/service.py by tools/gen_facades.py: do not edit.
"""

from __future__ import annotations

from typing import Any

import httpx

from sandboxrt.bridge.loops import AsyncioFacade
from sandboxrt.client import service as _trio_service

__all__ = ["AsyncServiceURL"]


class AsyncServiceURL(AsyncioFacade[_trio_service.AsyncServiceURL]):
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

    @property
    def token(self) -> str:
        """The newest token, which may have expired; :meth:`get_token` gives a good one."""
        return self._inner.token

    @property
    def service_url(self) -> str:
        """The service's address for programs, as of the newest token; see :meth:`get_service_url`."""
        return self._inner.service_url

    @property
    def browser_url(self) -> str:
        """The newest address for a browser, which may have expired; :meth:`get_browser_url` gives a good one."""
        return self._inner.browser_url

    @property
    def expires_at(self) -> str:
        """When the newest token expires, or has expired, as an ISO-8601 time."""
        return self._inner.expires_at

    async def get_token(self) -> str:
        """A good token, for the header ``X-Langsmith-Sandbox-Service-Token``.

        Raises:
            ResourceNotFoundError: The sandbox is gone.
            SandboxConnectionError: The server could not be asked for a new one.
        """
        return await self._call(self._inner.get_token)

    async def get_service_url(self) -> str:
        """The service's address for programs, which send the token with each request. Raises as ``get_token``."""
        return await self._call(self._inner.get_service_url)

    async def get_browser_url(self) -> str:
        """An address for a browser: it exchanges the token in it for a cookie. Raises as ``get_token``."""
        return await self._call(self._inner.get_browser_url)

    async def get_expires_at(self) -> str:
        """When the token expires, as an ISO-8601 time. Raises as ``get_token``."""
        return await self._call(self._inner.get_expires_at)

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
        return await self._call(lambda: self._inner.request(method, path, **kwargs))

    async def get(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP GET; see :meth:`request`."""
        return await self._call(lambda: self._inner.get(path, **kwargs))

    async def post(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP POST; see :meth:`request`."""
        return await self._call(lambda: self._inner.post(path, **kwargs))

    async def put(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP PUT; see :meth:`request`."""
        return await self._call(lambda: self._inner.put(path, **kwargs))

    async def patch(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP PATCH; see :meth:`request`."""
        return await self._call(lambda: self._inner.patch(path, **kwargs))

    async def delete(self, path: str = "/", **kwargs: Any) -> httpx.Response:
        """HTTP DELETE; see :meth:`request`."""
        return await self._call(lambda: self._inner.delete(path, **kwargs))
