"""``sandboxrt serve`` as a unit of systemd, and in a login session: restarted, killed, stopped; nothing is left.

Run as root, as ``python -m tests.vm.guest.service unit|session FOLDER``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import attrs

from sandboxrt import SandboxClient
from tests.leaks import Footprint
from tests.vm.guest.report import Report, expect

UNIT = Path("/etc/systemd/system/sandboxrt.service")
PORT = 8080
URL = f"http://127.0.0.1:{PORT}"
START_S = 120
READY_S = 240
COMMAND_S = 120
STOP_S = 120
SETTLE_S = 30

UNIT_TEXT = """[Unit]
Description=sandboxrt
After=network.target
[Service]
WorkingDirectory={tree}
Environment=HOME=/root
ExecStart={python} -m sandboxrt serve {options}
Delegate=yes
KillMode=mixed
TimeoutStopSec={stop_s}
Restart=on-failure
RestartSec=1
[Install]
WantedBy=multi-user.target
"""


def _options(folder: Path) -> list[str]:
    return ["--default-snapshot", "host", "--state-dir", str(folder), "--port", str(PORT), "--insecure-no-auth"]


@attrs.frozen
class Unit:
    """A service of systemd's."""

    folder: Path

    def install(self) -> None:
        text = UNIT_TEXT.format(
            tree=Path.cwd(), python=sys.executable, options=" ".join(_options(self.folder)), stop_s=STOP_S
        )
        UNIT.write_text(text)
        _systemctl("daemon-reload")

    def start(self) -> None:
        _systemctl("start", UNIT.name)

    def restart(self) -> None:
        _systemctl("restart", UNIT.name)

    def kill(self) -> None:
        """SIGKILL to the server alone; systemd starts it anew by itself."""
        _systemctl("kill", "--kill-whom=main", "--signal=KILL", UNIT.name)

    def revive(self) -> None:
        """Nothing to do: Restart=on-failure."""

    def stop(self) -> None:
        _systemctl("stop", UNIT.name)
        status = _systemctl("show", "--property=Result", "--value", UNIT.name).strip()
        expect(status == "success", f"the unit's stop ended with {status}")

    def remove(self) -> None:
        UNIT.unlink()
        _systemctl("daemon-reload")

    def group(self) -> str:
        """The control group that systemd gave to the service."""
        return _systemctl("show", "--property=ControlGroup", "--value", UNIT.name).strip()


@attrs.define
class Session:
    """A server started by hand in the login session that this program runs in."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    def install(self) -> None:
        """Nothing: it is only started."""

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandboxrt", "serve", *_options(self.folder), "--no-access-log"],
            stdout=subprocess.DEVNULL,
        )

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S)

    def revive(self) -> None:
        self.start()

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_S)
        expect(code == 0, f"the server ended with {code}")

    def remove(self) -> None:
        """End it, should a check have failed in between."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def group(self) -> str:
        """Sandboxes of root outside of a unit are grouped by whom systemd lets; nothing is expected of where."""
        return ""


def _systemctl(*arguments: str) -> str:
    done = subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, timeout=STOP_S + START_S, check=False
    )
    expect(done.returncode == 0, f"systemctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _healthy() -> float:
    """Wait until the server answers; how long it took."""
    began = time.monotonic()
    while True:
        try:
            with urllib.request.urlopen(f"{URL}/healthz", timeout=10):
                return time.monotonic() - began
        except OSError as error:
            expect(time.monotonic() - began < START_S, f"no answer after {START_S} s: {error}")
            time.sleep(0.3)


def _groups_of_sandboxes() -> list[str]:
    """The control groups of all processes in pid namespaces of their own."""
    ours, found = os.readlink("/proc/self/ns/pid"), set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns/pid") != ours:
                    found.add((entry / "cgroup").read_text().strip().removeprefix("0::"))
            except OSError:
                continue
    return sorted(found)


@attrs.define
class Life:
    """A server's life with one sandbox, step by step; each is a check."""

    server: Unit | Session
    client: SandboxClient
    name: str = "kept"

    def starts(self) -> str:
        self.server.install()
        self.server.start()
        return f"answers after {_healthy():.1f} s"

    def runs(self) -> str:
        """A sandbox runs, and what it was told to keep is written."""
        sandbox = self.client.create_sandbox(name=self.name, timeout=READY_S)
        sandbox.write("/root/keep", b"kept")
        said = sandbox.run("echo $((6 * 7))", timeout=COMMAND_S).stdout
        expect(said == "42\n", repr(said))
        return "a command ran, a file was written"

    def is_below_its_group(self) -> str:
        """What runs in sandboxes counts as the service's."""
        groups, own = _groups_of_sandboxes(), self.server.group()
        expect(groups and all(group.startswith(f"{own}/") for group in groups), f"in {groups}, not below {own}")
        return f"{own or 'groups'}: {len(groups)} below it"

    def is_restarted(self) -> str:
        """After a restart the sandbox is stopped, and starts with its files."""
        self.server.restart()
        took = _healthy()
        self._starts_again()
        return f"answers after {took:.1f} s; the sandbox starts with its files"

    def is_killed(self) -> str:
        """After a SIGKILL of the server alone its containers are dead, and the next start goes on."""
        self.server.kill()
        self.server.revive()
        took = _healthy()
        self._starts_again()
        return f"answers after {took:.1f} s; the sandbox starts with its files"

    def _starts_again(self) -> None:
        sandbox = self.client.get_sandbox(self.name)
        expect(sandbox.status == "stopped", f"the sandbox is {sandbox.status}")
        sandbox.start(timeout=READY_S)
        kept = sandbox.read("/root/keep")
        expect(kept == b"kept", f"the file has {kept!r}")

    def is_stopped(self) -> str:
        """The last sandbox goes, the server stops politely."""
        self.client.delete_sandbox(self.name)
        self.server.stop()
        return "ended by itself, with success"


def _watched(server: Unit | Session, report: Report) -> None:
    folder = server.folder
    before = Footprint.take(folder)
    with SandboxClient(api_endpoint=f"{URL}/v2/sandboxes", api_key="none") as client:
        life = Life(server, client)
        checks: dict[str, Callable[[], str]] = {"start": life.starts, "sandbox": life.runs}
        if isinstance(server, Unit):
            checks["the sandbox is below the unit's group"] = life.is_below_its_group
        checks |= {"restart": life.is_restarted, "kill -9": life.is_killed, "stop": life.is_stopped}
        try:
            for name, check in checks.items():
                if not report.check(name, check) and name in {"start", "sandbox"}:
                    break
        finally:
            server.remove()

    def nothing_left() -> str:
        end = time.monotonic() + SETTLE_S
        while left := Footprint.take(folder).more_than(before):
            left.pop("descriptors", None)  # this program's own
            if not left:
                break
            expect(time.monotonic() < end, f"left: {left}")
            time.sleep(0.5)
        return "no group, loop device, mount, process or folder more than before"

    report.check("nothing is left", nothing_left)


def main() -> int:
    """Make the checks of one way to run a server; the exit code says whether all held."""
    how, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    servers: dict[str, tuple[str, Unit | Session]] = {
        "unit": ("serve as a unit with Delegate=yes", Unit(folder)),
        "session": ("serve in a login session", Session(folder)),
    }
    where, server = servers[how]
    report = Report(where)
    _watched(server, report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
