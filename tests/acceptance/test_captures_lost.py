"""Captures that do not come to their end: nothing is left of them, and the sandbox is none the worse."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient, ResourceCreationError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox
from sandboxrt.snapshots.content import SnapshotConfig
from tests.acceptance.test_captures import run
from tests.leaks import assert_nothing_left
from tests.snapshots.conftest import small_disk
from tests.stretch import stretched

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

MIB = 1024**2
OWNER = """
import os, signal, sys, trio
from sandboxrt import AsyncSandboxClient
from sandboxrt.snapshots import library
from sandboxrt.store import Store

state, step = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name):
    async def replaced(*arguments, **options):
        die()
    setattr(owner, name, replaced)

def after(owner, name):
    original = getattr(owner, name)
    async def replaced(*arguments, **options):
        found = await original(*arguments, **options)
        die()
    setattr(owner, name, replaced)

async def main():
    async with AsyncSandboxClient(mode="embedded", state_dir=state) as client:
        sandbox = await client.create_sandbox(name="captured")
        await sandbox.run("for i in $(seq 300); do head -c 100000 /dev/zero > /root/$i; done")
        from sandboxrt.engine.cgroups import SandboxCgroups
        from sandboxrt.engine.copy.copier import Copier
        where = {
            "recorded": lambda: after(Store, "add_snapshot"),
            "started": lambda: before(SandboxCgroups, "freeze"),
            "frozen": lambda: after(SandboxCgroups, "freeze"),
            "copied": lambda: before(SandboxCgroups, "thaw"),
            "thawed": lambda: after(Copier, "copy"),
            "finishing": lambda: before(Store, "finish_snapshot"),
            "finished": lambda: after(Store, "finish_snapshot"),
        }
        where[step]()
        await client.capture_snapshot("captured", "lost")

trio.run(main)
"""


@pytest.mark.parametrize("step", ["recorded", "started", "frozen", "copied", "thawed", "finishing", "finished"])
def test_an_owner_killed_at_any_step(step: str, tmp_path: Path) -> None:
    with assert_nothing_left(tmp_path):
        done = subprocess.run([sys.executable, "-c", OWNER, str(tmp_path), step], timeout=60)
        assert done.returncode == -signal.SIGKILL
        deadline = time.monotonic() + stretched(10)
        while _copiers(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert _copiers(tmp_path) == []

        async def successor() -> None:
            async with AsyncSandboxClient(mode="embedded", state_dir=tmp_path) as client:
                assert await client.list_sandboxes() == []
                (lost,) = await client.list_snapshots(name_contains="lost")
                folders = {path.name for path in (tmp_path / "snapshots").iterdir()}
                assert not any(name.startswith(".") for name in folders)
                assert lost.status == ("ready" if step == "finished" else "failed")
                assert (lost.id in folders) == (step == "finished")
                if step == "finished":
                    async with client.sandbox(lost.id) as sandbox:
                        assert (await sandbox.run("ls /root | wc -l")).stdout == "300\n"
                else:
                    assert lost.status_message == "The process that built it ended"
                await client.delete_snapshot(lost.id)

        trio.run(successor)


def _copiers(state_dir: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                program = os.readlink(entry / "exe")
            except OSError:
                continue
            if program.startswith(f"{state_dir}/tools/copy"):
                found.append(program)
    return found


async def test_a_full_disk_of_the_host_is_said(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    with small_disk(state_dir, 224 * MIB), assert_nothing_left(state_dir):
        config = HostConfig(state_dir=state_dir, snapshots=SnapshotConfig(min_free_bytes=64 * MIB))
        async with open_host(config) as host:
            await host.create_sandbox(CreateSandbox(name="box"))
            await run(host, "box", "head -c 100M /dev/zero > /root/large; sync")
            begun = await host.capture_snapshot("box", CaptureSnapshot(name="too-large"))
            with pytest.raises(ResourceCreationError, match="No space left on device on this host") as caught:
                await host.wait_for_snapshot(begun.id, 60)
            assert "DiskFull" in str(caught.value)
            folders = [path.name for path in (state_dir / "snapshots").iterdir()]
            assert folders == [(await host.host_snapshot()).id]
            # The sandbox goes on, and less of it fits.
            await run(host, "box", "rm /root/large")
            begun = await host.capture_snapshot("box", CaptureSnapshot(name="small"))
            assert (await host.wait_for_snapshot(begun.id, 60)).status == "ready"
