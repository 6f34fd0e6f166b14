"""Remote mode: our client beside the official one, on the same real server with real containers."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from benchmarks.listing import measure_listing
from benchmarks.report import Measurement
from benchmarks.samples import Case, interleave
from benchmarks.tunnels import measure_tunnels

__all__ = ["SERVED", "Served", "served"]

OFFICIAL = "langsmith 0.15.0"
REQUIREMENT = "langsmith[sandbox]==0.15.0"
SERVED = (
    "remote_round_trip",
    "remote_stream",
    "remote_concurrent",
    "remote_files",
    "remote_crowd",
    "remote_rush",
    "tunnels",
    "listing",
)
STREAM_BYTES = FILE_BYTES = 100_000_000
STREAM = f"head -c {STREAM_BYTES} /dev/zero | tr '\\0' x"
CROWD = (6, 50)
"""Sandboxes, and commands in each."""
CROWD_BYTES = 2_000_000
CROWD_COMMAND = (
    "exec /usr/bin/python3 -S -c 'import sys, time\n"
    'for _ in range(100): sys.stdout.write(("x" * 99 + "\\n") * 200); sys.stdout.flush(); time.sleep(0.1)\''
)
_DRIVERS = Path(__file__).parent / "drivers"
_WAIT_S = 60.0


@attrs.frozen
class Remote:
    """One client, in a process of its own, with a sandbox of its own."""

    process: subprocess.Popen[str]

    def ask(self, action: str, **order: Any) -> Any:
        """Have something done; how long it took, in seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"action": action, **order}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the driver ended with {self.process.wait(_WAIT_S)}")
        return json.loads(line)


@attrs.frozen
class Served:
    """The measurements, one method each."""

    clients: Mapping[str, Remote]
    server: int
    quick: bool
    folder: Path

    def remote_round_trip(self) -> list[Measurement]:
        """A command in a sandbox that is there."""
        seconds = self._measured("round_trip", per_round=10, rounds=20)
        samples = {name: [1000 * sample for sample in taken] for name, taken in seconds.items()}
        return [
            Measurement(
                "remote run round trip",
                "ms",
                samples,
                "below the official client's",
                note="`echo ok` over a WebSocket to a server on this machine, in a sandbox that is there already.",
            )
        ]

    def remote_stream(self) -> list[Measurement]:
        """One command's output."""
        seconds = self._measured("stream", rounds=11, command=STREAM, size=STREAM_BYTES)
        note = "100 MB of text from one command, to its result."
        return [self._rate("remote streaming 100 MB", seconds, STREAM_BYTES, note)]

    def remote_concurrent(self) -> list[Measurement]:
        """Many commands."""
        count = 20 if self.quick else 200
        seconds = self._measured("concurrent", rounds=11, count=count)
        return [
            Measurement(
                f"{count} concurrent remote commands",
                "/s",
                {name: [count / sample for sample in taken] for name, taken in seconds.items()},
                "above the official client's",
                higher_is_better=True,
                note="`echo ok`, all wanted at once, in one sandbox.",
            )
        ]

    def remote_files(self) -> list[Measurement]:
        """Uploads and downloads."""
        up = self._measured("upload", rounds=11, size=FILE_BYTES)
        down = self._measured("download", rounds=11, size=FILE_BYTES)
        return [
            self._rate("upload of 100 MB", up, FILE_BYTES, "From memory to a file in the sandbox."),
            self._rate("download of 100 MB", down, FILE_BYTES, "The other way."),
        ]

    def remote_rush(self) -> list[Measurement]:
        """A fresh client with many calls to make at once."""
        count = 100 if self.quick else 1000
        ours = self.clients["sandboxrt"]
        return [
            Measurement(
                f"{count} calls at once of a fresh client: longest pause of its loop",
                "ms",
                {"sandboxrt": [1000 * ours.ask("rush", count=count) for _ in range(2 if self.quick else 7)]},
                "at most 1,000 ms",
                note="`list_sandboxes`. Whatever else runs in the process stands still for so long.",
            )
        ]

    def remote_crowd(self) -> list[Measurement]:
        """Many commands that stream for ten seconds, and what they cost the server."""
        sandboxes, each = (2, 5) if self.quick else CROWD
        ours = self.clients["sandboxrt"]
        order = {"sandboxes": sandboxes, "count": each, "command": CROWD_COMMAND, "size": CROWD_BYTES}
        with _memory_watched(self.server) as peak:
            before = _proportional_kib(self.server)
            took: list[float] = ours.ask("crowd", **order)
        count = sandboxes * each
        return [
            Measurement(
                f"{count} commands streaming at once: time of each",
                "s",
                {"sandboxrt": took},
                "none lost, none starved",
                note=f"Each writes {CROWD_BYTES / 1e6:g} MB in 100 pieces, a tenth of a second between them; every "
                f"byte of each arrived. The slowest took {max(took) / statistics.median(took):.2f} times the median.",
            ),
            Measurement(
                f"server memory for {count} such commands",
                "MiB",
                {"sandboxrt": [max(0.0, (peak[0] - before) / 1024)]},
                "bounded",
                note=f"Growth of the server's proportional set size at its peak; {count * CROWD_BYTES / 1e6:g} MB went "
                "through it.",
            ),
        ]

    def tunnels(self) -> list[Measurement]:
        """TCP through tunnels."""
        return measure_tunnels(self.clients, self.folder, quick=self.quick)

    def listing(self) -> list[Measurement]:
        """Pages of many snapshots."""
        return measure_listing(self.clients, self.folder / "served", 3 if self.quick else 20)

    def _measured(self, action: str, *, rounds: int, per_round: int = 1, **order: Any) -> dict[str, list[float]]:
        cases = {
            name: Case(functools.partial(client.ask, action, **order), per_round=per_round)
            for name, client in self.clients.items()
        }
        return interleave(cases, rounds=3 if self.quick else rounds, warmup=1)

    def _rate(self, title: str, seconds: Mapping[str, list[float]], size: int, note: str) -> Measurement:
        samples = {name: [size / 1e6 / sample for sample in taken] for name, taken in seconds.items()}
        return Measurement(title, "MB/s", samples, "above the official client's", higher_is_better=True, note=note)


