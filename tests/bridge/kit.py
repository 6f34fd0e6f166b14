"""What the tests of the bridge share: engines on its thread, and programs of their own."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import glob
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import trio

from sandboxrt.bridge.blocking import BlockingClient
from sandboxrt.bridge.portal import Portal
from sandboxrt.testing.fake import FakeEngine

_PR_SET_CHILD_SUBREAPER = 36
_CONTAINER_PROGRAMS = {"crun", ".init", "init", "launch"}
ROOT = Path(__file__).resolve().parent.parent.parent


@contextlib.contextmanager
def fake_engine() -> Iterator[FakeEngine]:
    """A fake engine entered and left on the bridge's trio thread."""
    engine = FakeEngine()
    with BlockingClient._of(engine, Portal(engine)):
        yield engine


def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.005)


@contextlib.contextmanager
def bounded(limit_s: float) -> Iterator[None]:
    """Fail when the block takes longer."""
    before = time.monotonic()
    yield
    taken_s = time.monotonic() - before
    assert taken_s < limit_s, f"took {taken_s:.1f} s"


@attrs.define
class Made:
    """Something that a call made, and that must be discarded if nobody receives it."""

    discarded: threading.Event = attrs.field(factory=threading.Event)
    tidy_s: float = 0.0

    async def _discard(self) -> None:
        await trio.sleep(self.tidy_s)
        self.discarded.set()


PRELUDE = """
import os, sys, threading, time
import sandboxrt
from tests.bridge.kit import fake_engine
"""


@attrs.define
class Program:
    """A Python program in a process of its own; its lines are read as they come."""

    process: subprocess.Popen[str]

    @classmethod
    @contextlib.contextmanager
    def start(cls, code: str, *, python: str = sys.executable, limit_s: float = 60.0) -> Iterator[Program]:
        """Run ``code`` after the prelude; the block's end kills what still runs."""
        _adopt_orphans(adopt=True)
        process = subprocess.Popen(
            [python, "-X", "faulthandler", "-W", "error::ResourceWarning", "-c", PRELUDE + textwrap.dedent(code)],
            cwd=ROOT,
            env=environment(python),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        killer = threading.Timer(limit_s, process.kill)
        killer.start()
        try:
            with process:
                yield cls(process)
        finally:
            killer.cancel()
            process.kill()
            reap_orphans()
            _adopt_orphans(adopt=False)

    def expect(self, line: str) -> None:
        """Wait for a line of its output."""
        assert self.process.stdout is not None and self.process.stderr is not None
        got = self.process.stdout.readline()
        assert got == f"{line}\n", got + (self.process.stderr.read() if not got else "")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def finish(self, code: int = 0, *, stderr: str = "") -> str:
        """Wait for its end; the rest of its output. ``stderr`` is the last line there."""
        stdout, complaints = self.process.communicate()
        assert self.process.returncode == code, complaints
        assert complaints.rstrip("\n").rpartition("\n")[2] == stderr, complaints
        return stdout


def _adopt_orphans(*, adopt: bool) -> None:
    """Become the parent of what programs leave dead behind: process 1 takes its time to reap, and leaks are counted."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def reap_orphans() -> None:
    """Take what ended containers left for their parent to read."""
    for path in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(OSError):  # the thread, or the child, is gone
            for pid in Path(path).read_text().split():
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if state == "Z" and Path(f"/proc/{pid}/comm").read_text().strip() in _CONTAINER_PROGRAMS:
                    os.waitpid(int(pid), os.WNOHANG)


def run(code: str, *, python: str = sys.executable, limit_s: float = 60.0) -> str:
    """Run a program to its good and silent end; its output."""
    with Program.start(code, python=python, limit_s=limit_s) as program:
        return program.finish()


def environment(python: str) -> dict[str, str]:
    """Where a program finds this tree and what it needs: all of that is pure Python, so any interpreter may load it."""
    if python == sys.executable:
        return {**os.environ, "PYTHONPATH": str(ROOT)}
    site = Path(attrs.__file__).resolve().parent.parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(site))), "PYTHONPYCACHEPREFIX": _byte_code()}


@functools.cache
def _byte_code() -> str:
    """A folder for what other interpreters compile, once for all tests."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return folder.name
