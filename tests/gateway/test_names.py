"""Addresses, headers and who may: the pure parts."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import attrs
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.errors import ValidationError
from sandboxrt.gateway.headers import View, cookies, to_service, to_visitor
from sandboxrt.protocol.service_urls import (
    FileHost,
    FilePath,
    ServiceHost,
    ServicePath,
    ServiceSite,
    Unknown,
    file_target,
)
from sandboxrt.server.serve import ServerSettings

BOX = "0f8fad5b-d9cb-469f-a165-70867728950e"
SITE = ServiceSite(base_url="https://api.example.com/x", domain="content.example", port=443)
LOCAL = ServiceSite(base_url="http://127.0.0.1:8080", domain="localhost", port=8080)


def test_addresses_read_back() -> None:
    assert SITE.service_url(BOX, 80) == f"https://api.example.com/x/api/v2/sandboxes/svc/{BOX}/80/"
    assert SITE.browser_url(BOX, 80, "t") == f"https://80--{BOX}.content.example/_svc/auth?token=t"
    assert LOCAL.browser_url(BOX, 80, "t") == f"http://80--{BOX}.localhost:8080/_svc/auth?token=t"
    name = "a%20b/%C3%BC?token=t"
    assert SITE.download_url(BOX, "a b/ü", "t") == f"https://dl--{BOX}.content.example/{name}"
    assert LOCAL.download_url(BOX, "a b/ü", "t") == f"http://127.0.0.1:8080/api/v2/sandboxes/dl/{BOX}/{name}"
    for site in (SITE, LOCAL):
        for port in (1, 80, 65535):
            assert site.of_host(f"{port}--{BOX}.{site.domain}:{site.port}") == ServiceHost(BOX, port)
        assert site.of_host(f"DL--{BOX.upper()}.{site.domain.upper()}.") == FileHost(BOX)
    prefix = f"/x/api/v2/sandboxes/svc/{BOX}/80"
    for rest, target in (("", "/"), ("/", "/"), ("/a/../b%2F?c", "/a/../b%2F?c"), ("?q", "/?q")):
        found = SITE.of_target(f"/api/v2/sandboxes/svc/{BOX}/80{rest}")
        assert found == ServicePath(BOX, 80, prefix, target)
        assert SITE.of_target(f"/api/v2/sandboxes/dl/{BOX}{rest}") == FilePath(BOX, target)


@pytest.mark.parametrize("domain", ["localhost", "boxes.localhost"])
def test_links_name_what_every_resolver_knows(domain: str) -> None:
    site = attrs.evolve(SITE, domain=domain)
    assert site.download_url(BOX, "/a", "t") == f"https://api.example.com/x/api/v2/sandboxes/dl/{BOX}/a?token=t"
    assert site.of_host(f"dl--{BOX}.{domain}") == FileHost(BOX)


@given(st.lists(st.sampled_from(["", ".", "..", "a", "%2e", "...", "ü ?#\\"])).map("/".join))
def test_a_files_address_is_the_same_after_a_client_has_resolved_it(path: str) -> None:
    for site in (SITE, LOCAL):
        url = site.download_url(BOX, path, "t")
        assert urljoin(url, urlsplit(url).path + "?token=t") == url
        assert str(httpx.URL(url).join(urlsplit(url).path + "?token=t")) == url
    assert not {".", ".."} & set(file_target(path).split("/"))


@pytest.mark.parametrize("host", ["example", "x", f"080--{BOX}", f"0--{BOX}", f"70000--{BOX}", f"80--{BOX}.x", "dl--x"])
def test_names_below_the_domain_that_mean_nothing(host: str) -> None:
    assert SITE.of_host(f"{host}.content.example") == Unknown()


@pytest.mark.parametrize(
    "host", ["", "api.example.com", "content.example", "xcontent.example", "127.0.0.1", "[::1]:80"]
)
def test_other_names(host: str) -> None:
    assert SITE.of_host(host) is None


def test_the_servers_own_name_stays_its_own() -> None:
    site = ServiceSite(base_url="https://api.example.com", domain="example.com", port=443)
    assert site.of_host("api.example.com") is None
    assert site.of_host("www.example.com") == Unknown()


@given(st.text(max_size=80))
def test_any_host_and_target_are_read(text: str) -> None:
    assert isinstance(SITE.of_host(text), ServiceHost | FileHost | Unknown | None)
    assert isinstance(SITE.of_target(text), ServicePath | FilePath | None)


@pytest.mark.parametrize("domain", ["x y", "a/b", "a:0", "a:70000", "*.example.com", "-a.b", "", "a..b", "1.2.3.4"])
def test_service_domains_that_cannot_be(domain: str) -> None:
    with pytest.raises(ValidationError, match="--service-domain must be like"):
        ServerSettings(service_domain=domain).check()


def test_service_domains() -> None:
    settings = ServerSettings(service_domain="Content.Example:8443", public_url="https://api.example.com")
    settings.check()
    assert settings.site("https://api.example.com", 80).origin("x") == "https://x.content.example:8443"
    there = ServerSettings(service_domain="content.example").site("https://api.example.com", 9000)
    assert there.origin("x") == "https://x.content.example"
    assert ServerSettings().site("https://api.example.com", 9000).origin("x") == "https://x.localhost:9000"
    assert ServerSettings().site("http://localhost:8080", 9000).origin("x") == "http://x.localhost:8080"


def view(prefix: str = "") -> View:
    return View(scheme="https", host="80--x.content.example", prefix=prefix, port=80, peer="192.0.2.1")


def test_what_concerns_one_connection_stays_there() -> None:
    given = [
        (b"Connection", b"keep-alive, X-One"),
        (b"X-One", b"1"),
        (b"Keep-Alive", b"5"),
        (b"TE", b"trailers"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Content-Length", b"5"),
        (b"X-Two", b"2"),
    ]
    sent = dict(to_service(given, view(), None))
    assert sent[b"X-Two"] == b"2" and sent[b"Connection"] == b"close" and sent[b"Transfer-Encoding"] == b"chunked"
    assert not {b"X-One", b"Keep-Alive", b"TE", b"Content-Length"} & sent.keys()
    assert [name for name, _ in to_visitor(given, view())] == [b"X-Two"]


def test_upgrades_are_passed_on() -> None:
    sent = dict(to_service([(b"Connection", b"Upgrade"), (b"Upgrade", b"x")], view(), b"x"))
    assert (sent[b"Connection"], sent[b"Upgrade"]) == (b"Upgrade", b"x")


@pytest.mark.parametrize(
    ("location", "by_origin", "by_path"),
    [
        ("/a?b", "/a?b", "/p/a?b"),
        ("a", "a", "a"),
        ("", "", ""),
        ("http://localhost:80/a", "/a", "/p/a"),
        ("http://localhost/a", "/a", "/p/a"),
        ("http://localhost:81/a", "http://localhost:81/a", "http://localhost:81/a"),
        ("http://80--x.content.example/a", "/a", "http://80--x.content.example/a"),
        ("//evil.example/a", "//evil.example/a", "//evil.example/a"),
        ("http://[", "http://[", "http://["),
    ],
)
def test_redirects(location: str, by_origin: str, by_path: str) -> None:
    given = [(b"Location", location.encode())]
    assert to_visitor(given, view()) == [(b"Location", by_origin.encode())]
    assert to_visitor(given, view("/p")) == [(b"Location", by_path.encode())]


@pytest.mark.parametrize(
    ("cookie", "by_origin", "by_path"),
    [
        ("a=1", "a=1", "a=1; Path=/p/"),
        ("a=1; path=/x; Secure", "a=1; path=/x; Secure", "a=1; Path=/p/x; Secure"),
        ("a=1; Domain=content.example; Path=", "a=1; Path=", "a=1; Path=/p/"),
        ("sandboxrt-service=x", None, None),
        ("__Host-sandboxrt-service=x; Path=/", None, None),
    ],
)
def test_cookies_of_the_service(cookie: str, by_origin: str | None, by_path: str | None) -> None:
    given = [(b"Set-Cookie", cookie.encode())]
    for prefix, expected in (("", by_origin), ("/p", by_path)):
        assert [value.decode() for _, value in to_visitor(given, view(prefix))] == ([expected] if expected else [])


def test_our_cookie_is_found_and_taken_out() -> None:
    given = [(b"cookie", b"a=1; sandboxrt-service=x; b=2; sandboxrt-service=y"), (b"Cookie", b"sandboxrt-service=z")]
    assert cookies(given, "sandboxrt-service") == ["x", "y", "z"]
    sent = [value for name, value in to_service(given, view(), None) if name.lower() == b"cookie"]
    assert sent == [b"a=1; b=2"]


@given(st.lists(st.tuples(st.binary(min_size=1), st.binary())))
def test_any_headers_pass(headers: list[tuple[bytes, bytes]]) -> None:
    to_service(headers, view("/p"), None)
    to_visitor(headers, view("/p"))
