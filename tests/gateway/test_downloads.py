"""Links to files, with real files of a real sandbox."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.gateway.conftest import TOKEN, Site

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]


Visit = Callable[..., httpx.Response]


def fetch(url: str, method: str = "GET", **headers: str) -> httpx.Response:
    """What any program gets, with what its system knows of names."""
    return httpx.request(method, url, headers=headers)


def visit_origin(url: str, method: str = "GET", **headers: str) -> httpx.Response:
    """What a browser gets from the same file's own origin, whose name it alone knows."""
    parts = urlsplit(url)
    found = re.fullmatch(r"/api/v2/sandboxes/dl/([^/]+)(/.*)", parts.path)
    assert found, url
    host = f"dl--{found[1]}.localhost:{parts.port}"
    return fetch(f"http://127.0.0.1:{parts.port}{found[2]}?{parts.query}", method, **{"Host": host, **headers})


@pytest.fixture(params=[fetch, visit_origin], ids=["path", "origin"])
def visit(request: pytest.FixtureRequest) -> Visit:
    return request.param  # type: ignore[no-any-return]


def test_a_file_for_whoever_has_the_link(site: Site, visit: Visit) -> None:
    content = bytes(range(256)) * 5000
    site.sandbox.write("/srv/ein Ä file.bin", content)
    link = site.sandbox.generate_download_url("/srv/ein Ä file.bin", expires_in_seconds=60)
    assert link.expires_at is not None
    assert urlsplit(link.download_url).netloc == urlsplit(site.server.url).netloc
    answer = visit(link.download_url)
    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"ein _ file.bin\"; filename*=UTF-8''ein%20%C3%84%20file.bin"
    )
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers
    head = visit(link.download_url, "HEAD")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))
    part = visit(link.download_url, Range="bytes=256-511")
    assert (part.status_code, part.content) == (206, bytes(range(256)))
    assert part.headers["content-range"] == f"bytes 256-511/{len(content)}"
    assert visit(link.download_url, Range=f"bytes={len(content)}-").status_code == 416
    assert visit(link.download_url, **{"If-None-Match": answer.headers["etag"]}).status_code == 304
    site.sandbox.write("/srv/ein Ä file.bin", b"new")
    assert visit(link.download_url).content == b"new"
    assert visit(link.download_url, "POST").status_code == 405
    assert link.token not in repr(link)


def test_how_it_is_shown(site: Site, visit: Visit) -> None:
    site.sandbox.write("/srv/page.html", "<script>alert(1)</script>")
    plain = visit(site.sandbox.generate_download_url("/srv/page.html").download_url)
    assert plain.headers["content-type"] == "text/html"
    assert plain.headers["content-disposition"].startswith("attachment")
    link = site.client.generate_download_url(
        "first", "/srv/page.html", content_type="text/plain; charset=utf-8", content_disposition="inline"
    )
    assert link.expires_at is None
    shown = visit(link.download_url)
    assert shown.headers["content-type"] == "text/plain; charset=utf-8"
    assert shown.headers["content-disposition"].startswith("inline")
    assert shown.headers["content-security-policy"] == "sandbox"
    assert shown.headers["x-content-type-options"] == "nosniff"


