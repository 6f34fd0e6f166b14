"""What is tried on a small file system: ``python -m tests.fulldisk.inside SCENARIO``, started by ``kit.py``.

The folder in ``STATE_FOLDER`` is a file system of its own, mounted for this process alone. To look past the page cache,
files are read after a stop and a start: the disk was unmounted in between.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from sandboxrt import Sandbox, SandboxClient

MIB = 1024**2
SCENARIOS: dict[str, Callable[..., None]] = {}
FOLDER = Path(os.environ.get("STATE_FOLDER", "/nonexistent"))


def scenario(function: Callable[..., None]) -> Callable[..., None]:
    SCENARIOS[function.__name__] = function
    return function


def client(**options: object) -> SandboxClient:
    return SandboxClient(mode="embedded", state_dir=FOLDER / "state", **options)  # type: ignore[arg-type]


def restart(sandbox: Sandbox) -> None:
    """Stop and start: what was in memory only is gone."""
    sandbox.stop()
    sandbox.start()


def free_bytes() -> int:
    found = os.statvfs(FOLDER)
    return found.f_bavail * found.f_frsize


def fill(name: str = "filler", leave_bytes: int = 0) -> Path:
    """Another program takes everything that is left on the file system, in one instant, root's reserve included."""
    path = FOLDER / name
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        size = os.fstat(fd).st_size
        for step in (64 * MIB, MIB, 4096, 1024):
            while True:
                found = os.statvfs(FOLDER)
                if found.f_bfree * found.f_frsize < leave_bytes + step:
                    break
                try:
                    os.posix_fallocate(fd, size, step)
                except OSError:
                    break
                size += step
    finally:
        os.close(fd)
    return path


@scenario
def more_than_there_is() -> None:
    """Less room on the host than a sandbox has on its disk: the writer is told, and what it was told holds."""
    with client() as c:
        a = c.create_sandbox(name="a")
        a.write("/root/small", "kept")
        done = a.run("head -c 400000000 /dev/urandom > /root/big; md5sum < /root/big; sync && echo synced")
        assert "No space left on device" in done.stderr, done
        assert done.stdout.endswith("synced\n"), done
        written = done.stdout.split()[0]
        assert a.run("dd if=/root/big iflag=direct bs=1M 2>/dev/null | md5sum").stdout.split()[0] == written
        assert a.run("rm /root/big && echo more > /root/more && sync").exit_code == 0
        restart(a)
        assert a.run("cat /root/small /root/more").stdout == "keptmore\n"


@scenario
def holes_and_promises() -> None:
    """Blocks set aside without being written count, and so do many small files."""
    with client() as c:
        a = c.create_sandbox(name="a")
        done = a.run("fallocate -l 1G /root/much; rm -f /root/much; fallocate -l 100M /root/less && echo set aside")
        assert "No space left on device" in done.stderr, done
        assert done.stdout == "set aside\n"
        # What was set aside is there, whoever comes.
        b = c.create_sandbox(name="b")
        b.run("head -c 300000000 /dev/zero | tr '\\0' x > /root/all")
        fill_it = "head -c 104857600 /dev/urandom | dd of=/root/less conv=notrunc,fsync bs=1M"
        done = a.run(f"{fill_it} && md5sum < /root/less")
        assert done.exit_code == 0, done
        restart(a)
        assert a.run("md5sum < /root/less").stdout == done.stdout
        b.run(
            "rm -f /root/all; mkdir /root/many; cd /root/many; i=0; while [ $i -lt 30000 ]; do : > $i || exit; "
            "i=$((i+1)); done; sync"
        )
        count = b.run("ls /root/many | wc -l").stdout
        restart(b)
        assert b.run("ls /root/many | wc -l").stdout == count


WRITER = r"""
import hashlib, os, sys
told = []
for number in range(200):
    name = f"/root/{number}"
    data = os.urandom(1 << 20) * 2
    try:
        with open(name, "wb", buffering=0) as file:
            done = 0
            while done < len(data):
                done += file.write(data[done:])
            if number % 3 == 0:
                os.fsync(file.fileno())
    except OSError as error:
        assert error.errno == 28, error
        os.unlink(name)
        break
    print(number, hashlib.md5(data).hexdigest(), flush=True)
"""
READER = r"""
import hashlib, os
for name in sorted((n for n in os.listdir("/root") if n.isdigit()), key=int):
    print(name, hashlib.md5(open(f"/root/{name}", "rb").read()).hexdigest())
"""


@scenario
def many_writers() -> None:
    """Sandboxes that write all at once until nobody can, while another program takes some of the room."""
    with client() as c:
        boxes = [c.create_sandbox(name=f"w{number}") for number in range(3)]
        for box in boxes:
            box.write("/tmp/writer.py", WRITER)
        handles = [box.run("python3 /tmp/writer.py", wait=False) for box in boxes]
        fill(leave_bytes=150 * MIB)
        told = [handle.result.stdout for handle in handles]
        for box, words in zip(boxes, told, strict=True):
            assert words.count("\n") > 3, words
            assert box.run(f"python3 -c {shlex.quote(READER)}").stdout == words
            # A start needs some room, as much as nobody asks back.
            (FOLDER / "filler").unlink(missing_ok=True)
            restart(box)
            assert box.run(f"python3 -c {shlex.quote(READER)}").stdout == words


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](*sys.argv[2:])
