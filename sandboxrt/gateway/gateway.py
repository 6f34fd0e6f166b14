"""The gateway: finds out which service or file a request is for, who may have it, and has it brought.

Source: protocol.md §6.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from typing import Final, Protocol
from urllib.parse import parse_qs

import attrs
import h11
import trio

from sandboxrt.errors import SandboxClientError
from sandboxrt.gateway.downloads import send_file
from sandboxrt.gateway.exchange import Exchange, ExchangeLimits, upgrade_of
from sandboxrt.gateway.front import Front, GoneError
from sandboxrt.gateway.headers import COOKIE, SECURE_COOKIE, View, cookies
from sandboxrt.gateway.links import Keys
from sandboxrt.gateway.refusals import RefusalError, unreachable
from sandboxrt.gateway.visitors import check_origin, check_token
from sandboxrt.host.connections import PortStream
from sandboxrt.host.files import SandboxFile
from sandboxrt.protocol.rest import SandboxInfo
from sandboxrt.protocol.service_urls import (
    AUTH_PATH,
    TOKEN_HEADER,
    FileHost,
    FilePath,
    ServiceHost,
    ServicePath,
    ServiceSite,
    Target,
    Unknown,
)
from sandboxrt.protocol.tokens import ServiceClaims

__all__ = ["Gateway", "GatewaySettings", "Sandboxes"]

_RESERVED: Final = "/_svc/"
_WAKE_S: Final = 30.0
_PRIVATE: Final = (
    (b"Cache-Control", b"no-store"),
    (b"Referrer-Policy", b"no-referrer"),
    (b"X-Content-Type-Options", b"nosniff"),
)


class Sandboxes(Protocol):
    """What the gateway needs of a host."""

    async def get_sandbox(self, name: str, tenant: str = "") -> SandboxInfo:
        """One sandbox. Raises ``ResourceNotFoundError``."""
        ...

    async def start_sandbox(self, name: str, timeout_s: float | None = 120.0) -> SandboxInfo:
        """Make a stopped sandbox ready."""
        ...

    async def connect(self, name: str, port: int) -> PortStream:
        """A connection to a port inside."""
        ...

    def open_file(self, name: str, path: str) -> AbstractAsyncContextManager[SandboxFile]:
        """A file, open for reading."""
        ...


@attrs.frozen(kw_only=True)
class GatewaySettings:
    """The bounds of a gateway.

    Attributes:
        exchange: Those of one request.
        max_requests: To one sandbox at once; one more gets a 429.
        wakes: Whether a stopped sandbox is started for a request.
    """

    exchange: ExchangeLimits = attrs.field(factory=ExchangeLimits)
    max_requests: int = 512
    wakes: bool = True


class Gateway:
    """Answers requests to services and files.

    Args:
        sandboxes: Where they are.
        site: Its addresses.
        keys: What tokens are signed with.
        settings: The bounds.
        stopping: Set when endless answers are to end.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        sandboxes: Sandboxes,
        site: ServiceSite,
        keys: Keys,
        settings: GatewaySettings | None = None,
        *,
        stopping: trio.Event | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.site: ServiceSite = site
        self._sandboxes = sandboxes
        self._keys = keys
        self._settings = settings or GatewaySettings()
        self._stopping = trio.Event() if stopping is None else stopping
        self._clock = clock
        self._under_way: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.site.base_url} with {self._under_way.total()} requests under way>"

    def target_of(self, request: h11.Request) -> Target | None:
        """What a request is for; ``None`` = nothing of the gateway's.

        The host decides first: nothing else of a server can be reached by the name of a service.
        """
        host = next((value for name, value in request.headers if name == b"host"), b"")
        return self.site.of_host(host.decode("latin-1")) or self.site.of_target(request.target.decode("latin-1"))

    async def serve(self, front: Front, request: h11.Request, target: Target) -> bool:
        """Answer one request; whether the connection is good for another one.

        Cancellation: The connection is of no more use.
        """
        front.is_head = request.method == b"HEAD"
        try:
            try:
                await self._serve(front, request, target)
            except RefusalError as refusal:
                if front.started:
                    return False
                await self._refuse(front, refusal, as_json=isinstance(target, ServicePath))
            return await front.finish()
        except GoneError:
            return False

    async def _refuse(self, front: Front, refusal: RefusalError, *, as_json: bool) -> None:
        kind, body = refusal.body(as_json=as_json)
        more = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
        await front.answer(refusal.status, [(b"Content-Type", kind.encode()), *_PRIVATE, *more], body)

    async def _serve(self, front: Front, request: h11.Request, target: Target) -> None:
        asked = request.target.decode("latin-1")
        if not asked.startswith("/") and not (asked == "*" and request.method == b"OPTIONS"):
            raise RefusalError(400, "InvalidRequest", "The request must name a path")
        match target:
            case ServicePath():
                claims = await self._by_header(request, target.sandbox_id, target.port)
                await self._exchange(front, request, claims, target.target, target.prefix)
            case ServiceHost():
                await self._serve_origin(front, request, target, asked)
            case FileHost():
                await self._send_file(front, request, FilePath(target.sandbox_id, asked))
            case FilePath():
                await self._send_file(front, request, target)
            case Unknown():
                raise RefusalError(404, "NotFound", "There is nothing at this address")

    async def _send_file(self, front: Front, request: h11.Request, asked: FilePath) -> None:
        with self._room(asked.sandbox_id):
            keys = await self._keys.keys("download")
            await send_file(self._sandboxes, front, request, asked, keys, self._clock(), self._wake)

    # -- services ----------------------------------------------------------------------------------------------------

    async def _by_header(self, request: h11.Request, sandbox_id: str, port: int) -> ServiceClaims:
        header = TOKEN_HEADER.encode()
        tokens = [value.decode("latin-1") for name, value in request.headers if name == header]
        return check_token(tokens, await self._keys.keys("service"), sandbox_id, port, self._clock())

    async def _serve_origin(self, front: Front, request: h11.Request, target: ServiceHost, asked: str) -> None:
        path, _, query = asked.partition("?")
        if path == AUTH_PATH:
            await self._exchange_token(front, request, target, query)
            return
        if path.startswith(_RESERVED):
            raise RefusalError(404, "NotFound", "There is nothing at this address")
        headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
        if TOKEN_HEADER in headers:
            claims = await self._by_header(request, target.sandbox_id, target.port)
        else:
            keys = await self._keys.keys("service")
            found = cookies(request.headers, self._cookie)
            claims = check_token(found, keys, target.sandbox_id, target.port, self._clock())
            origin = f"{self.site.scheme}://{headers.get('host', '')}"
            check_origin(request.method.decode(), headers, origin, upgrades=upgrade_of(request) is not None)
        await self._exchange(front, request, claims, asked, "")

    @property
    def _cookie(self) -> str:
        return SECURE_COOKIE if self.site.scheme == "https" else COOKIE

    async def _exchange_token(self, front: Front, request: h11.Request, target: ServiceHost, query: str) -> None:
        """Give a browser a cookie for the token in the address, and an address without it."""
        if request.method not in (b"GET", b"HEAD"):
            raise RefusalError(405, "MethodNotAllowed", "Only GET is possible here", {"allow": "GET, HEAD"})
        asked = parse_qs(query, max_num_fields=16) if query.count("&") < 16 else {}
        keys = await self._keys.keys("service")
        claims = check_token(asked.get("token", []), keys, target.sandbox_id, target.port, self._clock())
        cookie = (
            f"{self._cookie}={asked['token'][0]}; Path=/; HttpOnly; SameSite=Lax; "
            f"Max-Age={max(1, int(claims.expires_at - self._clock()))}"
        )
        if self.site.scheme == "https":
            cookie += "; Secure"
        headers = [
            (b"Location", _own_path(asked.get("redirect", ["/"])[0])),
            (b"Set-Cookie", cookie.encode()),
            *_PRIVATE,
        ]
        await front.answer(303, headers, b"")

    async def _exchange(
        self, front: Front, request: h11.Request, claims: ServiceClaims, target: str, prefix: str
    ) -> None:
        if request.method == b"CONNECT":
            raise RefusalError(405, "MethodNotAllowed", "CONNECT is not possible here")
        host = next((value for name, value in request.headers if name == b"host"), b"")
        view = View(
            scheme=self.site.scheme,
            host=host.decode("latin-1"),
            prefix=prefix,
            port=claims.port,
            peer=front.peer,
        )
        with self._room(claims.sandbox_id):
            try:
                await self._wake(claims.sandbox_id, claims.tenant)
                back = await self._sandboxes.connect(claims.sandbox_id, claims.port)
            except SandboxClientError as error:
                raise unreachable(error) from error
            async with aclosing(back):
                exchange = Exchange(
                    front,
                    back,
                    request,
                    target=target,
                    view=view,
                    limits=self._settings.exchange,
                    stopping=self._stopping,
                )
                await exchange.run()

    # -- sandboxes ---------------------------------------------------------------------------------------------------

    async def _wake(self, sandbox_id: str, tenant: str) -> None:
        """See that the sandbox is there, that tenant's, and awake where that is for us to do."""
        info = await self._sandboxes.get_sandbox(sandbox_id, tenant)
        if (info.status == "stopped" or info.is_waking) and self._settings.wakes:
            await self._sandboxes.start_sandbox(sandbox_id, _WAKE_S)

    @contextmanager
    def _room(self, sandbox_id: str) -> Iterator[None]:
        if self._under_way[sandbox_id] >= self._settings.max_requests:
            raise RefusalError(
                429,
                "TooManyRequests",
                f"The sandbox has {self._settings.max_requests} requests under way, which is its limit",
                {"retry-after": "1"},
            )
        self._under_way[sandbox_id] += 1
        try:
            yield
        finally:
            self._under_way[sandbox_id] -= 1
            if not self._under_way[sandbox_id]:
                del self._under_way[sandbox_id]


def _own_path(text: str) -> bytes:
    """Where to go on the same origin; the root for what might lead elsewhere."""
    is_path = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isascii() and text.isprintable()
    return text.encode() if is_path and " " not in text and not text.startswith(_RESERVED) else b"/"
