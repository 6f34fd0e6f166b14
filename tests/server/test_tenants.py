"""Tenants neither see nor touch one another's things; what is another's looks like what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio_websocket

from tests.server.app_kit import detail, site


async def test_a_sandbox_of_another(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        box = await here.box("secret")
        assert (await here.other.get("/boxes")).json()["sandboxes"] == []
        for key in ("secret", box["id"]):
            for method, path in (
                ("GET", ""), ("PATCH", ""), ("DELETE", ""), ("GET", "/status"), ("POST", "/lease"),
                ("GET", "/isolation"), ("POST", "/start"), ("POST", "/stop"), ("POST", "/snapshot"),
                ("POST", "/service-url"), ("POST", "/download-url"),
            ):  # fmt: skip
                body = {} if method in ("POST", "PATCH") else None
                theirs = await here.other.request(method, f"/boxes/{key}{path}", json=body)
                nobodys = await here.other.request(method, f"/boxes/none{path}", json=body)
                assert detail(theirs, 404)["error"] == "NotFound"
                assert theirs.text.replace(key, "none") == nobodys.text
        mine = await here.box("secret", here.other)
        assert mine["id"] != box["id"]
        assert (await here.acme.get("/boxes/secret")).json()["id"] == box["id"]


async def test_the_data_plane_of_another(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        box = await here.box()
        url = box["dataplane_url"]
        for method, path, body in (
            ("POST", "/execute", {"command": "echo x"}),
            ("POST", "/execute/stream/start", {"command": "echo x", "command_id": "c"}),
            ("POST", "/execute/stream/resume", {"command_id": "c", "stdout_offset": 0, "stderr_offset": 0}),
            ("POST", "/upload?path=/x", None),
            ("GET", "/download?path=/etc/passwd", None),
            ("HEAD", "/download?path=/etc/passwd", None),
            ("POST", "/glob", {"pattern": "*", "path": "/"}),
            ("POST", "/grep", {"pattern": "x", "path": "/"}),
        ):
            for address in (url, url.replace(box["id"], "box")):
                answer = await here.other.request(method, address + path, json=body)
                assert answer.status_code == 404, answer.text
                if method != "HEAD":
                    assert detail(answer, 404)["error"] == "NotFound"


async def test_the_socket_of_another(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        box = await here.box()
        address = box["dataplane_url"].replace("http://", "ws://") + "/execute/ws"
        for headers, status in (
            ({"X-Api-Key": here.other.headers["x-api-key"]}, 404),
            ({"X-Api-Key": "wrong"}, 401),
            ({}, 401),
        ):
            assert await _refusal(address, headers) == status


async def _refusal(address: str, headers: dict[str, str]) -> int:
    """The status that a WebSocket is refused with."""
    given = [(name.encode(), value.encode()) for name, value in headers.items()]
    with trio.fail_after(10):
        try:
            async with trio_websocket.open_websocket_url(address, extra_headers=given):
                pytest.fail("the socket was let in")
        except* trio_websocket.ConnectionRejected as group:
            error = group
            while isinstance(error, BaseExceptionGroup):
                (error,) = error.exceptions
            status = error.status_code
    return status


async def test_a_snapshot_of_another(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        made = await here.snapshot("app")
        assert (await here.other.get("/snapshots")).json()["snapshots"] == []
        for reference in (made["id"], "app", "app:3.20"):
            detail(await here.other.get(f"/snapshots/{reference}"), 404)
            detail(await here.other.delete(f"/snapshots/{reference}"), 404)
        detail(await here.other.get("/snapshots-by-name/app"), 404)
        for reference in ({"snapshot_id": made["id"]}, {"snapshot_name": "app"}, {"snapshot": "app:3.20"}):
            detail(await here.other.post("/boxes", json=reference), 404)
        assert (await here.acme.get(f"/snapshots/{made['id']}")).status_code == 200
