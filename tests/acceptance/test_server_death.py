"""A server that is killed in the middle of a stream: its clients are told, and nothing is left or half there."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from sandboxrt.errors import SandboxConnectionError, SandboxNotReadyError, SandboxOperationError
from tests.conformance.test_oci import leftovers
from tests.interop.clients import Environments
from tests.serving import Serving, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

TALK = "for i in $(seq 100000); do echo line $i; sleep 0.01; done"
OFFICIAL = f"""
import json, sys, warnings
warnings.simplefilter("ignore")
from langsmith.sandbox import SandboxClient, SandboxClientError
client = SandboxClient(api_endpoint=sys.argv[1], api_key=sys.argv[2])
handle = client.create_sandbox(name="theirs").run({TALK!r}, timeout=0, wait=False)
seen = 0
try:
    for chunk in handle:
        if not seen:
            print("streaming", flush=True)
        seen += len(chunk.data)
    print(json.dumps({{"error": None}}), flush=True)
except SandboxClientError as error:
    print(json.dumps({{"error": type(error).__name__, "seen": seen}}), flush=True)
"""


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    told = os.environ.get("SANDBOXRT_TEST_CACHE", "").strip()
    return Environments(Path(told) if told else tmp_path_factory.mktemp("clients"))


def test_clients_are_told_and_the_next_start_finds_everything(tmp_path: Path, environments: Environments) -> None:
    python = environments.python("0.15.0")
    with serving(tmp_path) as server:
        port, key = server.port, server.key
        official = subprocess.Popen(
            [str(python), "-I", "-c", OFFICIAL, f"{server.url}/api/v2/sandboxes", key],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert official.stdout is not None
        try:
            assert official.stdout.readline() == "streaming\n"
            restarted: list[Serving] = []
            back = threading.Event()
            done = threading.Event()

            def kill_and_restart() -> None:
                server.kill()
                with serving(tmp_path, port=port, key=key) as second:
                    restarted.append(second)
                    back.set()
                    done.wait(120)

            thread = threading.Thread(target=kill_and_restart)
            try:
                trio.run(_stream, f"{server.url}/v2/sandboxes", key, thread)
                assert back.wait(60)
                trio.run(_look_around, f"{server.url}/v2/sandboxes", key)
                told = json.loads(official.stdout.readline())
                assert told["error"] in ("SandboxConnectionError", "SandboxOperationError", "SandboxNotReadyError"), (
                    told
                )
                assert told["seen"] > 0
            finally:
                done.set()
                thread.join(60)
        finally:
            official.kill()
            official.wait()
    assert list(leftovers(tmp_path)) == []


async def _stream(endpoint: str, key: str, killer: threading.Thread) -> None:
    async with AsyncSandboxClient(api_endpoint=endpoint, api_key=key) as client:
        sandbox = await client.create_sandbox(name="ours")
        await sandbox.write("/root/kept", "kept")
        handle = await sandbox.run(TALK, timeout=0, wait=False)
        seen, began = 0, time.monotonic()
        with pytest.raises((SandboxConnectionError, SandboxOperationError, SandboxNotReadyError)):
            async for chunk in handle:
                if not seen:
                    killer.start()
                seen += len(chunk.data)
        assert seen > 0
        # Five attempts with growing delays at the most, not a hang.
        assert time.monotonic() - began < 60
        with pytest.raises((SandboxConnectionError, SandboxOperationError, SandboxNotReadyError)):
            await handle.result


async def _look_around(endpoint: str, key: str) -> None:
    async with AsyncSandboxClient(api_endpoint=endpoint, api_key=key) as client:
        found = {sandbox.name: sandbox for sandbox in await client.list_sandboxes()}
        assert set(found) == {"ours", "theirs"}
        # Clients that came back for their commands have found none, and have woken nobody.
        assert {sandbox.status for sandbox in found.values()} == {"stopped"}
        await found["ours"].start()
        assert await found["ours"].read("/root/kept") == b"kept"
        async with client.sandbox() as fresh:
            assert (await fresh.run("echo new")).stdout == "new\n"
        for sandbox in found.values():
            await sandbox.delete()
        assert await client.list_sandboxes() == []