@contextlib.contextmanager
def served(folder: Path, *, quick: bool) -> Iterator[Served]:
    """A server, and a client of each kind that is connected to it."""
    official = _official(folder)
    with contextlib.ExitStack() as stack:
        process, url, key = stack.enter_context(_server(folder / "served"))
        clients = {
            "sandboxrt": stack.enter_context(
                _driver([sys.executable, "-m", "benchmarks.drivers.ours", f"{url}/v2/sandboxes", key])
            ),
            OFFICIAL: stack.enter_context(
                _driver([str(official), "-I", str(_DRIVERS / "official.py"), f"{url}/api/v2/sandboxes", key])
            ),
        }
        yield Served(clients, process.pid, quick, folder)


def _official(folder: Path) -> Path:
    told = os.environ.get("SANDBOXRT_TEST_CACHE", "").strip()
    place = (Path(told) if told else folder) / f"bench-{OFFICIAL.replace(' ', '-')}"
    if not (place / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True, timeout=300)
        pip = [str(place / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, REQUIREMENT], check=True, timeout=600)
        (place / "complete").touch()
    return place / "bin/python"


@contextlib.contextmanager
def _server(state_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    state_dir.mkdir()
    command = [sys.executable, "-m", "sandboxrt"]
    state = ["--state-dir", str(state_dir)]
    made = subprocess.run(
        [*command, "keys", "create", *state], check=True, capture_output=True, text=True, timeout=_WAIT_S
    )
    options = ["serve", "--port", "0", "--default-snapshot", "host", "--no-access-log", "--max-requests", "100000"]
    with _ending([*command, *options, *state], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        if not first.startswith("sandboxrt serves "):
            raise RuntimeError(f"the server does not start: {first}{process.stderr.read(4096)}")
        threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
        yield process, first.split()[2], made.stdout.strip()


def _drain(stream: Any) -> None:
    for line in stream:
        print(line, end="", file=sys.stderr)


@contextlib.contextmanager
def _driver(command: list[str]) -> Iterator[Remote]:
    with _ending(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Remote(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(_WAIT_S)


@contextlib.contextmanager
def _ending(command: list[str], **streams: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, text=True, **streams)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_WAIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _proportional_kib(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise RuntimeError(f"process {pid} has no proportional set size")


@contextlib.contextmanager
def _memory_watched(pid: int) -> Iterator[list[int]]:
    """A list of one number: the most memory, in KiB, that the process had in the block."""
    peak, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], _proportional_kib(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()
