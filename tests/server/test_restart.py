"""A real server with real containers, stopped and killed, and started again on the same state folder."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import httpx
import pytest
import trio

from sandboxrt import AsyncSandboxClient, SandboxConnectionError, SandboxOperationError
from tests.leaks import assert_nothing_left
from tests.server.app_kit import API
from tests.serving import Serving, serving

pytestmark = pytest.mark.container


def client_of(server: Serving) -> httpx.Client:
    return httpx.Client(base_url=server.url + API, headers={"X-Api-Key": server.key}, timeout=30)


def run(client: httpx.Client, box: dict[str, object], command: str) -> dict[str, object]:
    answer = client.post(f"{box['dataplane_url']}/execute", json={"command": command})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("hard", [False, True], ids=["stopped", "killed"])
def test_the_next_start_has_what_there_was(tmp_path: Path, hard: bool) -> None:
    with assert_nothing_left():
        with serving(tmp_path) as server, client_of(server) as client:
            box = client.post("/boxes", json={"name": "kept", "labels": {"a": "b"}}).json()
            assert box["status"] == "ready", box
            assert (
                run(client, box, "echo precious > /home/user/file; sync; sleep 1000 >/dev/null 2>&1 &")["exit_code"]
                == 0
            )
            if hard:
                server.kill()
            else:
                assert server.stop() == 0
        with serving(tmp_path, key=server.key) as again, client_of(again) as client:
            (found,) = client.get("/boxes").json()["sandboxes"]
            assert (found["id"], found["name"], found["labels"]) == (box["id"], "kept", {"a": "b"})
            assert found["status"] == "stopped"
            # Nothing of it runs, and its files are as they were.
            assert client.post("/boxes/kept/start", json={}).status_code < 300
            deadline = time.monotonic() + 30
            while (found := client.get("/boxes/kept").json())["status"] != "ready":
                assert time.monotonic() < deadline, found
                time.sleep(0.1)
            assert run(client, found, "cat /home/user/file")["stdout"] == "precious\n"
            fresh = client.post("/boxes", json={"name": "fresh"}).json()
            assert run(client, fresh, "echo works")["stdout"] == "works\n"
            for name in ("kept", "fresh"):
                assert client.delete(f"/boxes/{name}").status_code == 204
            assert client.get("/boxes").json()["sandboxes"] == []
            assert again.stop() == 0
        assert not list((tmp_path / "sandboxes").iterdir())


def test_a_stop_is_told_and_bounded(tmp_path: Path) -> None:
    with assert_nothing_left(), serving(tmp_path) as server:

        async def talk() -> tuple[int, float]:
            import trio_websocket

            async with httpx.AsyncClient(base_url=server.url + API, headers={"X-Api-Key": server.key}) as client:
                box = (await client.post("/boxes", json={"name": "box"}, timeout=30)).json()
            url = box["dataplane_url"].replace("http://", "ws://") + "/execute/ws"
            key = [(b"X-Api-Key", server.key.encode())]
            with trio.fail_after(60):
                async with trio_websocket.open_websocket_url(url, extra_headers=key) as socket:
                    await socket.send_message('{"type":"execute","command":"while :; do echo x; sleep 0.1; done"}')
                    for _ in range(3):
                        await socket.get_message()
                    server.process.terminate()
                    begun = time.monotonic()
                    try:
                        while True:
                            await socket.get_message()
                    except trio_websocket.ConnectionClosed as closed:
                        assert closed.reason is not None
                        code = closed.reason.code
            return code, begun

        code, begun = trio.run(talk)
        # With 1001 the oldest clients would take a stopped server for the end of the command.
        assert code == 1012
        assert server.process.wait(30) == 0
        assert time.monotonic() - begun < 30


def test_a_stream_of_our_client_whose_server_dies(tmp_path: Path) -> None:
    with assert_nothing_left():
        with serving(tmp_path) as server:

            async def stream() -> None:
                async with AsyncSandboxClient(
                    api_endpoint=server.url + API, api_key=server.key, max_retries=0
                ) as client:
                    box = await client.create_sandbox(name="box")
                    handle = await box.run("while :; do echo x; sleep 0.05; done", timeout=0, wait=False)
                    with trio.fail_after(60), pytest.raises((SandboxConnectionError, SandboxOperationError)):
                        seen = 0
                        async for _ in handle:
                            seen += 1
                            if seen == 3:
                                server.kill()

            trio.run(stream)
        with serving(tmp_path, key=server.key) as again, client_of(again) as client:
            assert client.get("/boxes/box").json()["status"] == "stopped"
            assert client.delete("/boxes/box").status_code == 204
            assert again.stop() == 0


def test_a_hangup_reloads_and_a_terminal_that_ends_ends_nothing(tmp_path: Path) -> None:
    """As ``sandboxrt serve &`` in a terminal that is closed: it gets SIGHUP, and has nobody to speak to any more."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "sandboxrt", "serve", "--port", "0", "--insecure-no-auth"]
    with assert_nothing_left():
        process = subprocess.Popen(
            [*command, "--state-dir", str(tmp_path / "state")],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        try:
            told = b""
            while not (found := re.search(rb"sandboxrt serves (\S+)", told)):
                told += os.read(master, 4096)
            url = found[1].decode()
            process.send_signal(signal.SIGHUP)
            while b"reloaded" not in told:
                told += os.read(master, 4096)
            assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
            os.close(master)
            time.sleep(0.5)
            assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
            process.wait()
