"""Nothing stays behind: killed owners, crowds, and cancellation at every step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from tests.cancelling import CancelAt
from tests.leaks import assert_nothing_left

pytestmark = pytest.mark.container

OWNER = """
import sys, trio
from sandboxrt import AsyncSandboxClient

async def main():
    async with AsyncSandboxClient(mode="embedded", state_dir=sys.argv[1]) as client:
        async with trio.open_nursery() as nursery:
            for _ in range(int(sys.argv[2])):
                nursery.start_soon(client.create_sandbox)
        for sandbox in await client.list_sandboxes():
            await sandbox.run("echo alive > /home/user/mark; sleep 600 > /dev/null 2>&1 &")
        print("ready", flush=True)
        for line in iter(sys.stdin.readline, ""):
            living = [await (await client.get_sandbox(sandbox.name)).read("/home/user/mark")
                      for sandbox in await client.list_sandboxes()]
            print(len(living), living == [b"alive\\n"] * len(living), flush=True)

trio.run(main)
"""


def _owner(state_dir: Path, count: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(state_dir), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("alive?\n")
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.timeout(180)
def test_a_killed_owner_loses_everything_and_nobody_else_anything(state_dir: Path) -> None:
    with assert_nothing_left(state_dir):
        living, dying = _owner(state_dir, 3), _owner(state_dir, 20)
        assert _ask(dying) == "20 True\n"
        os.kill(dying.pid, signal.SIGKILL)
        dying.communicate(timeout=30)
        assert _ask(living) == "3 True\n"

        # The next start cleans what the killed one left on disk, and only that.
        successor = _owner(state_dir, 1)
        assert len(list((state_dir / "sandboxes").iterdir())) == 4
        assert _ask(living) == "3 True\n"
        for process in (successor, living):
            process.communicate(timeout=60)
            assert process.returncode == 0


@pytest.mark.timeout(300)
async def test_two_hundred_at_once(state_dir: Path) -> None:
    outputs: list[str] = []

    async def one(client: AsyncSandboxClient, number: int) -> None:
        async with client.sandbox() as sandbox:
            outputs.append((await sandbox.run(f"echo {number}", timeout=120)).stdout)

    with assert_nothing_left(state_dir, settle_s=20):
        async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client:
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(one, client, number)
            assert sorted(outputs, key=int) == [f"{number}\n" for number in range(200)]
            assert await client.list_sandboxes() == []


async def _cancel_at_every_step(work: Callable[[], Awaitable[None]], most: int) -> int:
    """Run ``work`` cancelled at step 1, 2, ... until it goes through; returns how many steps that took."""
    for step in range(1, most):
        instrument = CancelAt(step)
        await instrument.run(work)
        if not instrument.scope.cancelled_caught:
            return step
    raise AssertionError(f"still cancelled after {most} steps")


@pytest.mark.timeout(600)
async def test_cancelled_at_every_step_of_create_run_close(state_dir: Path) -> None:
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client:
        await _work(client)  # what is made once and kept (templates, compiled tools) is not a leak
        with assert_nothing_left(state_dir):

            async def checked() -> None:
                try:
                    await _work(client)
                finally:
                    with trio.CancelScope(shield=True):
                        assert await client.list_sandboxes() == []

            steps = await _cancel_at_every_step(checked, most=2000)
        assert steps > 5


async def _work(client: AsyncSandboxClient) -> None:
    async with client.sandbox() as sandbox:
        result = await sandbox.run("cat /proc/self/comm; exit 3")
        assert (result.stdout, result.exit_code) == ("cat\n", 3)


@pytest.mark.timeout(120)
async def test_raising_inside_leaves_nothing(state_dir: Path) -> None:
    class DeliberateError(Exception):
        pass

    started = time.monotonic()
    with assert_nothing_left(state_dir), pytest.raises(DeliberateError):
        async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client:
            await client.create_sandbox()
            async with client.sandbox() as sandbox, client.sandbox():
                await sandbox.run("sleep 600", wait=False)
                raise DeliberateError
    assert time.monotonic() - started < 60
