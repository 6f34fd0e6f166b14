"""A real ``sandboxrt serve`` in a process of its own, started as an operator would."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from tests.stretch import stretched

_START_S = 30.0
_STOP_S = 30.0


@attrs.define
class Serving:
    """A server that runs.

    Attributes:
        url: Its address, without a path.
        key: An API key of its only tenant.
        state_dir: Its state folder.
        process: Itself.
    """

    url: str
    key: str
    state_dir: Path
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """Let it die without a word."""
        self.process.kill()
        self.process.wait(_STOP_S)

    def stop(self) -> int:
        """Stop it politely; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOP_S)


@contextlib.contextmanager
def serving(
    state_dir: Path, *options: str, port: int = 0, key: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Serving]:
    """A server on loopback for the length of the block; leaving it stops the server where it still runs.

    Args:
        state_dir: Its state folder.
        options: More of the command line's.
        port: 0 takes a free one.
        key: An API key from an earlier start; a new one is made otherwise.
        environment: Added to this process's.
    """
    surroundings = {**os.environ, **(environment or {})}
    command = [sys.executable, "-m", "sandboxrt"]
    state = ("--state-dir", str(state_dir))
    if key is None:
        made = subprocess.run(
            [*command, "keys", "create", *state], check=True, capture_output=True, text=True, timeout=60
        )
        key = made.stdout.strip()
    log = state_dir / "server.log"
    with log.open("a+") as errors:
        start = errors.tell()
        process = subprocess.Popen(
            [*command, "serve", "--port", str(port), "--default-snapshot", "host", "--no-access-log", *state, *options],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            env=surroundings,
        )
    try:
        yield Serving(_address(process, log, start), key, state_dir, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[str], log: Path, start: int) -> str:
    deadline = time.monotonic() + stretched(_START_S)
    while time.monotonic() < deadline and process.poll() is None:
        with log.open() as lines:
            lines.seek(start)
            for line in lines:
                if line.startswith("sandboxrt serves ") and line.endswith("\n"):
                    return line.split()[2]
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise AssertionError(f"the server does not start: {log.read_text()[-2000:]}")
