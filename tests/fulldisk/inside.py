"""What is tried on a small file system: ``python -m tests.fulldisk.inside SCENARIO``, started by ``kit.py``.

The folder in ``STATE_FOLDER`` is a file system of its own, mounted for this process alone. To look past the page cache,
files are read after a stop and a start: the disk was unmounted in between.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from sandboxrt import HostDiskFullError, Sandbox, SandboxClient, SandboxClientError
from tests.fulldisk import traps
from tests.fulldisk.traps import FOLDER, MIB, TRAP, empty, fill

SCENARIOS: dict[str, Callable[..., None]] = {}


def scenario(function: Callable[..., None]) -> Callable[..., None]:
    SCENARIOS[function.__name__] = function
    return function


def client(**options: object) -> SandboxClient:
    return SandboxClient(mode="embedded", state_dir=FOLDER / "state", **options)  # type: ignore[arg-type]


def restart(sandbox: Sandbox) -> None:
    """Stop and start: what was in memory only is gone."""
    sandbox.stop()
    sandbox.start()


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
            empty()
            restart(box)
            assert box.run(f"python3 -c {shlex.quote(READER)}").stdout == words


@contextlib.contextmanager
def served() -> Iterator[SandboxClient]:
    """A client of a server on the file system, which has the traps."""
    command = [sys.executable, "-m", "tests.fulldisk.inside", "server"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("sandboxrt serves "):
                    break
            else:
                raise AssertionError("the server did not start")
            with SandboxClient(mode="remote", api_endpoint=f"{line.split()[2]}/api/v2/sandboxes", api_key="x") as c:
                yield c
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


@scenario
def server() -> None:
    from sandboxrt.cli import main

    traps.install()
    state = str(FOLDER / "state")
    main(
        [
            "serve",
            "--port",
            "0",
            "--state-dir",
            state,
            "--insecure-no-auth",
            "--no-access-log",
            "--default-snapshot",
            "host",
        ]
    )


@contextlib.contextmanager
def embedded() -> Iterator[SandboxClient]:
    traps.install()
    with client() as c:
        yield c


class Steps:
    """Operations, each with the disk filled at one of its steps."""

    def __init__(self, client: SandboxClient) -> None:
        self.client = client
        self.keeper = client.create_sandbox(name="keeper")
        self.keeper.write("/root/old", "acknowledged")
        assert self.keeper.run("head -c 300000 /dev/urandom > /root/synced; sync").exit_code == 0
        self.synced = self.md5("/root/synced")
        self.number = 0

    def md5(self, path: str) -> str:
        return self.keeper.run(f"md5sum < {path}").stdout

    def at(self, operation: str, step: str) -> str:
        """Try an operation; what came of it."""
        self.number += 1
        name = f"box{self.number}"
        if operation not in ("create", "build"):
            box = self.client.create_sandbox(name=name)
            box.write("/root/file", name)
            if operation in ("start", "capture stopped"):
                box.stop()
        written = self.keeper.run("head -c 1000000 /dev/urandom | tee /root/new | md5sum").stdout
        TRAP.write_text(step)
        if step == "all the time":
            fill()
        said = self.tried(operation, name)
        TRAP.unlink(missing_ok=True)
        assert self.md5("/root/new") == written
        empty()
        self.check(operation, name, said)
        assert self.md5("/root/synced") == self.synced
        return said

    def tried(self, operation: str, name: str) -> str:
        try:
            getattr(self, f"do_{operation.split()[0]}")(name)
        except SandboxClientError as error:
            text = str(error)
            assert "Internal" not in text and "log has the reason" not in text, text
            return type(error).__name__
        return "done"

    def do_create(self, name: str) -> None:
        self.client.create_sandbox(name=name)

    def do_start(self, name: str) -> None:
        self.client.start_sandbox(name)

    def do_stop(self, name: str) -> None:
        self.client.stop_sandbox(name)

    def do_delete(self, name: str) -> None:
        self.client.delete_sandbox(name)

    def do_upload(self, name: str) -> None:
        self.client.get_sandbox(name).write("/root/file", b"n" * MIB)

    def do_write(self, name: str) -> None:
        done = self.client.get_sandbox(name).run("head -c 1000000 /dev/zero > /root/other && sync && echo written")
        assert done.stdout or "No space left" in done.stderr, done

    def do_output(self, name: str) -> None:
        done = self.client.get_sandbox(name).run("head -c 40000000 /dev/zero | tr '\\0' x")
        assert len(done.stdout) == 40_000_000

    def do_capture(self, name: str) -> None:
        self.client.capture_snapshot(name, f"of-{name}")

    def do_build(self, name: str) -> None:
        self.client.create_snapshot(name, f"oci:{sys.argv[3]}")

    def check(self, operation: str, name: str, said: str) -> None:
        """With room again, all is as the answer said."""
        names = {box.name for box in self.client.list_sandboxes()}
        if operation in ("create", "delete") and (said == "done") == (operation == "delete"):
            assert name not in names, said
            self.client.delete_sandbox(self.client.create_sandbox(name=name).name)
            return
        if operation == "build":
            return
        box = self.client.get_sandbox(name)
        if operation != "create":
            if box.status == "ready":
                box.stop()
            self.client.start_sandbox(name)
            box = self.client.get_sandbox(name)
            content = box.read("/root/file")
            assert content == name.encode() or (operation == "upload" and content == b"n" * MIB), content[:50]
        self.client.delete_sandbox(name)


@scenario
def steps(mode: str, *arguments: str) -> None:
    """Print what came of each operation with the disk full at each of its steps."""
    all_steps = {
        "create": ["record", "image", "make", "status"],
        "start": ["make", "status"],
        "upload": ["replace"],
        "write": [],
        "output": [],
        "capture": ["snapshot", "copy", "finish"],
        "capture stopped": ["copy-stopped"],
        "stop": ["close", "status"],
        "delete": ["status", "discard", "forget"],
    }
    with embedded() if mode == "embedded" else served() as c:
        tried = Steps(c)
        for operation, labels in all_steps.items():
            moments = [f"{label} {when}" for label in labels for when in ("before", "after")]
            for step in ["all the time", *moments]:
                print(f"| {mode} | {operation} | {step} |", flush=True)
                print(tried.at(operation, step), flush=True)
        restart(tried.keeper)
        assert tried.md5("/root/synced") == tried.synced
        assert c.get_sandbox("keeper").read("/root/old") == b"acknowledged"


@scenario
def nothing_left(mode: str) -> None:
    """A program of root's takes everything, the reserve of the file system's root, too: ending and removing go on."""
    with embedded() if mode == "embedded" else served() as c:
        names = ("rests", "goes", "was-stopped")
        boxes = {name: c.create_sandbox(name=name) for name in names}
        for name, box in boxes.items():
            box.write("/root/file", name)
            assert box.run("sync").exit_code == 0
        boxes["was-stopped"].stop()
        time.sleep(2)  # for the room to be looked at: what is written has its place then
        fill(everything=True)
        try:
            c.create_sandbox(name="new")
        except HostDiskFullError as error:
            assert error.free_bytes == 0, error
        else:
            raise AssertionError("made on a full disk")
        boxes["rests"].stop()
        c.delete_sandbox("goes")
        c.delete_sandbox("was-stopped")
        assert {box.name: box.status for box in c.list_sandboxes()} == {"rests": "stopped"}
        empty()
        c.start_sandbox("rests")
        assert c.get_sandbox("rests").read("/root/file") == b"rests"


if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](*sys.argv[2:])
