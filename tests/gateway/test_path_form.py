"""Services by path, as programs use them, with a real application in a real sandbox."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.gateway.conftest import TOKEN, Site

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_every_method_arrives_with_its_body_and_query(site: Site, method: str) -> None:
    with site.by_path() as service:
        answer = service.request(method, "/request?a=%2Fb&c=d e", content=b"\x00body")
    told = answer.json()
    assert answer.status_code == 200
    assert answer.headers["x-own"] == "yes"
    assert told["method"] == method
    assert told["path"] == "/request?a=%2Fb&c=d%20e"
    assert told["body"] == "\x00body"


def test_head_has_headers_alone(site: Site) -> None:
    with site.by_path() as service:
        answer = service.head("/second")
        again = service.get("/second")
    assert answer.content == b""
    assert answer.headers["content-length"] == str(len(again.content))


def test_what_the_service_sees_of_its_visitor(site: Site) -> None:
    link = site.link()
    with site.by_path() as service:
        headers = {
            "X-Api-Key": site.server.key,
            "Authorization": f"Bearer {site.server.key}",
            "Cookie": "sandboxrt-service=secret; session=mine",
            "X-Forwarded-For": "6.6.6.6",
            "X-Langsmith-User-Id": "somebody",
            "Connection": "close, X-Hop",
            "X-Hop": "1",
            "X-Kept": "2",
        }
        told = service.get("/request", headers=headers).json()
    seen = {name.lower(): value for name, value in told["headers"]}
    assert seen["host"] == "localhost:3000"
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-host"] == f"127.0.0.1:{site.server.port}"
    assert seen["x-forwarded-proto"] == "http"
    assert link["service_url"].endswith(seen["x-forwarded-prefix"] + "/")
    assert seen["cookie"] == "session=mine"
    assert seen["x-kept"] == "2"
    assert not {TOKEN.lower(), "x-api-key", "authorization", "x-langsmith-user-id", "x-hop"} & seen.keys()
    assert site.server.key not in str(told)
    assert link["token"].split(".")[0] not in str(told)


def test_a_services_own_keys_reach_it(site: Site) -> None:
    with site.by_path() as service:
        told = service.get("/request", headers={"X-Api-Key": "its own", "Authorization": "Basic eDp5"}).json()
    seen = {name.lower(): value for name, value in told["headers"]}
    assert (seen["x-api-key"], seen["authorization"]) == ("its own", "Basic eDp5")


def test_large_bodies_both_ways_as_they_come(site: Site) -> None:
    data = os.urandom(1024**2) * 32

    def pieces(size: int) -> Iterator[bytes]:
        for start in range(0, size, 100_000):
            yield data[start : min(start + 100_000, size)]

    with site.by_path() as service:
        whole = hashlib.sha256(data).hexdigest()
        assert service.post("/sum", content=data).text == whole
        assert service.post("/sum", content=pieces(len(data))).text == whole
        # This client reads nothing before it has sent everything, so what comes back has to fit between.
        assert service.post("/echo", content=pieces(200_000)).content == data[:200_000]
        with service.stream("GET", "/big?mib=64") as answer:
            assert answer.headers["transfer-encoding"] == "chunked"
            digest = hashlib.sha256()
            for piece in answer.iter_bytes():
                digest.update(piece)
        assert digest.hexdigest() == hashlib.sha256(bytes(range(256)) * 256 * 16 * 64).hexdigest()


def test_events_come_when_they_are_sent(site: Site) -> None:
    with site.by_path() as service, service.stream("GET", "/events?count=3&pause=0.4") as answer:
        times = [(time.monotonic(), line) for line in answer.iter_lines() if line]
    assert [line for _, line in times] == ["data: 0", "data: 1", "data: 2"]
    assert times[2][0] - times[0][0] > 0.5


def test_redirects_and_cookies_stay_with_the_service(site: Site) -> None:
    prefix = httpx.URL(site.link()["service_url"]).path
    with site.by_path() as service:
        for to, expected in (
            ("/second?x=1", prefix + "second?x=1"),
            ("http://localhost:3000/second", prefix + "second"),
            ("second", "second"),
            ("http://127.0.0.1:3000", prefix),
            ("https://example.com/", "https://example.com/"),
            ("http://localhost:3001/", "http://localhost:3001/"),
        ):
            answer = service.get("/login", params={"to": to})
            assert answer.status_code == 302
            assert answer.headers["location"] == expected
        assert answer.headers["set-cookie"] == f"session=abc; Path={prefix}; HttpOnly"
        followed = service.get("/login", follow_redirects=True)
        assert followed.status_code == 200
        assert "second" in followed.text
        # The cookie jar sends it back to this service.
        told = service.get("/request").json()
        assert ["Cookie", "session=abc"] in [[name.title(), value] for name, value in told["headers"]]


def test_a_connection_serves_services_and_the_api_in_turn(site: Site) -> None:
    link = site.link()
    with httpx.Client(headers={"X-Api-Key": site.server.key}, limits=httpx.Limits(max_connections=1)) as client:
        for _ in range(3):
            assert client.get(link["service_url"] + "second", headers={TOKEN: link["token"]}).status_code == 200
            assert client.get(f"{site.server.url}/v2/sandboxes/boxes/first").status_code == 200
            assert client.get(link["service_url"]).status_code == 401


def test_services_that_are_not_there_or_misbehave(site: Site) -> None:
    with site.by_path(port=3999) as nobody:
        answer = nobody.get("/")
        assert answer.status_code == 502
        assert answer.json()["detail"]["message"].startswith("Service is not reachable: Nothing listens on port 3999")
    with site.by_path() as service:
        answer = service.get("/garbage")
        assert answer.status_code == 502
        assert answer.json()["detail"]["message"].startswith("Service is not reachable")
        with pytest.raises(httpx.RemoteProtocolError):
            service.get("/cut")
        assert service.post("/early", content=os.urandom(8 * 1024**2)).status_code == 413
        assert service.get("/second").status_code == 200


@pytest.mark.parametrize("size", [20_000, 8 * 1024**2])
def test_an_answer_before_the_body_was_read(site: Site, size: int) -> None:
    with site.by_path() as service:
        for _ in range(5):
            answer = service.post("/abrupt", content=os.urandom(size))
            assert (answer.status_code, answer.text) == (413, "no more, thank you")


def test_a_visitor_who_leaves_leaves_nothing(site: Site) -> None:
    link = site.link()
    url = httpx.URL(link["service_url"])
    before = _open_connections(site)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", site.server.port)) as raw:
            raw.sendall(
                f"GET {url.path}hang?seconds=60 HTTP/1.1\r\nHost: x\r\n{TOKEN}: {link['token']}\r\n\r\n".encode()
            )
            time.sleep(0.1)
    deadline = time.monotonic() + 10
    while _open_connections(site) > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _open_connections(site) <= before


def _open_connections(site: Site) -> int:
    table = site.sandbox.run("cat /proc/net/tcp").stdout
    # Established to port 3000 (0BB8), as the application's side sees it.
    return sum(" 01 " in line and ":0BB8 " in line for line in table.splitlines())


def test_tokens_that_are_not_good(site: Site) -> None:
    link, other = site.link(), site.link(sandbox=site.other)
    port = site.link(port=3001)
    header, body, signature = link["token"].split(".")
    altered = f"{header}.{body}.{('A' if signature[0] != 'A' else 'B') + signature[1:]}"
    for token, status, text in (
        (None, 401, "Authentication required"),
        ("", 401, "Authentication required"),
        ("nonsense", 401, "Authentication required"),
        (altered, 401, "Authentication required"),
        (f"{header}.{body}.", 401, "Authentication required"),
        (other["token"], 403, "Authentication required"),
        (port["token"], 403, "Authentication required"),
        (site.server.key, 401, "Authentication required"),
    ):
        headers = {} if token is None else {TOKEN: token}
        answer = httpx.get(link["service_url"], headers=headers)
        assert answer.status_code == status, token
        assert answer.json()["detail"]["message"].startswith(text)
    # A cookie and a key are nothing here.
    answer = httpx.get(
        link["service_url"], headers={"Cookie": f"sandboxrt-service={link['token']}", "X-Api-Key": site.server.key}
    )
    assert answer.status_code == 401


def test_a_token_expires(site: Site) -> None:
    link = site.link(expires_in_seconds=1)
    assert httpx.get(link["service_url"] + "second", headers={TOKEN: link["token"]}).status_code == 200
    time.sleep(1.1)
    answer = httpx.get(link["service_url"] + "second", headers={TOKEN: link["token"]})
    assert answer.status_code == 401
    assert answer.json()["detail"]["message"].startswith("Service link has expired")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"port": 0}, "body.port"),
        ({"port": -1}, "body.port"),
        ({"port": 65536}, "body.port"),
        ({"port": "3000"}, "body.port"),
        ({"port": True}, "body.port"),
        ({}, "body.port"),
        ({"port": 80, "expires_in_seconds": 0}, "body.expires_in_seconds"),
        ({"port": 80, "expires_in_seconds": 86401}, "body.expires_in_seconds"),
        ({"port": 80, "expires_in_seconds": "60"}, "body.expires_in_seconds"),
        ({"port": 80, "access": "restricted"}, "body.access"),
        ({"port": 80, "embed_origins": ["https://example.com"]}, "body.embed_origins"),
    ],
)
def test_bad_requests_for_links(site: Site, body: dict[str, object], field: str) -> None:
    answer = site.api.post("/boxes/first/service-url", json=body)
    assert answer.status_code == 422, answer.text
    assert [".".join(map(str, entry["loc"])) for entry in answer.json()["detail"]] == [field]


def test_the_answer_has_exactly_the_documented_fields(site: Site) -> None:
    link = site.link()
    assert set(link) == {"browser_url", "service_url", "token", "expires_at"}
    assert len(link["expires_at"].rpartition(".")[2].rstrip("Z")) <= 6
    assert site.api.post("/boxes/nobody/service-url", json={"port": 80}).status_code == 404
    assert site.api.get("/boxes/first/service-urls").status_code == 501