def test_links_that_were_altered(site: Site, visit: Visit) -> None:
    for sandbox in (site.sandbox, site.other):
        sandbox.write("/srv/a", sandbox.name)
        sandbox.write("/srv/b", "not this one")
    link = site.sandbox.generate_download_url("/srv/a").download_url
    token = link.rpartition("token=")[2]
    service = site.link()["token"]
    assert visit(link).text == "first"
    for wrong in (
        link.replace("/srv/a", "/srv/b"),
        link.replace("/srv/a", "/srv//a"),
        link.replace("/srv/a", "/srv/%61"),
        link.replace("/srv/a", "/"),
        link.replace(site.sandbox.id, site.other.id),
        link.replace(token, token[:-5] + "AAAAA"),
        link.replace(token, service),
        link.replace(token, ""),
        link.partition("?")[0],
    ):
        assert visit(wrong).status_code == 403, wrong
    # Nor is it a token for a service, nor does the API know of it.
    assert httpx.get(site.link()["service_url"], headers={TOKEN: token}).status_code == 401
    assert httpx.get(f"{site.server.url}/srv/a?token={token}").status_code == 401
    api = site.server.url + "/v2/sandboxes/boxes"
    for headers in ({"X-Api-Key": token}, {"Authorization": f"Bearer {token}"}, {TOKEN: token}):
        assert httpx.get(api, params={"token": token}, headers=headers).status_code == 401
    # On the name of a service or another sandbox's files there is no way round to it.
    path, query = urlsplit(link).path, urlsplit(link).query
    for host in (site.host(), f"dl--{site.other.id}.localhost", "x.localhost"):
        answer = fetch(f"{site.server.url}{path}?{query}", Host=host)
        assert answer.status_code in (401, 403, 404), host


def test_links_end(site: Site, visit: Visit) -> None:
    site.sandbox.write("/srv/a", "a")
    link = site.sandbox.generate_download_url("/srv/a", expires_in_seconds=1).download_url
    assert visit(link).status_code == 200
    time.sleep(1.1)
    answer = visit(link)
    assert (answer.status_code, answer.text) == (403, "The link has expired\n")


def test_files_that_are_not_there(site: Site, visit: Visit) -> None:
    for path, status in (("/srv/none", 404), ("/srv", 404), ("none-in-home", 404)):
        assert visit(site.sandbox.generate_download_url(path).download_url).status_code == status
    site.sandbox.write("/home/user/here.txt", "relative")
    assert visit(site.sandbox.generate_download_url("here.txt").download_url).text == "relative"


@pytest.mark.parametrize("path", ["./here.txt", "/home/user/../user/here.txt", "/home/./user//here.txt", "here.txt"])
def test_paths_that_clients_would_resolve(site: Site, visit: Visit, path: str) -> None:
    site.sandbox.write("/home/user/here.txt", "found")
    url = site.sandbox.generate_download_url(path).download_url
    assert visit(url).text == "found"
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.read() == b"found"


def test_a_key_and_cookies_add_nothing(site: Site, visit: Visit) -> None:
    site.sandbox.write("/srv/a", "a")
    link = site.sandbox.generate_download_url("/srv/a").download_url
    own = {"X-Api-Key": site.server.key, "Cookie": f"sandboxrt-service={site.link()['token']}"}
    assert visit(link.partition("?")[0] + "?token=", **own).status_code == 403
    answer = visit(link, **own)
    assert (answer.status_code, answer.text) == (200, "a")
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body.path"),
        ({"path": ""}, "body.path"),
        ({"path": 1}, "body.path"),
        ({"path": "a\0b"}, "body.path"),
        ({"path": "/a", "expires_in_seconds": 0}, "body.expires_in_seconds"),
        ({"path": "/a", "expires_in_seconds": True}, "body.expires_in_seconds"),
        ({"path": "/a", "content_type": "a\r\nb"}, "body.content_type"),
        ({"path": "/a", "content_disposition": "none"}, "body.content_disposition"),
        ({"path": "/a", "csp_sandbox": False}, "body.csp_sandbox"),
        ({"path": "/a", "csp_sandbox_flags": ["allow-scripts"]}, "body.csp_sandbox_flags"),
        ({"path": "/a", "csp_source_bundles": ["x"]}, "body.csp_source_bundles"),
    ],
)
def test_bad_requests_for_links(site: Site, body: dict[str, Any], field: str) -> None:
    answer = site.api.post("/boxes/first/download-url", json=body)
    assert answer.status_code == 422, answer.text
    assert [".".join(map(str, entry["loc"])) for entry in answer.json()["detail"]] == [field]
