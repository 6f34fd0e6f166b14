"""An unprivileged user has sandboxes too: the conformance suite, limits that are refused, owners that are killed."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.rootless import USER_ID, as_user
from tests.stretch import stretched

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

SUBORDINATE = f"stranger:{2**30}:65536\n"

CONFORMANCE = """
import json, sys, traceback
from pathlib import Path
import attrs, trio
from sandboxrt.host.command import CommandSettings
from sandboxrt.host.host import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.engine.base import Feature
from sandboxrt.testing.conformance import cases_for

CASES = cases_for(set(Feature) - {Feature.FREEZE})

class Accepting:
    def __init__(self, host): self.host = host
    def __getattr__(self, name): return getattr(self.host, name)
    async def create_sandbox(self, request):
        return await self.host.create_sandbox(attrs.evolve(request, allow_unenforced_limits=True))

async def main():
    failed = {}
    config = HostConfig(state_dir=Path(sys.argv[1]), runtime=sys.argv[2], command=CommandSettings(term_grace_s=0.3))
    async with open_host(config) as host:
        for name, case in CASES.items():
            try:
                with trio.fail_after(30):
                    await case(Accepting(host))
            except BaseException:
                failed[name] = traceback.format_exc()
    print(json.dumps({"ran": len(CASES), "failed": failed}))

trio.run(main)
"""


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_the_conformance_suite(tmp_path: Path, runtime: str) -> None:
    done = as_user(tmp_path, SUBORDINATE, CONFORMANCE, str(tmp_path / "state"), runtime)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ran"] > 40
    assert found["failed"] == {}, "\n".join(found["failed"].values())
    assert os.listdir(tmp_path / "state" / "sandboxes") == []


CAPTURES = """
import json, sys, trio
from sandboxrt import AsyncSandboxClient, SandboxNotReadyError

CHANGE = "rm -r /opt; mkdir /opt; rm /etc/profile; chown user /root; echo mine > /usr/local/bin/tool"
LOOK = "ls -A /opt; cat /usr/local/bin/tool; stat -c %u /root /opt; ls /etc/profile 2>&1 | wc -l"

async def capture(sandbox, name):
    try:
        await sandbox.capture_snapshot(name)
    except SandboxNotReadyError as error:
        refused = str(error)
    await sandbox.stop()
    return refused, await sandbox.capture_snapshot(name)

async def main():
    async with AsyncSandboxClient(mode="embedded", state_dir=sys.argv[1], allow_unenforced_limits=True) as client:
        async with client.sandbox() as sandbox:
            await sandbox.write("/opt/old", "x")
            refused, first = await capture(sandbox, "first")
        async with client.sandbox(first.id) as sandbox:
            changed = await sandbox.run(CHANGE)
            _, second = await capture(sandbox, "second")
        async with client.sandbox(second.id) as sandbox:
            found = await sandbox.run(LOOK)
        await client.delete_snapshot(second.id)
        await client.delete_snapshot(first.id)
    print(json.dumps([refused, changed.stderr, found.stdout]))

trio.run(main)
"""


def test_what_is_stopped_can_be_captured(tmp_path: Path) -> None:
    done = as_user(tmp_path, SUBORDINATE, CAPTURES, str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    refused, wrong, found = json.loads(done.stdout)
    assert "Stop it first, then capture it" in refused
    assert (wrong, found) == ("", "mine\n1000\n0\n1\n")
    assert [name for name in os.listdir(tmp_path / "state/snapshots") if name.startswith(".")] == []


REFUSED = """
import json, sys, trio
from sandboxrt import AsyncSandboxClient, Isolation, IsolationError, Limits

async def attempt(**options):
    async with AsyncSandboxClient(mode="embedded", state_dir=sys.argv[1], **options) as client:
        try:
            async with client.sandbox() as sandbox:
                report = await sandbox.isolation()
                result = await sandbox.run("id -u; cat /proc/self/uid_map; touch /root/mine && stat -c %u /root/mine")
                return [result.stdout, sorted(p.value for p in Isolation if report.has(p))]
        except IsolationError as error:
            return [str(error), sorted(error.missing)]

async def main():
    none = Limits(vcpus=None, mem_bytes=None, pids=None, disk_bytes=None)
    print(json.dumps({
        "defaults": await attempt(),
        "accepted": await attempt(allow_unenforced_limits=True),
        "unlimited": await attempt(limits=none),
        "required": await attempt(limits=none, require=frozenset({Isolation.UID_BLOCK})),
    }))

trio.run(main)
"""


def test_limits_that_cannot_be_enforced_are_refused_or_accepted_outright(tmp_path: Path) -> None:
    done = as_user(tmp_path, SUBORDINATE, REFUSED, str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    message, missing = found["defaults"]
    assert missing == ["cpu-limit", "disk-limit", "memory-limit", "pids-limit"]
    assert "allow_unenforced_limits=True" in message
    for how in ("accepted", "unlimited"):
        printed, achieved = found[how]
        lines = printed.split("\n")
        # Root inside, the first subordinate id outside, and none of the user's own.
        assert (lines[0], lines[1].split(), lines[2]) == ("0", ["0", "1", "65536"], "0")
        assert {"user-namespace", "pid-namespace", "network-namespace", "seccomp", "inotify-limit"} <= set(achieved)
        assert not {"uid-block", "memory-limit", "tree-kill"} & set(achieved)
    assert found["required"] == [found["required"][0], ["uid-block"]]


def test_without_subordinate_ids_it_is_said_what_is_missing(tmp_path: Path) -> None:
    done = as_user(tmp_path, "", REFUSED, str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    message, missing = json.loads(done.stdout)["accepted"]
    assert "user-namespace" in missing
    assert "sandboxrt doctor" in message


OWNER = """
import sys, trio
from sandboxrt import AsyncSandboxClient

async def main():
    options = {"mode": "embedded", "state_dir": sys.argv[1], "allow_unenforced_limits": True}
    async with AsyncSandboxClient(**options) as client:
        if sys.argv[2] == "stay":
            sandbox = await client.create_sandbox(name="left")
            await sandbox.run("mkdir -m 0 /root/closed && echo x > /root/closed/file; chown -R 1000 /root/closed")
            await sandbox.run("sleep 4321 & exec sleep 4321", wait=False)
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        print(len(await client.list_sandboxes()))

trio.run(main)
"""


def test_a_killed_owner_leaves_nothing_that_the_next_start_does_not_remove(tmp_path: Path) -> None:
    for part in ("first", "second"):
        (tmp_path / part).mkdir()
    state = tmp_path / "first" / "state"
    done = as_user(tmp_path / "first", SUBORDINATE, OWNER, str(state), "stay")
    assert done.returncode == -9 or done.returncode == 137, done.stderr
    deadline = time.monotonic() + stretched(20)
    while _processes_of(2**30) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _processes_of(2**30) == []
    assert len(os.listdir(state / "sandboxes")) == 1
    done = as_user(tmp_path / "second", SUBORDINATE, OWNER, str(state), "go")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert os.listdir(state / "sandboxes") == []
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert _processes_of(2**30) == []


def _processes_of(first: int) -> list[str]:
    """What runs with ids of this range, the dead that wait for a reaper aside."""
    listed = subprocess.run(
        ["ps", "-eo", "uid,stat,pid,args", "--no-headers"], capture_output=True, text=True, check=True
    )
    rows = (line.split(None, 3) for line in listed.stdout.splitlines())
    return [
        row[3] for row in rows if (first <= int(row[0]) < first + 65536 or int(row[0]) == USER_ID) and row[1][0] != "Z"
    ]
