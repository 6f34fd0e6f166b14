"""Searches over HTTP."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.host.conftest import OpenFake

from .dataplane_kit import Served, serve

FILES = {
    "/app/main.py": "import os\nprint('needle')\n",
    "/app/lib/a.py": "needle one\nnothing\nneedle two\r\n",
    "/app/lib/b.txt": "a needle here",
    "/app/lib/deep/c.py": "# nothing\n",
    "/app/.hidden": "needle",
    "/app/binary": "\0needle",
    "/app/it's $(odd) name": "needle\n",
}


async def fill(served: Served) -> None:
    for path, text in FILES.items():
        answer = await served.http.post("/box/box/upload", params={"path": path}, content=text.encode())
        assert answer.status_code == 200


async def ask(served: Served, kind: str, **body: Any) -> httpx.Response:
    return await served.http.post(f"/box/box/{kind}", content=json.dumps(body))


async def names(served: Served, pattern: str, path: str = "/app") -> list[str]:
    answer = await ask(served, "glob", pattern=pattern, path=path)
    assert answer.status_code == 200, answer.text
    assert answer.json()["truncated"] is False
    return [match["path"] for match in answer.json()["matches"]]


async def test_names_are_found_by_pattern(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await fill(served)
        assert await names(served, "*.py") == ["/app/main.py"]
        assert await names(served, "**/*.py") == ["/app/lib/a.py", "/app/lib/deep/c.py", "/app/main.py"]
        assert await names(served, "lib/*") == ["/app/lib/a.py", "/app/lib/b.txt", "/app/lib/deep"]
        assert await names(served, "lib/a.py") == ["/app/lib/a.py"]
        assert await names(served, "nowhere/*") == []
        assert await names(served, "*") == sorted(
            ["/app/.hidden", "/app/binary", "/app/it's $(odd) name", "/app/lib", "/app/main.py"]
        )
        answer = await ask(served, "glob", pattern="lib", path="/app")
        [match] = answer.json()["matches"]
        assert match["is_dir"] is True
        answer = await ask(served, "glob", pattern="main.py", path="/app")
        [match] = answer.json()["matches"]
        assert set(match) == {"path", "is_dir", "size_bytes", "modified_at"}
        assert (match["is_dir"], match["size_bytes"]) == (False, len(FILES["/app/main.py"]))
        assert match["modified_at"].endswith("Z")


async def test_text_is_found_literally(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await fill(served)
        answer = (await ask(served, "grep", pattern="needle", path="/app")).json()
        assert answer["truncated"] is False
        found = [(match["path"], match["line"], match["text"]) for match in answer["matches"]]
        assert found == sorted(
            [
                ("/app/.hidden", 1, "needle"),
                ("/app/it's $(odd) name", 1, "needle"),
                ("/app/lib/a.py", 1, "needle one"),
                ("/app/lib/a.py", 3, "needle two"),
                ("/app/lib/b.txt", 1, "a needle here"),
                ("/app/main.py", 2, "print('needle')"),
            ]
        )
        for pattern in ("n.*e", "'; rm -rf /app; '", "-v"):
            assert (await ask(served, "grep", pattern=pattern, path="/app")).json()["matches"] == []
        for glob, count in (("*.py", 3), ("lib/*", 3), ("**/*.txt", 1), ("*.md", 0), ("", 6)):
            answer = (await ask(served, "grep", pattern="needle", path="/app", glob=glob)).json()
            assert len(answer["matches"]) == count
        answer = (await ask(served, "grep", pattern="needle", path="/app/lib/a.py")).json()
        assert [match["path"] for match in answer["matches"]] == ["/app/lib/a.py"] * 2


async def test_results_are_bounded(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await fill(served)
        for kind, pattern in (("glob", "**"), ("grep", "needle")):
            answer = (await ask(served, kind, pattern=pattern, path="/app", limit=2)).json()
            assert (len(answer["matches"]), answer["truncated"]) == (2, True)
        answer = (await ask(served, "glob", pattern="*.py", path="/app", limit=1)).json()
        assert (len(answer["matches"]), answer["truncated"]) == (1, False)
        await served.http.post(
            "/box/box/upload", params={"path": "/app/long"}, content=b"\xff" * 9_000_000 + b"NEEDLE\nnext NEEDLE\n"
        )
        answer = (await ask(served, "grep", pattern="NEEDLE", path="/app")).json()
        assert [(match["line"], len(match["text"])) for match in answer["matches"]] == [(1, 1000), (2, 11)]


@pytest.mark.parametrize(
    ("kind", "body", "status", "error"),
    [
        ("glob", {"pattern": "*"}, 400, "InvalidRequest"),
        ("glob", {"pattern": 1, "path": "/"}, 400, "InvalidRequest"),
        ("glob", {"pattern": "\ud800", "path": "/"}, 400, "InvalidRequest"),
        ("glob", {"pattern": "*", "path": "/", "limit": True}, 400, "InvalidRequest"),
        ("glob", {"pattern": "*", "path": "/", "limit": 0}, 422, "ValidationError"),
        ("glob", {"pattern": "*", "path": "/", "limit": 10**30}, 422, "ValidationError"),
        ("glob", {"pattern": "*", "path": "etc"}, 422, "ValidationError"),
        ("glob", {"pattern": "*", "path": "/\0"}, 422, "ValidationError"),
        ("glob", {"pattern": "../*", "path": "/etc"}, 422, "ValidationError"),
        ("glob", {"pattern": "", "path": "/etc"}, 422, "ValidationError"),
        ("glob", {"pattern": "*", "path": "/nowhere"}, 404, "FileNotFound"),
        ("glob", {"pattern": "*", "path": "/etc/passwd"}, 400, "ReadError"),
        ("grep", {"pattern": "", "path": "/etc"}, 422, "ValidationError"),
        ("grep", {"pattern": "a\nb", "path": "/etc"}, 422, "ValidationError"),
        ("grep", {"pattern": "a", "path": "/etc", "glob": "["}, 422, "ValidationError"),
        ("grep", {"pattern": "a", "path": "/nowhere"}, 404, "FileNotFound"),
    ],
)
async def test_searches_that_cannot_be(
    fake_host: OpenFake, kind: str, body: dict[str, Any], status: int, error: str
) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        answer = await ask(served, kind, **body)
        assert (answer.status_code, answer.json()["detail"]["error"]) == (status, error)
