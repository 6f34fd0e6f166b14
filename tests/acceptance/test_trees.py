"""Leaders, pipes and trees are separate facts: in real containers, with real daemons."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandbox, AsyncSandboxClient, CommandTimeoutError

pytestmark = pytest.mark.container

DAEMONS = r"""
import os, signal, sys, time
for number in range(5):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.execvp("sleep", ["sleep", sys.argv[1]])
        os._exit(0)
print("ready", flush=True)
time.sleep(600)
"""


async def _count(sandbox: AsyncSandbox, needle: str) -> int:
    """How many processes inside have ``needle`` as an argument."""
    script = (
        "import glob, sys\n"
        "found = 0\n"
        "for path in glob.glob('/proc/[0-9]*/cmdline'):\n"
        "    try: found += sys.argv[1].encode() in open(path, 'rb').read().split(b'\\0')[1:2]\n"
        "    except OSError: pass\n"
        "print(found)"
    )
    result = await sandbox.run(f'python3 -c "{script}" {needle}')
    assert result.success, result.stderr
    return int(result.stdout)


async def test_background_child_does_not_delay_the_exit(state_dir: Path) -> None:
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client, client.sandbox() as sandbox:
        started = time.monotonic()
        result = await sandbox.run("sleep 1000 & echo started")
        assert result.stdout == "started\n"
        assert result.exit_code == 0
        assert time.monotonic() - started < 10
        assert await _count(sandbox, "1000") == 1


async def test_late_output_reaches_later_attachments(state_dir: Path) -> None:
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client, client.sandbox() as sandbox:
        handle = await sandbox.run("(sleep 1; echo late) & echo early", wait=False)
        assert (await handle.result).stdout == "early\n"
        with trio.fail_after(20):
            while True:
                later = await sandbox.reconnect(handle.command_id)
                if (await later.result).stdout == "early\nlate\n":
                    break
                await trio.sleep(0.1)


async def test_daemon_survives_its_command(state_dir: Path) -> None:
    assert shutil.which("redis-server"), "tools/setup_system.sh --test installs redis-server"
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client, client.sandbox() as sandbox:
        started = await sandbox.run("redis-server --daemonize yes --dir /home/user", timeout=10)
        assert started.exit_code == 0, started.stdout + started.stderr
        with trio.fail_after(20):
            while (await sandbox.run("redis-cli ping")).stdout != "PONG\n":
                await trio.sleep(0.1)
        assert (await sandbox.run("redis-cli set key value")).stdout == "OK\n"


@pytest.mark.parametrize("how", ["kill", "timeout"])
async def test_nothing_of_the_tree_is_left(state_dir: Path, how: str) -> None:
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client, client.sandbox() as sandbox:
        await sandbox.write("/home/user/daemons.py", DAEMONS)
        handle = await sandbox.run(
            "python3 /home/user/daemons.py 4711", timeout=2 if how == "timeout" else 60, wait=False
        )
        async for chunk in handle:
            assert chunk.data == "ready\n"
            break
        if how == "kill":
            with trio.fail_after(20):  # the daemons have been forked by now, but may not have become `sleep` yet
                while await _count(sandbox, "4711") != 5:
                    await trio.sleep(0.05)
            await handle.kill()
            assert (await handle.result).exit_code == 137
        else:
            with pytest.raises(CommandTimeoutError) as caught:
                await handle.result
            assert caught.value.stdout == "ready\n"
            assert caught.value.timeout == 2
        assert await _count(sandbox, "4711") == 0
