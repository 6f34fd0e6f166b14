"""Services on origins of their own, as browsers use them, asked by a client that can also lie."""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.gateway.conftest import TOKEN, Site

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]


def cookie_for(site: Site, **fields: object) -> str:
    """What a browser is given for a link."""
    link = urlsplit(site.link(**fields)["browser_url"])
    with site.by_origin() as browser:
        answer = browser.get(f"{link.path}?{link.query}")
    assert answer.status_code == 303
    return answer.headers["set-cookie"].partition(";")[0]


def test_a_browser_gets_a_cookie_for_the_token(site: Site) -> None:
    link = site.link(expires_in_seconds=120)
    parts = urlsplit(link["browser_url"])
    assert parts.netloc == site.host()
    assert parts.path == "/_svc/auth"
    assert parse_qs(parts.query)["token"] == [link["token"]]
    with site.by_origin() as browser:
        answer = browser.get(f"{parts.path}?{parts.query}")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        name, *attributes = answer.headers["set-cookie"].split("; ")
        assert name == f"sandboxrt-service={link['token']}"
        ages = [int(text.partition("=")[2]) for text in attributes if text.startswith("Max-Age=")]
        assert 110 < ages[0] <= 120
        assert {"Path=/", "HttpOnly", "SameSite=Lax"} <= set(attributes)
        assert not [text for text in attributes if text.startswith("Domain")]
        page = browser.get("/", headers={"Cookie": name, "Host": site.host()})
        assert page.status_code == 200
        assert "<h1>first</h1>" in page.text


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ("/second?x=1", "/second?x=1"),
        ("//evil.example/", "/"),
        ("/\\evil.example/", "/"),
        ("https://evil.example/", "/"),
        ("/_svc/auth?token=x", "/"),
        ("/a\r\nSet-Cookie: x=1", "/"),
    ],
)
def test_redirects_go_nowhere_else(site: Site, wanted: str, given: str) -> None:
    with site.by_origin() as browser:
        answer = browser.get("/_svc/auth", params={"token": site.link()["token"], "redirect": wanted})
    assert answer.status_code == 303
    assert answer.headers["location"] == given


def test_links_that_are_not_good(site: Site) -> None:
    link, other, elsewhere = site.link(expires_in_seconds=1), site.link(sandbox=site.other), site.link(port=3001)
    time.sleep(1.1)
    with site.by_origin() as browser:
        for token, status, text in (
            (link["token"], 401, "Service link has expired"),
            (other["token"], 403, "Authentication required"),
            (elsewhere["token"], 403, "Authentication required"),
            ("x.y.z", 401, "Authentication required"),
            ("", 401, "Authentication required"),
        ):
            for answer in (
                browser.get("/_svc/auth", params={"token": token}),
                browser.get("/", headers={"Host": site.host(), "Cookie": f"sandboxrt-service={token}"}),
            ):
                assert answer.status_code == status
                assert answer.text.startswith(text)
                assert "set-cookie" not in answer.headers
        assert browser.get("/").status_code == 401
        assert browser.post("/_svc/auth").status_code == 405
        assert browser.get("/_svc/other").status_code == 404


