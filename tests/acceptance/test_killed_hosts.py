"""A host that keeps its sandboxes is killed at every step of what it does to one.

The next host has the sandbox whole, or not at all.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from sandboxrt.host.host import Host, HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.store import Store
from tests.acceptance.killed_host import FILE
from tests.leaks import assert_nothing_left

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

STEPS = {
    "create": ("record", "make", "status"),
    "stop": ("close", "status"),
    "start": ("make", "status"),
    "delete": ("status", "close", "discard", "forget"),
}
CASES = [
    (operation, method, when)
    for operation, methods in STEPS.items()
    for method in methods
    for when in ("before", "after")
]


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.mark.parametrize(("operation", "method", "when"), CASES, ids=["-".join(case) for case in CASES])
async def test_the_next_host(state_dir: Path, operation: str, method: str, when: str) -> None:
    with assert_nothing_left(state_dir):
        killed = await trio.to_thread.run_sync(_killed, state_dir, operation, method, when)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        with trio.fail_after(60):
            async with open_host(HostConfig(state_dir=state_dir, keep=True)) as host:
                there = await _settled(host)
                if operation in ("stop", "start") or (operation, method, when) == ("delete", "status", "before"):
                    assert there == {"box": "stopped"}
                elif operation == "delete":
                    assert there == {}
                else:
                    # Whether a create had come to its end is for its caller to know, who got no answer.
                    assert there in ({}, {"box": "stopped"})
                await _check_store(host, state_dir)
                if there:
                    await host.start_sandbox("box")
                    if operation != "create":
                        assert await host.read_file("box", FILE) == b"kept\n"
                    await host.delete_sandbox("box")
        assert _folders(state_dir) == set()


def _killed(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tests.acceptance.killed_host", str(state_dir), *arguments]
    return subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60, check=False)


async def _settled(host: Host) -> dict[str, str]:
    """The sandboxes with their statuses, once what was half there is gone: that goes on beside the host's service."""
    while "deleting" in (there := {info.name: info.status for info in await host.list_sandboxes()}).values():
        await trio.sleep(0.05)
    return there


async def _check_store(host: Host, state_dir: Path) -> None:
    """Every row has its folder, every folder its row, and nothing is half there."""
    async with Store.open(state_dir) as store:
        rows = await store.list_sandboxes()
    assert {row.status for row in rows} <= {"stopped"}
    assert {row.engine_id for row in rows} == _folders(state_dir)
    assert {row.id for row in rows} == {info.id for info in await host.list_sandboxes()}


def _folders(state_dir: Path) -> set[str]:
    sandboxes = state_dir / "sandboxes"
    return {path.name for path in sandboxes.iterdir()} if sandboxes.exists() else set()
