"""One sandbox after another as this user, in this login session or control group: what is promised of them.

Run as ``python -m tests.vm.guest.sandbox WHERE FOLDER --runtime crun --enforced cpu,memory,pids,disk``.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import attrs

from sandboxrt import CommandTimeoutError, Isolation, Limits, Sandbox, SandboxClient
from tests.vm.guest.report import Report, expect

MIB = 1024**2
LIMITED = frozenset({"cpu", "memory", "pids", "disk"})
LIMITS = Limits(vcpus=0.5, mem_bytes=128 * MIB, pids=32, disk_bytes=64 * MIB)
SPIN_S = 4
# The quota is given out in periods of 100 ms, and the first one may have been saved up.
SPIN_SLACK_S = 0.3
# Emulation is slow: a command of milliseconds takes seconds, and every limit here is far above what is expected.
COMMAND_S = 180
READY_S = 240

EATER = """
import mmap
held = []
for _ in range(64):  # 512 MiB at most
    block = mmap.mmap(-1, 8 << 20)
    for page in range(0, 8 << 20, 4096):
        block[page] = 1
    held.append(block)
print("ate it all")
"""
FORKS = """
import os, time
made = 0
try:
    for _ in range(200):  # bounded here too
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        made += 1
    print("no limit", made)
except BlockingIOError as error:
    print("refused after", made, error.strerror)
"""
SPIN = f"""
import time
before, end = time.process_time(), time.monotonic() + {SPIN_S}
while time.monotonic() < end:
    pass
print(time.process_time() - before)
"""
# Processes that leave the command's session, and go on having children.
TREE = """
import os, subprocess, time
for _ in range(3):
    subprocess.Popen(["setsid", "sh", "-c", "sleep {seconds} & setsid sleep {seconds} & wait"])