def test_the_cookie_is_good_for_the_services_own_pages_only(site: Site) -> None:
    own = f"http://{site.host()}"
    other = f"http://{site.host(sandbox=site.other)}"
    visit = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    allowed = [
        ("GET", {}),
        ("GET", {"Sec-Fetch-Site": "none", **visit}),
        ("GET", {"Sec-Fetch-Site": "same-origin"}),
        ("GET", {"Sec-Fetch-Site": "cross-site", **visit}),
        ("POST", {"Sec-Fetch-Site": "same-origin", "Origin": own}),
        ("POST", {"Sec-Fetch-Site": "same-origin", "Origin": "null"}),
        ("POST", {"Origin": own}),
    ]
    refused = [
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Origin": other}),
        ("GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}),
        ("GET", {"Origin": other}),
        ("POST", {"Sec-Fetch-Site": "same-site", **visit}),
        ("POST", {"Sec-Fetch-Site": "cross-site", "Origin": "null", **visit}),
        ("POST", {"Origin": other}),
        ("POST", {"Origin": "null"}),
        ("POST", {}),
        ("DELETE", {}),
        ("OPTIONS", {"Origin": other}),
    ]
    with site.by_origin(Cookie=cookie_for(site)) as browser:
        for method, headers in allowed:
            assert browser.request(method, "/request", headers=headers).status_code == 200, (method, headers)
        for method, headers in refused:
            answer = browser.request(method, "/request", headers=headers)
            assert answer.status_code == 403, (method, headers)
            assert answer.text.startswith("Authentication required")
    with site.by_origin(**{TOKEN: site.link()["token"]}) as program:
        assert program.post("/request").status_code == 200


def test_what_the_service_sees_on_its_origin(site: Site) -> None:
    cookie = cookie_for(site)
    with site.by_origin(Cookie=f"a=1; {cookie}; b=2") as browser:
        told = browser.get("/request?q").json()
        login = browser.get("/login", params={"to": "http://localhost:3000/second?x"})
        stolen = browser.get("/steal")
    seen = {name.lower(): value for name, value in told["headers"]}
    assert seen["host"] == seen["x-forwarded-host"] == site.host()
    assert "x-forwarded-prefix" not in seen
    assert seen["cookie"] == "a=1; b=2"
    assert cookie.partition("=")[2] not in json.dumps(told)
    assert login.headers["location"] == "/second?x"
    assert login.headers["set-cookie"] == "session=abc; Path=/; HttpOnly"
    assert "set-cookie" not in stolen.headers


def test_the_api_and_services_do_not_meet(site: Site) -> None:
    key = {"X-Api-Key": site.server.key}
    token = {TOKEN: site.link()["token"]}
    service = httpx.URL(site.link()["service_url"]).path
    base = f"http://127.0.0.1:{site.server.port}"
    with httpx.Client(base_url=base, headers=key) as client:
        for host in (site.host(), site.host().upper(), f"dl--{site.sandbox.id}.localhost", "x.localhost"):
            for path in ("/v2/sandboxes/boxes", "/healthz", "/metrics", "/openapi.json", f"{service}second"):
                answer = client.get(path, headers={"Host": host})
                assert answer.status_code in (401, 403, 404), (host, path, answer.status_code)
        # The service answers for itself there, whatever the path is called.
        there = client.get("/v2/sandboxes/boxes", headers={"Host": site.host(), **token})
        assert (there.status_code, there.text) == (404, "no such page")
        for host in (
            f"0--{site.sandbox.id}",
            f"65536--{site.sandbox.id}",
            "3000--nobody",
            f"a.3000--{site.sandbox.id}",
        ):
            assert client.get("/", headers={"Host": f"{host}.localhost", **token}).status_code == 404


@pytest.mark.parametrize("form", ["path", "cookie", "header"])
def test_a_websocket_passes_through(site: Site, form: str) -> None:
    link = site.link()
    if form == "path":
        path, headers = httpx.URL(link["service_url"]).path + "ws", {TOKEN: link["token"]}
    else:
        path, headers = "/ws", {"Host": site.host()}
        headers |= {TOKEN: link["token"]} if form == "header" else {"Cookie": cookie_for(site)}
        headers |= {} if form == "header" else {"Origin": f"http://{site.host()}"}
    with WebSocket(site.server.port, path, headers) as peer:
        assert peer.status == 101
        for text in (b"hello", b"", os.urandom(200_000).hex().encode()):
            peer.send(1, text)
            assert peer.receive() == (1, b"first: " + text)
        peer.send(2, bytes(70_000))
        assert peer.receive() == (2, bytes(70_000))
        peer.send(8, b"")
        assert peer.ended()


def test_other_pages_get_no_websocket(site: Site) -> None:
    cookie = cookie_for(site)
    for headers in (
        {"Cookie": cookie},
        {"Cookie": cookie, "Origin": f"http://{site.host(sandbox=site.other)}"},
        {"Cookie": cookie, "Origin": "null", "Sec-Fetch-Site": "same-origin"},
        {"Origin": f"http://{site.host()}"},
    ):
        with WebSocket(site.server.port, "/ws", {"Host": site.host(), **headers}) as peer:
            assert peer.status in (401, 403), headers


class WebSocket:
    """A client's end, down to the bytes."""

    def __init__(self, port: int, path: str, headers: dict[str, str]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        sent = {
            "Host": f"127.0.0.1:{port}",
            "Connection": "keep-alive, Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            **headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        self.socket.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        self.file = self.socket.makefile("rb")
        self.status = int(self.file.readline().split()[1])
        while self.file.readline().strip():
            pass

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.socket.close()

    def send(self, opcode: int, data: bytes) -> None:
        length = len(data)
        if length < 126:
            head = bytes([128 | opcode, 128 | length])
        elif length < 65536:
            head = bytes([128 | opcode, 254]) + length.to_bytes(2, "big")
        else:
            head = bytes([128 | opcode, 255]) + length.to_bytes(8, "big")
        self.socket.sendall(head + bytes(4) + data)

    def receive(self) -> tuple[int, bytes]:
        opcode, length = self.file.read(2)
        if length > 125:
            length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
        return opcode & 15, self.file.read(length)

    def ended(self) -> bool:
        return self.file.read() == b""
