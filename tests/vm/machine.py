"""A machine in software emulation: boots, runs commands over ssh, and is gone when its block ends."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

__all__ = ["BOOT_S", "Deadline", "Machine", "Outcome", "running_machine"]

_MEMORY = "4G"
BOOT_S = 300
# Never the hypervisor, even where there is one: a run is the same on every machine. A thread for each of the guest's
# processors.
_ACCELERATOR = ("-accel", "tcg,thread=multi")
# What guards against other guests of one processor is dear in emulation, where there is none.
_KERNEL_WORDS = "quiet mitigations=off"
_CONSOLE_LINES = 40


class Deadline:
    """When everything has to be over: what is waited for gets what is left, at most."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self, at_most: float) -> float:
        """Seconds for a step that may take ``at_most``; at least one, so that its end is seen."""
        return max(1.0, min(at_most, self._end - time.monotonic()))


@attrs.frozen
class Outcome:
    """How a command in a guest ended; ``code`` is None when its time was over."""

    code: int | None
    output: str
    seconds: float


@attrs.frozen
class Machine:
    """A guest that answers."""

    process: subprocess.Popen[bytes]
    port: int
    key: Path
    console: Path
    deadline: Deadline

    def ssh(self, user: str = "root") -> list[str]:
        """The words that log in to the guest; what follows them is the command."""
        known = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes", "ConnectTimeout=60")
        alive = ("ServerAliveInterval=30", "ServerAliveCountMax=10")
        options = [word for option in (*known, *alive) for word in ("-o", option)]
        return ["ssh", "-F", "none", "-q", "-i", str(self.key), "-p", str(self.port), *options, f"{user}@127.0.0.1"]

    def run(self, command: str, *, user: str = "root", limit_s: float = 120, given: bytes = b"") -> Outcome:
        """Run a shell command in a login session of ``user``; its output and errors come together."""
        began = time.monotonic()
        with subprocess.Popen(
            [*self.ssh(user), command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                output, _ = process.communicate(given, timeout=self.deadline.left(limit_s))
                code: int | None = process.returncode
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                code = None
            finally:
                process.kill()  # where the run was told to end meanwhile
        return Outcome(code, output.decode(errors="replace"), time.monotonic() - began)

    def push(self, tree: Path, target: str, *, user: str = "root") -> None:
        """Bring a work tree's files (what git knows or would add) to ``target``, as if they had been cloned."""
        listed = subprocess.run(
            ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            check=True,
            capture_output=True,
        ).stdout.split(b"\0")
        there = b"\0".join(name for name in listed if name and (tree / name.decode()).exists())
        packed = subprocess.run(
            ["tar", "--create", "-C", str(tree), "--null", "--files-from=-"],
            check=True,
            capture_output=True,
            input=there,
        ).stdout
        place = shlex.quote(target)
        outcome = self.run(
            f"mkdir -p {place} && tar --extract --no-same-owner -C {place}", user=user, limit_s=180, given=packed
        )
        if outcome.code != 0:
            raise RuntimeError(f"the tree could not be brought into the guest: {outcome.output}")


@contextmanager
def running_machine(
    system: Path, supplies: Path, folder: Path, deadline: Deadline, *, boot_s: float = BOOT_S
) -> Iterator[Machine]:
    """Boot ``system`` with ``supplies`` beside it; what the guest writes goes to a file without a name.

    ``folder`` gets the console's text. The guest has no network but the port through which it is logged in to.
    """
    console = folder / "console.log"
    port = _free_port()
    process = subprocess.Popen(
        [
            # Should this process be killed, the emulator dies with it.
            *("setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-machine", "q35", *_ACCELERATOR),
            *("-cpu", "max", "-smp", "2", "-m", _MEMORY, "-display", "none", "-monitor", "none"),
            *("-no-reboot", "-serial", f"file:{console}", "-kernel", str(system / "vmlinuz")),
            *("-initrd", str(system / "initrd"), "-append", f"root=/dev/vda rw console=ttyS0 {_KERNEL_WORDS}"),
            *("-drive", f"file={system / 'system.img'},format=raw,if=virtio,snapshot=on,werror=report"),
            *("-drive", f"file={supplies / 'supplies.img'},format=raw,if=virtio,readonly=on"),
            *("-object", "rng-random,id=r,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=r"),
            *("-nic", f"user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "emulator.log").open("wb"),
    )
    try:
        machine = Machine(process, port, system / "key", console, deadline)
        _wait_until_up(machine, folder, boot_s)
        yield machine
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(machine: Machine, folder: Path, boot_s: float) -> None:
    """Wait until systemd says that the start is over; raises RuntimeError with the console's end."""
    end = time.monotonic() + machine.deadline.left(boot_s)
    outcome = Outcome(None, "", 0)
    while time.monotonic() < end and machine.process.poll() is None:
        # "running" or "degraded": the start is over either way, and the checks look at what they need.
        outcome = machine.run("systemctl is-system-running --wait", limit_s=end - time.monotonic())
        if outcome.output.strip() in {"running", "degraded"}:
            return
        time.sleep(1)
    told = machine.console.read_text(errors="replace").splitlines() if machine.console.exists() else []
    raise RuntimeError(
        "the guest did not start: "
        + "\n".join([outcome.output, (folder / "emulator.log").read_text(errors="replace"), *told[-_CONSOLE_LINES:]])
    )
