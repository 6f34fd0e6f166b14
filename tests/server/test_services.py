"""The way to services in a whole server over the fake engine: TLS, upgrades, one connection for many, the log."""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trio

from tests.gateway.test_local import refused
from tests.server.app_kit import Site, site
from tests.server.test_tls import certificate

__all__ = ["certificate"]

TOKEN = "X-Langsmith-Sandbox-Service-Token"


@asynccontextmanager
async def serving(
    state_dir: Path, habit: str, client: httpx.AsyncClient | None = None, **how: Any
) -> AsyncIterator[Any]:
    """A server, and a link to a port where somebody with that habit listens."""
    async with site(state_dir, **how) as here:
        api = client or here.acme
        headers = {"X-Api-Key": here.secret}
        api.base_url = httpx.URL(f"{here.server.url}/v2/sandboxes")
        box = (await api.post("/boxes", json={"name": "box"}, headers=headers)).json()
        body = {"command": f"listen 80 {habit} & sleep 0.2", "timeout": 5}
        assert (await api.post(f"{box['dataplane_url']}/execute", json=body, headers=headers)).status_code == 200
        link = (await api.post("/boxes/box/service-url", json={"port": 80}, headers=headers)).json()
        yield here, link


async def open_stream(here: Site, tls: ssl.SSLContext | None = None) -> trio.abc.Stream:
    stream = await trio.open_tcp_stream("127.0.0.1", here.server.port)
    if tls is None:
        return stream
    return trio.SSLStream(stream, tls, server_hostname="127.0.0.1", https_compatible=True)


async def until(stream: trio.abc.Stream, end: bytes, got: bytes = b"") -> bytes:
    with trio.fail_after(10):
        while end not in got:
            data = await stream.receive_some(65536)
            assert data, got
            got += data
    return got


def path_of(link: dict[str, str]) -> str:
    return urlsplit(link["service_url"]).path


@pytest.fixture
def trusting(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


async def test_cookies_over_tls(tmp_path: Path, certificate: tuple[Path, Path], trusting: ssl.SSLContext) -> None:
    how = {"certificate": certificate[0], "private_key": certificate[1]}
    async with (
        httpx.AsyncClient(verify=trusting, timeout=20) as client,
        serving(tmp_path, "http", client, **how) as (here, link),
    ):
        assert urlsplit(link["browser_url"]).scheme == "https"
        parts = urlsplit(link["browser_url"])
        base = f"https://127.0.0.1:{here.server.port}"
        answer = await client.get(f"{base}{parts.path}?{parts.query}", headers={"Host": parts.netloc})
        cookie, *attributes = answer.headers["set-cookie"].split("; ")
        assert cookie == f"__Host-sandboxrt-service={link['token']}"
        assert {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"} <= set(attributes)
        visit = {"Host": parts.netloc, "Cookie": cookie, "Origin": f"https://{parts.netloc}"}
        page = await client.post(f"{base}/", headers=visit)
        assert page.status_code == 200
        assert "X-Forwarded-Proto: https" in page.text
        # Over TLS nobody else can have set that name, and the other name means nothing.
        visit["Cookie"] = f"sandboxrt-service={link['token']}"
        assert (await client.post(f"{base}/", headers=visit)).status_code == 401
        visit |= {"Cookie": cookie, "Origin": f"http://{parts.netloc}"}
        assert (await client.post(f"{base}/", headers=visit)).status_code == 403


@pytest.mark.parametrize("is_tls", [False, True])
async def test_upgrades_of_any_kind(
    tmp_path: Path, certificate: tuple[Path, Path], trusting: ssl.SSLContext, is_tls: bool
) -> None:
    how = {"certificate": certificate[0], "private_key": certificate[1]} if is_tls else {}
    async with (
        httpx.AsyncClient(verify=trusting, timeout=20) as client,
        serving(tmp_path, "upgrade", client, **how) as (here, link),
        await open_stream(here, trusting if is_tls else None) as stream,
    ):
        await stream.send_all(
            f"GET {path_of(link)} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n"
            f"{TOKEN}: {link['token']}\r\n\r\nsent before the answer;".encode()
        )
        got = await until(stream, b"answer;")
        head, _, rest = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"upgrade: echo" in head.lower()
        assert rest == b"welcomesent before the answer;"
        for size in (1, 70_000, 500_000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, bytes(size) + b"!")
                assert await until(stream, b"!") == bytes(size) + b"!"
        # An open connection of this kind does not hold up the end of the server.
        with trio.fail_after(8):
            here.server.stopping.set()
            while await stream.receive_some(65536):
                pass


async def test_many_requests_on_one_connection(tmp_path: Path) -> None:
    async with serving(tmp_path, "http") as (here, link), await open_stream(here) as stream:
        path, token = path_of(link), link["token"]
        request = f"GET {path}%s HTTP/1.1\r\nHost: x\r\n{TOKEN}: {token}\r\n\r\n"
        health = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        # One after the other, all sent at once: what follows a request waits for its turn.
        await stream.send_all((request % "a" + health + request % "b" + request.replace(token, "x") % "c").encode())
        got = await until(stream, b"Authentication required")
        assert re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", got) == [b"200", b"200", b"200", b"401"]
        assert got.index(b"GET /a HTTP/1.1") < got.index(b'"ok"') < got.index(b"GET /b HTTP/1.1")
        await stream.send_all(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n".encode()
        )
        await stream.send_all(f"{TOKEN}: {token}\r\n\r\n".encode())
        # The service answers without waiting for the body, and both may come at once.
        invitation, _, answer = (await until(stream, b"\r\n\r\n")).partition(b"\r\n\r\n")
        assert invitation.startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"body")
        answer = await until(stream, b"\r\n\r\nPOST / HTTP/1.1", answer)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"expect" not in answer.lower()


async def test_a_refused_body_costs_the_connection_and_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, "http") as (here, link), await open_stream(here) as stream:
        head = f"POST {path_of(link)} HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n".encode()
        await stream.send_all(head + bytes(1000))
        got = await until(stream, b"Authentication required")
        assert got.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in got.lower()
        await stream.send_all(bytes(299_000))
        with trio.fail_after(10):
            while await stream.receive_some(65536):
                pass


