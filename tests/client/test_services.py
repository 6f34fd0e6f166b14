"""How our client keeps the token of a service good, and to whom it gives it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import httpx
import pytest
import trio
import trio.testing

from sandboxrt.client.grants import GrantKeeper
from sandboxrt.client.owner import Owner
from sandboxrt.client.service import AsyncServiceURL
from sandboxrt.client.service_calls import download_request, open_service
from sandboxrt.errors import ClientClosedError, SandboxConnectionError
from sandboxrt.protocol.rest import ServiceGrant

TOKEN = "x-langsmith-sandbox-service-token"


@attrs.define
class Issuer:
    """A transport that makes tokens, and carries requests to a function."""

    made: int = 0
    delay_s: float = 0.0
    error: Exception | None = None
    seen: list[httpx.Request] = attrs.field(factory=list)
    location: str | None = None
    broken: Exception | None = None

    def with_headers(self, headers: Mapping[str, str] | None) -> Issuer:
        return self

    async def service_url(self, name: str, port: int, expires_in_seconds: int) -> ServiceGrant:
        self.made += 1
        number = self.made
        await trio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return ServiceGrant(f"http://b/{number}", "http://services/s/", f"token-{number}", f"at {number}")

    async def service_connections(self) -> httpx.AsyncBaseTransport:
        def answer(request: httpx.Request) -> httpx.Response:
            self.seen.append(request)
            if self.broken is not None:
                raise self.broken
            headers = {} if self.location is None or len(self.seen) > 1 else {"location": self.location}
            return httpx.Response(302 if headers else 200, headers=headers)

        return httpx.MockTransport(answer)


@asynccontextmanager
async def service(seconds: int = 600, **how: Any) -> AsyncIterator[tuple[AsyncServiceURL, Issuer, Owner]]:
    issuer = Issuer(**how)
    async with trio.open_nursery() as nursery:
        owner = Owner(cast("Any", issuer), nursery)
        yield await open_service(owner, "box", 3000, seconds, None), issuer, owner
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("lifetime", "good_for"), [(86400, 86370), (600, 570), (60, 30), (31, 1), (30, 20), (9, 6), (1, 0.6)]
)
async def test_a_token_is_replaced_before_its_end(
    autojump_clock: trio.testing.MockClock, lifetime: int, good_for: float
) -> None:
    async with service(lifetime) as (found, issuer, _):
        await trio.sleep(good_for - 0.1)
        assert await found.get_token() == "token-1"
        assert await found.get_service_url() == "http://services/s/"
        assert issuer.made == 1
        await trio.sleep(0.2)
        assert await found.get_token() == "token-2"
        assert (await found.get_browser_url(), await found.get_expires_at()) == ("http://b/2", "at 2")
        assert (found.token, found.browser_url, found.expires_at) == ("token-2", "http://b/2", "at 2")
        assert issuer.made == 2


async def test_all_who_wait_share_one_request(autojump_clock: trio.testing.MockClock) -> None:
    async with service() as (found, issuer, _):
        await trio.sleep(580)
        issuer.delay_s = 3
        got: list[str] = []

        async def use() -> None:
            got.append(await found.get_token())

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(use)
            with trio.move_on_after(1):
                await found.get_token()  # the first to ask may be the first to leave
        assert got == ["token-2"] * 50
        assert issuer.made == 2


async def test_a_failure_is_raised_where_the_token_is_used(autojump_clock: trio.testing.MockClock) -> None:
    async with service() as (found, issuer, _):
        await trio.sleep(580)
        issuer.error, issuer.delay_s = SandboxConnectionError("gone"), 1
        failures = []

        async def use() -> None:
            with pytest.raises(SandboxConnectionError, match="gone"):
                await found.get("/")
            failures.append(1)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(use)
        assert len(failures) == 5
        assert issuer.made == 2
        issuer.error = None
        assert await found.get_token() == "token-3"


async def test_a_closed_client_gets_no_tokens(autojump_clock: trio.testing.MockClock) -> None:
    async with service() as (found, issuer, owner):
        await trio.sleep(580)
        issuer.delay_s = 60

        async def use() -> None:
            with pytest.raises(ClientClosedError):
                await found.get_token()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await trio.testing.wait_all_tasks_blocked()
            owner.close()
            owner._nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
    async with service() as (found, _, owner):
        await trio.sleep(580)
        owner.close()
        with pytest.raises(ClientClosedError):
            await found.get_token()


async def test_the_helpers_send_the_token_over_what_the_caller_says() -> None:
    async with service() as (found, issuer, _):
        for method in ("get", "post", "put", "patch", "delete"):
            await getattr(found, method)("x/y?z=1", headers={"X-Langsmith-Sandbox-Service-Token": "mine", "X-Own": "1"})
        await found.request("PROPFIND", "/deep", json={"a": 1})
    assert [request.method for request in issuer.seen] == ["GET", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"]
    assert str(issuer.seen[0].url) == "http://services/s/x/y?z=1"
    assert issuer.seen[0].headers.get_list(TOKEN) == ["token-1"]
    assert issuer.seen[0].headers["x-own"] == "1"
    assert str(issuer.seen[-1].url) == "http://services/s/deep"
    assert issuer.seen[-1].content == b'{"a":1}'
    assert not any("api-key" in name for request in issuer.seen for name in request.headers)


@pytest.mark.parametrize(
    ("location", "has_token"),
    [
        ("/s/next", True),
        ("http://services/s/next", True),
        ("/other/next", False),
        ("http://services:81/s/next", False),
        ("https://services/s/next", False),
        ("http://evil.example/s/next", False),
    ],
)
async def test_the_token_goes_nowhere_else(location: str, has_token: bool) -> None:
    async with service(location=location) as (found, issuer, _):
        assert (await found.get("/")).status_code == 302
        issuer.seen.clear()
        await found.get("/", follow_redirects=True, headers={TOKEN: "given"})
    assert len(issuer.seen) == 2
    assert (TOKEN in issuer.seen[1].headers) is has_token


async def test_plain_iterators_are_bodies() -> None:
    async with service() as (found, issuer, _):
        await found.post("/", content=iter([b"a", b"b"]))
        await found.post("/", content=b"c")
    assert [await request.aread() for request in issuer.seen] == [b"ab", b"c"]


async def test_no_token_is_shown() -> None:
    async with service() as (found, _, _):
        assert "token" not in repr(found)
        assert "http://services/s/" in repr(found)
        assert "token-1" not in repr(GrantKeeper.__attrs_attrs__) + repr(found._grant)


@pytest.mark.parametrize("port", [0, -1, 65536, "3000", True, None, 1.5])
async def test_ports_that_are_none(port: Any) -> None:
    with pytest.raises(ValueError, match="port must be an integer from 1 to 65535"):
        await open_service(cast("Any", None), "box", port, 600, None)


@pytest.mark.parametrize("seconds", [0, -1, 86401, "60", True, 1.5])
async def test_lifetimes_that_are_none(seconds: Any) -> None:
    with pytest.raises(ValueError, match="expires_in_seconds must be an integer from 1 to 86400"):
        await open_service(cast("Any", None), "box", 80, seconds, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ("", None, None, None),
        ("a\0b", None, None, None),
        ("x" * 3000, None, None, None),
        ("/a", 0, None, None),
        ("/a", True, None, None),
        ("/a", 2**31, None, None),
        ("/a", None, "text/html\r\nX: y", None),
        ("/a", None, "html", None),
        ("/a", None, None, "nowhere"),
    ],
)
def test_download_links_that_cannot_be(arguments: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        download_request(*arguments)


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout(""),
        httpx.PoolTimeout("full"),
        httpx.RemoteProtocolError("nonsense"),
        httpx.TooManyRedirects("a, b, a"),
        httpx.DecodingError("no gzip"),
    ],
)
async def test_whatever_hinders_an_answer_is_an_error_of_ours(
    autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    async with service() as (found, issuer, _):
        issuer.broken = error
        with pytest.raises(SandboxConnectionError, match="No answer from the service at http://services/s/x") as raised:
            await found.get("/x")
        assert raised.value.__cause__ is error
        assert str(error) in str(raised.value)


async def test_what_makes_no_url_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with service() as (found, _, _):
        with pytest.raises(ValueError, match="makes no URL"):
            await found.get("/x\0y")
