"""An unprivileged user who has been given a control group: commands have groups of their own, and die with them."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxrt.engine.hierarchy import this_host
from tests.rootless import USER_ID, as_user

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

SUBORDINATE = f"stranger:{2**30}:65536\n"

USE = """
import json, os, sys, trio
from pathlib import Path
from sandboxrt import AsyncSandboxClient

def groups(mine):
    # Of what runs in the sandbox: the end of each process's group, by the process's arguments.
    found = {}
    for folder, _, _ in os.walk(mine):
        for pid in Path(folder, "cgroup.procs").read_text().split():
            words = Path("/proc", pid, "cmdline").read_bytes().decode().replace("\\0", " ").strip()
            found[words] = Path(folder).name
    return found

async def main():
    state_dir, runtime, mine = sys.argv[1:]
    async with AsyncSandboxClient(
        mode="embedded", state_dir=state_dir, runtime=runtime, allow_unenforced_limits=True
    ) as client:
        async with client.sandbox() as sandbox:
            told = (await sandbox.run("echo hello; cat /proc/self/cgroup")).stdout
            await sandbox.run("echo kept > /root/file")
            first = await sandbox.run("setsid sleep 101 & sleep 102", wait=False)
            second = await sandbox.run("sleep 103", wait=False)
            while len([words for words in groups(mine) if words.startswith("sleep")]) < 3:
                await trio.sleep(0.01)
            before = groups(mine)
            # All of a command's processes end, in whatever session they are, and no other command's.
            await first.kill()
            await first.result
            after = groups(mine)
            frozen = await sandbox.capture_snapshot("while-it-runs")
            await second.kill()
            await second.result
            print(json.dumps({"told": told, "before": before, "after": after, "captured": frozen.status}))

trio.run(main)
"""


@pytest.fixture
def given() -> Iterator[Path]:
    """A group of the v2 tree that was given to the user, as a service manager gives one."""
    host = this_host()
    assert host.unified is not None, "this test needs a v2 tree"
    group = host.unified / f"given-{secrets.token_hex(4)}"
    group.mkdir()
    try:
        for path in (group, *(group / f"cgroup.{name}" for name in ("procs", "threads", "subtree_control"))):
            os.chown(path, USER_ID, USER_ID)
        yield group
    finally:
        left = [folder for folder, _, _ in os.walk(group, topdown=False)]
        for folder in left:
            os.rmdir(folder)
        assert left == [str(group)], "groups of sandboxes are left"


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_commands_of_a_user_with_a_group_are_killed_whole(tmp_path: Path, given: Path, runtime: str) -> None:
    done = as_user(tmp_path, SUBORDINATE, USE, str(tmp_path / "state"), runtime, str(given), group=given)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["told"].startswith("hello\n")
    assert given.name not in found["told"], "the host's groups are out of sight"
    sleeps = {words: group for words, group in found["before"].items() if words.startswith("sleep")}
    assert sleeps["sleep 101"] == sleeps["sleep 102"] != sleeps["sleep 103"], "a group for each command"
    assert {words for words in found["after"] if words.startswith("sleep")} == {"sleep 103"}
    assert found["captured"] == "ready"