async def test_an_answer_before_the_request_was_read(tmp_path: Path) -> None:
    async with serving(tmp_path, "early") as (here, link):
        for content in (b"x" * 40, bytes(8 * 1024**2)):
            answer = await here.nobody.post(link["service_url"], headers={TOKEN: link["token"]}, content=content)
            assert (answer.status_code, answer.text) == (413, "no more, thank you")


@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_refusal_reaches_who_sends_everything_first(
    tmp_path: Path, certificate: tuple[Path, Path], trusting: ssl.SSLContext, is_tls: bool
) -> None:
    how = {"certificate": certificate[0], "private_key": certificate[1]} if is_tls else {}
    async with (
        httpx.AsyncClient(verify=trusting, timeout=20) as client,
        serving(tmp_path, "http", client, **how) as (here, link),
        await open_stream(here, trusting if is_tls else None) as stream,
    ):
        assert (await refused(stream, path_of(link))).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    "junk",
    [
        b"GET\r\n\r\n",
        b"\x16\x03\x01",
        b"GET %b HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"CONNECT %b HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_is_no_request(tmp_path: Path, junk: bytes) -> None:
    async with serving(tmp_path, "http") as (here, link):
        async with await open_stream(here) as stream:
            await stream.send_all(junk.replace(b"%b", path_of(link).encode()))
            await stream.send_all(b"\r\n\r\n")
            with trio.fail_after(15):
                got = await stream.receive_some(65536)
            assert not got or got.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))
        assert (await here.nobody.get(link["service_url"], headers={TOKEN: link["token"]})).status_code == 200


async def test_the_log_has_services_and_no_tokens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sandboxrt.server.access")
    async with serving(tmp_path, "http") as (here, link):
        caplog.clear()
        parts = urlsplit(link["browser_url"])
        await here.nobody.get(link["service_url"] + "a?secret=1", headers={TOKEN: link["token"]})
        await here.nobody.get(f"{here.server.url}{parts.path}?{parts.query}", headers={"Host": parts.netloc})
        metrics = (await here.nobody.get(here.server.url + "/metrics")).text
    lines = [record.getMessage() for record in caplog.records if record.name == "sandboxrt.server.access"]
    entries = [entry for line in lines if (entry := json.loads(line))["route"].startswith("service ")]
    assert [(entry["route"], entry["status"]) for entry in entries] == [("service path", 200), ("service origin", 303)]
    assert entries[0]["path"] == path_of(link) + "a"
    assert not any(link["token"] in line or "secret=1" in line for line in lines)
    assert 'route="service path"' in metrics
