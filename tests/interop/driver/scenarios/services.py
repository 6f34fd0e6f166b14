"""Row 37, and the download link of row 40: HTTP services and files, from outside."""

from __future__ import annotations

import asyncio
import base64
import http.client
import inspect
import json
import os
import socket
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import langsmith.sandbox as ls
from context import Context, check, raises, same

HEADER = "X-Langsmith-Sandbox-Service-Token"


async def _got(value: Any) -> Any:
    """What a call gives, of an object that is not wrapped."""
    return await value if inspect.isawaitable(value) else value


async def _token(service: Any) -> str:
    return await service.get_token() if hasattr(service, "get_token") else service.token


async def _running(context: Context, sandbox: Any, **options: Any) -> Any:
    """A service with the application of ``tests/gateway`` behind it."""
    await sandbox.write("/root/application.py", context.options["application"])
    await sandbox.run("python3 /root/application.py 3000 inside", timeout=0, wait=False)
    service = await sandbox.service(3000, **options)
    for _ in range(50):
        if (await _got(service.get("/"))).status_code == 200:
            return service
        await asyncio.sleep(0.1)
    raise AssertionError("the application does not answer")


def _visit(url: str, **headers: str) -> http.client.HTTPResponse:
    """What a browser would get: it alone knows where names below localhost are."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=10)
    connection.request("GET", parts._replace(scheme="", netloc="").geturl(), headers={"Host": parts.netloc, **headers})
    return connection.getresponse()


def _fetch(url: str, **headers: str) -> http.client.HTTPResponse:
    """What any program gets, with what its system knows of names."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    connection.request("GET", parts._replace(scheme="", netloc="").geturl(), headers=headers)
    return connection.getresponse()


async def service(context: Context) -> None:
    """GET, POST, refresh, an expired token, the browser's cookie, a WebSocket."""
    async with context.sandbox() as sandbox:
        service = await _running(context, sandbox, expires_in_seconds=31)
        told = (await _got(service.post("/request?q=1", json={"key": "value"}))).json()
        same((told["method"], told["path"]), ("POST", "/request?q=1"), "what arrives")
        same(json.loads(told["body"]), {"key": "value"}, "its body")
        check(HEADER.lower() not in {name.lower() for name, _ in told["headers"]}, "the token does not arrive")
        for method in ("put", "patch", "delete"):
            same((await _got(getattr(service, method)("/request"))).json()["method"], method.upper(), method)
        same((await _got(service.get("/nowhere"))).status_code, 404, "any status is an answer")
        first = await _token(service)
        await asyncio.sleep(2)
        second = await _token(service)
        check(first != second, "the token is another one after two seconds")
        _websocket(service.service_url, second)
        await _cookie(service, second)


async def _cookie(service: Any, token: str) -> None:
    url = service.browser_url
    answer = _visit(url)
    same(answer.status, 303, "the exchange")
    check("token" not in answer.headers["location"], "no token in the address")
    cookie = answer.headers["set-cookie"].partition(";")[0]
    origin = urlsplit(url)._replace(path="/", query="").geturl()
    page = _visit(origin, Cookie=cookie)
    same((page.status, b"<h1>inside</h1>" in page.read()), (200, True), "the page with the cookie")
    same(_visit(origin).status, 401, "the page without")


def _websocket(url: str, token: str) -> None:
    parts = urlsplit(url)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        f"GET {parts.path}ws HTTP/1.1",
        f"Host: {parts.netloc}",
        f"{HEADER}: {token}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
    )
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as peer, peer.makefile("rb") as answers:
        peer.sendall("\r\n".join((*lines, "", "")).encode())
        same(answers.readline().split()[1], b"101", "the handshake")
        while answers.readline().strip():
            pass
        peer.sendall(bytes([0x81, 0x85]) + bytes(4) + b"hello")
        same(answers.read(2 + 13), b"\x81\x0dinside: hello", "a message and its answer")


async def expired(context: Context) -> None:
    """A token that has expired, one that is none, ports that are none, nobody there."""
    async with context.sandbox() as sandbox:
        await _running(context, sandbox)
        service = await sandbox.service(3000, expires_in_seconds=40)
        same(_status(service.service_url, service.token), 200, "a good one")
        same(_status(service.service_url, "nonsense"), 401, "none")
        nobody = await sandbox.service(3999)
        answer = await _got(nobody.get("/"))
        same(answer.status_code, 502, "nobody there")
        check("Service is not reachable" in answer.text, "it says so")
        await raises(ls.ValidationError, sandbox.service(65536))
        for port in (0, -1, "3000"):
            await raises((ValueError, TypeError), sandbox.service(port))
        for seconds in (0, 86401):
            await raises(ValueError, sandbox.service(3000, expires_in_seconds=seconds))
        brief = _issue(context, sandbox.name, 1)
        await asyncio.sleep(1.2)
        same(_status(brief["service_url"], brief["token"]), 401, "an expired one")


def _issue(context: Context, name: str, seconds: int) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{context.endpoint}/v2/sandboxes/boxes/{name}/service-url",
        json.dumps({"port": 3000, "expires_in_seconds": seconds}).encode(),
        {"Content-Type": "application/json", "X-Api-Key": context.key or ""},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def _status(url: str, token: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={HEADER: token}), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


async def download(context: Context) -> None:
    """A link to a file: whole, a range, shown, altered."""
    async with context.sandbox() as sandbox:
        await sandbox.write("/root/a file.txt", b"0123456789")
        link = await sandbox.generate_download_url("/root/a file.txt", expires_in_seconds=60)
        check(link.expires_at, "when it expires")
        with urllib.request.urlopen(link.download_url, timeout=10) as plain:
            same(plain.read(), b"0123456789", "the file, for whoever just asks for it")
        whole = _fetch(link.download_url)
        same((whole.status, whole.read()), (200, b"0123456789"), "the file")
        check(whole.headers["content-disposition"].startswith("attachment"), "it is to be saved")
        part = _fetch(link.download_url, Range="bytes=2-4")
        same((part.status, part.read()), (206, b"234"), "a range of it")
        same(_fetch(link.download_url.replace("a%20file", "b%20file")).status, 403, "another file")
        async with context.client() as client:
            shown = await client.generate_download_url(
                sandbox.name, "/root/a file.txt", content_type="text/html", content_disposition="inline"
            )
        same(shown.expires_at, None, "for ever")
        answer = _fetch(shown.download_url)
        same(answer.headers["content-type"], "text/html", "its type")
        same(answer.headers["content-security-policy"], "sandbox", "its cage")
        missing = await sandbox.generate_download_url("/root/none")
        same(_fetch(missing.download_url).status, 404, "no such file")
        await raises(ValueError, sandbox.generate_download_url("/root/none", expires_in_seconds=0))


SCENARIOS = {"37": service, "37 bad": expired, "40 download": download}
