"""An ordinary user's state folder is backed up and put back, with the ids that only the user's namespace can give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rootless import as_user

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

PROGRAM = """
import sys, trio
from pathlib import Path
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.backup.create import back_up
from sandboxrt.host.backup.restore import restore
from sandboxrt.host.config import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.models import Limits
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import run

TELL = "stat -c '%u:%g %a' /root/file; cat /root/file"

async def main():
    state = Path(sys.argv[1])
    kept = HostConfig(state_dir=state, keep=True)
    async with open_host(kept) as host:
        request = CreateSandbox(name="box", idle_ttl_seconds=0, limits=Limits(), allow_unenforced_limits=True)
        await host.create_sandbox(request)
        await run(host, "box", "echo text > /root/file; chown 1000:33 /root/file; chmod 4750 /root/file")
        told = (await run(host, "box", TELL)).stdout
        try:
            await back_up(state, state.parent / "home" / "live.backup")
        except SandboxClientError as error:
            print("refused" if "Stop it first" in str(error) else error)
    await back_up(state, state.parent / "home" / "a.backup")
    await restore(state.parent / "home" / "a.backup", state.parent / "home" / "other")
    async with open_host(HostConfig(state_dir=state.parent / "home" / "other", keep=True)) as host:
        await host.start_sandbox("box")
        print("same" if (await run(host, "box", TELL)).stdout == told else "other", told.split()[:2])
        await host.delete_sandbox("box")
    async with open_host(kept) as host:
        await host.delete_sandbox("box")

trio.run(main)
"""


def test_backup_and_restore(tmp_path: Path) -> None:
    done = as_user(tmp_path, f"stranger:{2**30}:65536\n", PROGRAM, str(tmp_path / "state"))
    assert done.stdout == "refused\nsame ['1000:33', '4750']\n", done.stdout + done.stderr
    assert sorted(path.name for path in (tmp_path / "home").iterdir()) == ["a.backup", "other"]