time.sleep(2)
print("grown", flush=True)
time.sleep({seconds})
"""


@attrs.frozen
class Checks:
    """What is asked of sandboxes that one client makes."""

    client: SandboxClient
    folder: Path
    enforced: frozenset[str]

    def create(self) -> Sandbox:
        """A sandbox with small limits, of which this user can enforce some."""
        return self.client.create_sandbox(limits=LIMITS, timeout=READY_S)

    def ready(self, sandbox: Sandbox) -> str:
        """The limits that are said to be enforced are those that are expected."""
        findings = sandbox.isolation().findings
        enforced = {name for name in LIMITED if findings[Isolation(f"{name}-limit")].achieved}
        expect(enforced == self.enforced, f"enforced: {sorted(enforced)}, expected: {sorted(self.enforced)}")
        return "enforces " + (", ".join(sorted(enforced)) or "no limit")

    def memory(self, sandbox: Sandbox) -> str:
        """Who takes too much is killed, and it is said why; the next command runs."""
        ended = sandbox.run(f"exec python3 -c '{EATER}'", timeout=COMMAND_S)
        expect((ended.exit_code, ended.oom_killed) == (137, True), repr(ended))
        expect(f"mem_bytes={LIMITS.mem_bytes}" in (ended.reason or ""), repr(ended.reason))
        expect(sandbox.run("echo fine", timeout=COMMAND_S).stdout == "fine\n", "the next command did not run")
        return f"exit {ended.exit_code}: {ended.reason}"

    def pids(self, sandbox: Sandbox) -> str:
        """Who forks too often is refused."""
        handle = sandbox.run(f"exec python3 -c '{FORKS}'", timeout=COMMAND_S, wait=False)
        said = next(iter(handle)).data.strip()
        handle.kill()
        # Only then is there room for the next command.
        expect(handle.result.exit_code != 0, repr(handle.result))
        expect(said.startswith("refused after") and 16 < int(said.split()[2]) < (LIMITS.pids or 0), said)
        return f"{said}, of {LIMITS.pids}"

    def cpu(self, sandbox: Sandbox) -> str:
        """Who computes all the time gets its share."""
        used = float(sandbox.run(f"exec python3 -c '{SPIN}'", timeout=COMMAND_S).stdout)
        expect(0 < used <= SPIN_S * (LIMITS.vcpus or 0) + SPIN_SLACK_S, f"{used:.2f} s of CPU in {SPIN_S} s")
        return f"{used:.2f} s of CPU in {SPIN_S} s at {LIMITS.vcpus} CPUs"

    def disk(self, sandbox: Sandbox) -> str:
        """Who writes too much gets ENOSPC, and the room is there again afterwards."""
        ended = sandbox.run(
            "head -c 200M /dev/zero > /root/fill; stat -c %s /root/fill; rm /root/fill", timeout=COMMAND_S
        )
        expect("No space left on device" in ended.stderr, repr(ended))
        written = int(ended.stdout)
        expect(MIB < written <= (LIMITS.disk_bytes or 0), f"{written} bytes were written")
        expect(
            sandbox.run("head -c 8M /dev/zero > /root/again", timeout=COMMAND_S).success, "no room after removing it"
        )
        return f"ENOSPC after {written / MIB:.0f} MiB of {(LIMITS.disk_bytes or 0) // MIB}"

    def tree(self, sandbox: Sandbox) -> str:
        """A kill ends what the command started, whatever sessions it made."""
        seconds = 7000 + int(time.time()) % 1000
        handle = sandbox.run(f"exec python3 -c '{TREE.format(seconds=seconds)}'", timeout=0, wait=False)
        next(iter(handle))
        # What was forked may not have become a sleep yet.
        end = time.monotonic() + 20
        while (grown := len(_sleeping(seconds))) < 6 and time.monotonic() < end:
            time.sleep(0.2)
        handle.kill()
        code = handle.result.exit_code
        end = time.monotonic() + 20
        while (left := _sleeping(seconds)) and time.monotonic() < end:
            time.sleep(0.2)
        expect(grown == 6 and not left, f"{grown} sleeps before, {len(left)} after the kill")
        return f"{grown} sleeps in sessions of their own: 0 after the kill (exit {code})"

    def timeout(self, sandbox: Sandbox) -> str:
        """A command ends when its time is over."""
        began = time.monotonic()
        try:
            ended = sandbox.run("echo early; sleep 300; echo late", timeout=5)
        except CommandTimeoutError as error:
            expect("late" not in error.stdout, repr(error.stdout))
            return f"ended after {time.monotonic() - began:.1f} s of 300"
        raise AssertionError(repr(ended))

    def capture(self, sandbox: Sandbox) -> str:
        """A capture of a running sandbox has its files; the sandbox goes on."""
        sandbox.write("/root/keep", b"kept")
        handle = sandbox.run(
            "i=0; while :; do i=$((i+1)); echo $i > /root/count; sleep 0.05; done", timeout=0, wait=False
        )
        began = time.monotonic()
        snapshot = sandbox.capture_snapshot("captured")
        took = time.monotonic() - began
        before = sandbox.read("/root/count")
        end = time.monotonic() + 20
        while sandbox.read("/root/count") == before:
            expect(time.monotonic() < end, "nothing moves after the capture")
            time.sleep(0.2)
        handle.kill()
        with self.client.sandbox(snapshot_id=snapshot.id, timeout=READY_S) as copy:
            kept = copy.read("/root/keep")
        self.client.delete_snapshot(snapshot.id)
        expect(kept == b"kept", f"the copy has {kept!r}")
        return f"took {took:.1f} s; the copy has the file, the first goes on"

    def stop_and_start(self, sandbox: Sandbox) -> str:
        """Files outlive a stop."""
        sandbox.write("/root/keep", b"kept")
        began = time.monotonic()
        sandbox.stop()
        sandbox.start(timeout=READY_S)
        kept = sandbox.read("/root/keep")
        expect(kept == b"kept", f"after the start: {kept!r}")
        return f"{time.monotonic() - began:.1f} s for both"

    def tunnel(self, sandbox: Sandbox) -> str:
        """A port inside is reached from here."""
        sandbox.write("/root/keep", b"kept")
        handle = sandbox.run("exec python3 -m http.server 8000 --bind 127.0.0.1 -d /root", timeout=0, wait=False)
        with sandbox.tunnel(8000) as tunnel:
            body = _fetched(f"http://127.0.0.1:{tunnel.local_port}/keep")
        handle.kill()
        expect(body == b"kept", f"fetched {body!r}")
        return "a file over HTTP"

    def delete(self, sandbox: Sandbox) -> str:
        """Nothing of it stays in the state folder."""
        self.client.delete_sandbox(sandbox.name)
        left = [path.name for path in (self.folder / "sandboxes").glob("*")]
        expect(not left, f"left: {left}")
        return "no folder is left"


def _sleeping(seconds: int) -> list[str]:
    """Processes of this machine that sleep for so long."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes() == f"sleep\0{seconds}\0".encode():
                    found.append(entry.name)
            except OSError:
                continue
    return found


def _fetched(url: str) -> bytes:
    end = time.monotonic() + COMMAND_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def main() -> int:
    """Make the checks; the exit code says whether all held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", default="crun")
    parser.add_argument("--enforced", default="", help="the limits that this user can enforce here")
    parser.add_argument("--brief", action="store_true", help="no capture, tunnel, stop and start")
    told = parser.parse_args()
    report = Report(told.where)
    enforced = frozenset(filter(None, told.enforced.split(",")))
    made: list[Sandbox] = []
    with SandboxClient(
        mode="embedded",
        state_dir=told.folder,
        runtime=told.runtime,
        allow_unenforced_limits=enforced != LIMITED,
    ) as client:
        checks = Checks(client, told.folder, enforced)

        def create() -> str:
            began = time.monotonic()
            made.append(checks.create())
            return f"ready after {time.monotonic() - began:.1f} s"

        if not report.check("create", create):
            return 1
        sandbox = made[0]
        asked: dict[str, Callable[[Sandbox], str]] = {
            "what is enforced": checks.ready,
            **{f"{name} limit": getattr(checks, name) for name in sorted(enforced)},
            "tree kill": checks.tree,
            "timeout": checks.timeout,
        }
        if not told.brief:
            asked |= {"capture": checks.capture, "stop and start": checks.stop_and_start, "tunnel": checks.tunnel}
        asked["delete"] = checks.delete
        for name, check in asked.items():
            report.check(name, functools.partial(check, sandbox))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
