"""What one key, one sandbox and one connection may take, through the whole server."""

from __future__ import annotations

import json
import time
from pathlib import Path

import trio
import trio_websocket

from sandboxrt.server.app import AppSettings
from sandboxrt.server.dataplane import DataPlaneSettings
from sandboxrt.server.limits import KeyLimits
from tests.server.app_kit import Site, detail, site


def settings(**changes: object) -> AppSettings:
    return AppSettings(public_url="", default_snapshot="host", **changes)  # type: ignore[arg-type]


async def test_requests_that_come_too_fast(tmp_path: Path) -> None:
    async with site(tmp_path, app=settings(key_limits=KeyLimits(requests_per_s=1, burst=3))) as here:
        answers = [await here.acme.get("/boxes") for _ in range(5)]
        assert [answer.status_code for answer in answers[:3]] == [200] * 3
        assert detail(answers[4], 429)["error"] == "TooManyRequests"
        assert int(answers[4].headers["retry-after"]) >= 1
        # Another key is another matter, and the first may come again.
        assert (await here.other.get("/boxes")).status_code == 200
        await trio.sleep(1.2)
        assert (await here.acme.get("/boxes")).status_code == 200


async def test_bodies_that_are_too_long(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        long = json.dumps({"name": "box", "labels": {"a": "x" * 5 * 1024**2}})
        assert detail(await here.acme.post("/boxes", content=long), 413)["error"] == "PayloadTooLarge"
        url = (await here.box())["dataplane_url"]
        detail(await here.acme.post(f"{url}/execute", content=long), 413)
        assert (await here.acme.get("/boxes")).status_code == 200


async def test_commands_at_once(tmp_path: Path) -> None:
    async with site(tmp_path, app=settings(dataplane=DataPlaneSettings(max_commands=2))) as here:
        url = (await here.box())["dataplane_url"]
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                await nursery.start(_hold, here, url)
            assert await _probe(here, url) == 429
            detail(await here.acme.post(f"{url}/execute", json={"command": "true"}), 429)
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            while await _probe(here, url) != 101:
                await trio.sleep(0.05)


async def _hold(here: Site, url: str, task_status: trio.TaskStatus[None]) -> None:
    key = [(b"X-Api-Key", here.secret.encode())]
    async with trio_websocket.open_websocket_url(url.replace("http", "ws") + "/execute/ws", extra_headers=key) as one:
        await one.send_message('{"type":"execute","command":"sleep 1000"}')
        await one.get_message()
        task_status.started()
        await trio.sleep_forever()


async def _probe(here: Site, url: str) -> int:
    """The status that one more WebSocket gets; 101 where it is opened."""
    key = [(b"X-Api-Key", here.secret.encode())]
    try:
        address = url.replace("http", "ws") + "/execute/ws"
        async with trio_websocket.open_websocket_url(address, extra_headers=key):
            return 101
    except trio_websocket.ConnectionRejected as refusal:
        return refusal.status_code


async def test_clients_that_are_slow_hold_nothing_for_long(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        head = (
            f"POST /v2/sandboxes/boxes HTTP/1.1\r\nHost: x\r\nX-Api-Key: {here.secret}\r\n"
            "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        ).encode()
        streams = [await trio.open_tcp_stream("127.0.0.1", here.server.port) for _ in range(20)]
        for stream in streams:
            await stream.send_all(head)
        begun = time.monotonic()
        # Others are served meanwhile.
        assert (await here.acme.get("/boxes")).status_code == 200
        for stream in streams:
            with trio.fail_after(15):
                assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 4")
            await stream.aclose()
        assert time.monotonic() - begun < 15
