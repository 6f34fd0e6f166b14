"""A stopped sandbox that many use at once: all wait for the same wake, whatever they want and whoever they are."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import trio
import trio_websocket

from sandboxrt import AsyncSandboxClient, SandboxNotReadyError
from tests.server.app_kit import API, Site, site


async def _websocket(here: Site, url: str, first: dict[str, object]) -> list[str]:
    """The types of a command socket's messages, to its end."""
    key = [(b"X-Api-Key", here.secret.encode())]
    address = url.replace("http", "ws") + "/execute/ws"
    types = []
    async with trio_websocket.open_websocket_url(address, extra_headers=key) as socket:
        await socket.send_message(json.dumps(first))
        while not types or types[-1] not in ("exit", "error"):
            types.append(json.loads(await socket.get_message())["type"])
    return types


async def test_all_wait_for_the_same_wake(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        url = (await here.box())["dataplane_url"]
        answer = await here.acme.post(f"{url}/upload", params={"path": "/root/file"}, files={"file": b"kept\n"})
        assert answer.status_code < 300, answer.text
        client = AsyncSandboxClient(api_endpoint=f"{here.server.url}{API}", api_key=here.secret)
        async with client:
            old = await client.get_sandbox("box")
            seen: list[object] = []
            for _ in range(2):
                assert (await here.acme.post("/boxes/box/stop", json={})).status_code == 200
                here.engine.faults.create_delay_s = 0.5
                made = len(here.engine.containers)
                seen.clear()

                async def http(method: str, path: str, **more: object) -> None:
                    answer = await here.acme.request(method, url + path, **more)  # type: ignore[arg-type]
                    seen.append((path, answer.status_code))

                async def ours(fresh: bool) -> None:
                    box = await client.get_sandbox("box") if fresh else old
                    seen.append(("ours", (await box.run("cat /root/file")).stdout))

                async def socket() -> None:
                    frames = await _websocket(here, url, {"type": "execute", "command": "cat /root/file"})
                    seen.append(("socket", frames[-1]))

                async def back() -> None:
                    frames = await _websocket(here, url, {"type": "reconnect", "command_id": "c"})
                    seen.append(("back", frames[-1]))

                async def address() -> None:
                    seen.append(("url", (await here.acme.get("/boxes/box")).json()["dataplane_url"]))

                with trio.fail_after(30):
                    async with trio.open_nursery() as nursery:
                        for _ in range(3):
                            nursery.start_soon(lambda: http("POST", "/execute", json={"command": "true"}))
                            nursery.start_soon(lambda: http("GET", "/download", params={"path": "/root/file"}))
                            nursery.start_soon(lambda: http("POST", "/glob", json={"pattern": "*", "path": "/root"}))
                            nursery.start_soon(socket)
                            nursery.start_soon(ours, True)
                            nursery.start_soon(ours, False)
                            nursery.start_soon(back)
                            nursery.start_soon(address)
                            await trio.sleep(0.1)
                assert sorted(seen, key=str) == sorted(
                    [
                        ("/execute", 200),
                        ("/download", 200),
                        ("/glob", 200),
                        ("socket", "exit"),
                        ("ours", "kept\n"),
                        ("ours", "kept\n"),
                        ("back", "error"),
                        ("url", url),
                    ]
                    * 3,
                    key=str,
                )
                assert len(here.engine.containers) == made + 1


async def test_what_its_user_has_stopped_is_refused_by_that_object_alone(tmp_path: Path) -> None:
    async with site(tmp_path) as here:
        await here.box()
        async with AsyncSandboxClient(api_endpoint=f"{here.server.url}{API}", api_key=here.secret) as client:
            mine, another = await client.get_sandbox("box"), await client.get_sandbox("box")
            await mine.stop()
            with pytest.raises(SandboxNotReadyError, match="start"):
                await mine.run("true")
            found = await client.get_sandbox("box")
            assert found.status == "stopped"
            assert (await found.run("echo awake")).stdout == "awake\n"
            assert (await another.run("echo awake")).stdout == "awake\n"
            await mine.start()
            assert (await mine.run("echo awake")).stdout == "awake\n"


async def test_a_wake_that_takes_too_long_may_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxrt.server.dataplane._WAKE_S", 0.2)
    async with site(tmp_path) as here:
        url = (await here.box())["dataplane_url"]
        assert (await here.acme.post("/boxes/box/stop", json={})).status_code == 200
        here.engine.faults.create_delay_s = 1.5

        async def run() -> httpx.Response:
            return await here.acme.post(f"{url}/execute", json={"command": "echo awake"})

        refused = await run()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        with trio.fail_after(20):
            while (answer := await run()).status_code == 503:
                await trio.sleep(0.1)
        assert answer.json()["stdout"] == "awake\n"
