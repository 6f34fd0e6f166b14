"""What a sandbox may use, met from inside of real containers, and what its owner and its neighbour see of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxrt import AsyncSandbox, AsyncSandboxClient, Limits, SandboxOperationError

pytestmark = pytest.mark.container

MIB = 1024**2
LIMITS = Limits(vcpus=0.5, mem_bytes=128 * MIB, pids=32, disk_bytes=64 * MIB)

FORKS = r"""
import os, time
made = 0
try:
    for _ in range(200):  # bounded here too
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        made += 1
except BlockingIOError as error:
    print("refused after", made, error.strerror)
"""

EATER = r"""
import mmap
held = []
for _ in range(64):  # 512 MiB at most
    block = mmap.mmap(-1, 8 << 20)
    for page in range(0, 8 << 20, 4096):
        block[page] = 1
    held.append(block)
print("ate it all")
"""


@pytest.fixture
async def sandbox(state_dir: Path) -> AsyncIterator[AsyncSandbox]:
    async with (
        AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client,
        client.sandbox(limits=LIMITS) as sandbox,
    ):
        yield sandbox


async def test_out_of_memory_is_reported_as_such(sandbox: AsyncSandbox) -> None:
    result = await sandbox.run(f"exec python3 -c '{EATER}'")
    assert (result.exit_code, result.oom_killed, result.stdout) == (137, True, "")
    assert result.reason is not None
    assert f"(mem_bytes={LIMITS.mem_bytes})" in result.reason
    assert result.reason in repr(result)
    # The sandbox is as usable as before, and the next command did not run out of anything.
    after = await sandbox.run("echo fine")
    assert (after.stdout, after.oom_killed, after.reason) == ("fine\n", False, None)


async def test_a_kill_that_was_not_for_memory_is_not_called_so(sandbox: AsyncSandbox) -> None:
    result = await sandbox.run("kill -9 $$")
    assert (result.exit_code, result.oom_killed, result.reason) == (137, False, None)


async def test_a_command_that_was_not_killed_itself_is_not_blamed(sandbox: AsyncSandbox) -> None:
    result = await sandbox.run(f"python3 -c '{EATER}'; exit 5")
    assert (result.exit_code, result.oom_killed, result.reason) == (5, True, None)


async def test_too_many_processes_are_refused_inside_only(state_dir: Path, sandbox: AsyncSandbox) -> None:
    result = await sandbox.run(f"python3 -c '{FORKS}'", timeout=30, wait=False)
    async for chunk in result:
        assert chunk.data.startswith("refused after"), chunk
        assert int(chunk.data.split()[2]) < 32
        break
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as other, other.sandbox() as neighbour:
        assert (await neighbour.run("true")).success
    await result.kill()


async def test_a_full_disk_fails_writes_inside_and_from_outside(sandbox: AsyncSandbox) -> None:
    full = await sandbox.run("head -c 200M /dev/zero > /root/fill")
    assert not full.success
    assert "No space left on device" in full.stderr
    with pytest.raises(SandboxOperationError, match=r"[Nn]o space") as caught:
        await sandbox.write("/root/more", b"x" * (8 * MIB))
    assert caught.value.operation == "write"
    listed = await sandbox.run("rm /root/fill; ls -A /root")
    assert "more" not in listed.stdout
    await sandbox.write("/root/more", b"fits now")
    assert await sandbox.read("/root/more") == b"fits now"


async def test_the_size_of_the_disk_and_what_is_used_of_it_show_inside(sandbox: AsyncSandbox) -> None:
    ask = "stat -f -c '%S %b %f %d' /"
    block, size, free, inodes = map(int, (await sandbox.run(ask)).stdout.split())
    assert 48 * MIB < block * size <= 64 * MIB
    await sandbox.run("head -c 20M /dev/zero > /root/fill; touch /root/other; sync")
    _, _, free_then, inodes_then = map(int, (await sandbox.run(ask)).stdout.split())
    assert 20 * MIB <= block * (free - free_then) < 21 * MIB
    assert 2 <= inodes - inodes_then < 10
    shown = (await sandbox.run("df --output=size -B1 / /tmp")).stdout.split()
    assert shown[1] == shown[2], "one disk for both"


async def test_cpu_time_is_rationed(sandbox: AsyncSandbox) -> None:
    # Half a CPU: two seconds of wall-clock time give about one of CPU time, however idle the host is.
    spin = "import time; e = time.monotonic() + 2\nwhile time.monotonic() < e: pass\nprint(time.process_time())"
    result = await sandbox.run(f"python3 -c '{spin}'")
    assert float(result.stdout) < 1.5
