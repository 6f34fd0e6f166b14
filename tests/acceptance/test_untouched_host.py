"""A user's whole session, embedded and served, leaves the host's inodes as they were: devices, snapshots, streams."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.host_inodes import with_devices_of_its_own

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

# Root inside tries to change every device, every mounted place and what it was given; what is its own may change.
ATTACK = """
for each in /dev/* /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 $(cut -d' ' -f5 /proc/self/mountinfo) /usr/bin/env
do
    touch -c $each; chmod o+t $each && chmod o-t $each; chown 0:0 $each; : >> $each
done 2> /dev/null
exit 7
"""
SESSION = """
import contextlib, json, sys
from pathlib import Path
import trio
from sandboxrt import AsyncSandboxClient
from tests.conformance.served_kit import served
from tests.host_inodes import DEVICES, changed, described

answer, how, attack, *streams = sys.argv[1:]
state = Path(answer).with_name("state")

async def main():
    async with contextlib.AsyncExitStack() as stack:
        if how == "served":
            _, config = await stack.enter_async_context(served(state))
            client = AsyncSandboxClient(api_endpoint=config.base_url, api_key=config.api_key)
        else:
            client = AsyncSandboxClient(mode="embedded", state_dir=state)
        client = await stack.enter_async_context(client)
        async with client.sandbox() as sandbox:
            await client.delete_snapshot((await sandbox.capture_snapshot("first")).id)
        host = [*(Path("/dev", name) for name in DEVICES), Path("/usr/bin/env")]
        snapshots = [each for folder in state.rglob("snapshots") for each in folder.iterdir()]
        watched = [*host, *(Path(each) for each in streams), *snapshots, *state.rglob("tools")]
        before = described(watched)
        async with client.sandbox() as sandbox:
            for options in ({}, {"pty": True}):
                codes.append((await sandbox.run(attack, timeout=30, **options)).exit_code)
            handle = await sandbox.run("exec python3 -m http.server 8000 --bind 127.0.0.1", timeout=0, wait=False)
            async with sandbox.tunnel(8000) as tunnel, await trio.open_tcp_stream("127.0.0.1", tunnel.local_port):
                pass
            await handle.kill()
            await client.delete_snapshot((await sandbox.capture_snapshot("second")).id)
            await sandbox.stop()
            await sandbox.start()
            codes.append((await sandbox.run(attack, timeout=30)).exit_code)
        return changed(before, described(watched))

codes = []
found = trio.run(main)
Path(answer).write_text(json.dumps({"changed": found, "codes": codes}, default=repr))
"""


@pytest.mark.parametrize("how", ["embedded", "served"])
def test_nothing_of_the_host_is_changed(tmp_path: Path, how: str) -> None:
    answer = tmp_path / "answer.json"
    streams = [tmp_path / name for name in ("in", "out")]
    for each in streams:
        each.touch()
    command = [sys.executable, "-c", SESSION, str(answer), how, ATTACK, *map(str, streams)]
    with streams[0].open("rb") as given, streams[1].open("wb") as out:
        done = with_devices_of_its_own(tmp_path / "dev", command, stdin=given, stdout=out, stderr=out)
    assert done.returncode == 0, streams[1].read_text()
    found = json.loads(answer.read_text())
    assert found["changed"] == {}
    assert found["codes"] == [7, 7, 7]
