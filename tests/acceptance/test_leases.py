"""An owner that dies without a word: its sandboxes on a server go with their leases, and nobody else's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from tests.conformance.test_oci import leftovers
from tests.serving import serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

SANDBOXES = 20
LEASE_S = 5
OWNER = f"""
import trio, sandboxrt, sandboxrt.client.client
sandboxrt.client.client.LEASE_S = {LEASE_S}

async def hold(client, task_status):
    async with client.sandbox() as sandbox:
        await sandbox.run("echo mine", wait=False)
        task_status.started()
        await trio.sleep_forever()

async def main():
    async with sandboxrt.AsyncSandboxClient() as client, trio.open_nursery() as nursery:
        for _ in range({SANDBOXES}):
            await nursery.start(hold, client)
        print("ready", flush=True)

trio.run(main)
"""


def test_a_killed_owners_sandboxes_go_within_the_lease(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        environment = {**os.environ, "LANGSMITH_ENDPOINT": server.url, "LANGSMITH_API_KEY": server.key}
        owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "ready\n"
            trio.run(_watch, f"{server.url}/v2/sandboxes", server.key, owner)
        finally:
            if owner.poll() is None:
                owner.kill()
            owner.wait()
        assert list(leftovers(tmp_path)) == []
        assert server.stop() == 0


async def _watch(endpoint: str, key: str, owner: subprocess.Popen[str]) -> None:
    async with AsyncSandboxClient(api_endpoint=endpoint, api_key=key) as client:
        mine = await client.create_sandbox(name="mine")
        # Renewed while the owner lives.
        await trio.sleep(LEASE_S + 1)
        assert len(await client.list_sandboxes()) == SANDBOXES + 1
        owner.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        while len(await client.list_sandboxes()) > 1:
            # The lease, and the time that twenty removals take.
            assert time.monotonic() - killed < LEASE_S + 10
            await trio.sleep(0.2)
        assert (await mine.run("echo here")).stdout == "here\n"
        await mine.delete()
