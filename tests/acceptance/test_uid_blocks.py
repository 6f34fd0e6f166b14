"""Sandboxes of different state folders have different users, so what the kernel counts by user is each one's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sandboxrt.host.config import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.models import Limits
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.store import Store
from sandboxrt.testing.conformance import run
from tests.leaks import assert_nothing_left

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

PIPES = r"""
import fcntl, os, sys, time
held = []
try:
    while len(held) < 400:
        held.append(os.pipe())
        fcntl.fcntl(held[-1][1], fcntl.F_SETPIPE_SZ, 2**20)
except PermissionError:
    pass
print(len(held), flush=True)
if sys.argv[1:]:
    time.sleep(100)
"""
"""Pages of pipes are counted by user: some 64 pipes of a mebibyte for those without rights, however many sandboxes."""
FILL = r"""
set -e
cd /root
echo text > file; cp file suid; chown 1000:33 suid; chmod 4751 suid; ln file hard; ln -s file link; mkdir folder
chown 7:8 folder
python3 - <<'END'
import os, struct
os.setxattr("file", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
entries = ((1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (8, 2, 33), (16, 6, 2**32 - 1), (32, 4, 2**32 - 1))
packed = b"".join(struct.pack("<HHI", *each) for each in entries)
os.setxattr("hard", "system.posix_acl_access", struct.pack("<I", 2) + packed)
END
"""
TELL = r"""
cd /root
stat -c '%n %u:%g %a %h %F' file suid hard link folder /tmp
python3 - <<'END'
import os
for name in ("security.capability", "system.posix_acl_access"):
    print(os.getxattr("file", name).hex())
END
cat suid; touch new; rm new
"""


async def test_a_count_by_user_is_not_shared(tmp_path: Path) -> None:
    with assert_nothing_left():
        async with (
            open_host(HostConfig(state_dir=tmp_path / "a")) as a,
            open_host(HostConfig(state_dir=tmp_path / "b")) as b,
        ):
            for host in (a, b):
                await host.create_sandbox(CreateSandbox(name="box"))
                await run(host, "box", f"cat > /tmp/pipes.py <<'END'\n{PIPES}END")
            alone = int((await run(b, "box", "python3 /tmp/pipes.py")).stdout)
            assert alone < 400, "this kernel has no limit to share"
            await run(a, "box", "python3 /tmp/pipes.py hold > /tmp/held 2>&1 & while ! grep -q . /tmp/held; do :; done")
            assert int((await run(a, "box", "python3 /tmp/pipes.py")).stdout) < alone, "it is this sandbox's own"
            assert int((await run(b, "box", "python3 /tmp/pipes.py")).stdout) == alone


@pytest.mark.parametrize("disk", [2**28, None], ids=["disk", "folder"])
async def test_a_copy_beside_the_original_gets_ids_of_its_own(tmp_path: Path, disk: int | None) -> None:
    request = CreateSandbox(name="box", idle_ttl_seconds=0, limits=Limits(disk_bytes=disk))
    first, copy = (HostConfig(state_dir=tmp_path / name, keep=True) for name in ("first", "copy"))
    async with open_host(first) as host:
        await host.create_sandbox(request)
        await run(host, "box", FILL)
        told = (await run(host, "box", TELL)).stdout
    subprocess.run(["cp", "-a", "--sparse=always", tmp_path / "first", tmp_path / "copy"], check=True)
    with assert_nothing_left():
        async with open_host(first) as host, open_host(copy) as other:
            for each in (host, other):
                await each.start_sandbox("box")
            maps = [(await run(each, "box", "cat /proc/self/uid_map")).stdout for each in (host, other)]
            assert maps[0] != maps[1]
            for each in (other, host):
                assert (await run(each, "box", TELL)).stdout == told
    async with Store.open(copy.state_dir) as store:
        (row,) = await store.list_sandboxes()
        assert row.moved_from is None
    # Served alone, it keeps those that it got; and what was interrupted in the middle is finished.
    async with open_host(copy) as other:
        await other.start_sandbox("box")
        assert (await run(other, "box", "cat /proc/self/uid_map")).stdout == maps[1]
        assert (await run(other, "box", TELL)).stdout == told
    async with Store.open(copy.state_dir) as store:
        await store.transact(
            lambda db: db.execute("UPDATE sandboxes SET moved_from = uid_block, uid_block = (uid_block + 1) % 1000")
        )
    async with open_host(copy) as other:
        await other.start_sandbox("box")
        assert (await run(other, "box", TELL)).stdout == told
    shutil.rmtree(copy.state_dir)
