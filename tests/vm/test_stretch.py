"""The factor for slow machines reaches every kind of time limit, and nothing that is tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.stretch import VARIABLE

ROOT = Path(__file__).resolve().parents[2]

# Its name makes it a module of ``tests``, so that what it calls counts as a test's; nothing in it waits for anything.
PROBE = """
import subprocess
import pytest, trio
from sandboxrt import AsyncSandboxClient, SandboxClient, aio
from tests.stretch import stretched

__name__ = "tests.probe"

@pytest.mark.timeout(7)
def test_marked(request):
    assert request.node.get_closest_marker("timeout").args == ({factor} * 7,)

def test_of_the_configuration(request, pytestconfig):
    assert request.node.get_closest_marker("timeout").args == ({factor} * float(pytestconfig.getini("timeout")),)

async def test_fail_after(autojump_clock):
    with trio.fail_after(5) as scope:
        assert scope.deadline - trio.current_time() == {factor} * 5

async def test_move_on_after_stays(autojump_clock):
    with trio.move_on_after(5) as scope:
        assert scope.deadline - trio.current_time() == 5

def test_processes(monkeypatch):
    seen = []
    process = subprocess.Popen(["true"])
    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "_wait", lambda process, timeout: seen.append(timeout) or 0)
        process.wait(3)
        process.wait(timeout=4)
        process.wait()
    process.wait()
    assert seen == [{factor} * 3, {factor} * 4, None]

def test_clients_wait_longer_for_what_becomes_ready():
    for client in (AsyncSandboxClient, SandboxClient, aio.AsyncSandboxClient):
        assert client.create_sandbox.__kwdefaults__["timeout"] == {factor} * 30

def test_told():
    assert stretched(2) == {factor} * 2
"""


def test_every_kind_of_limit_is_multiplied(tmp_path: Path) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text(PROBE.replace("{factor}", "6"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.stretching", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(probe)],
        cwd=ROOT,
        env={**os.environ, VARIABLE: "6"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed" in done.stdout
