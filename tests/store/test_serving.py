"""One process serves a state folder: the lock ends with it, however it ends, and belongs to no copy of the folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from sandboxrt.errors import SandboxClientError
from sandboxrt.store import Store
from sandboxrt.store.serving import ServingLock, incumbent

HOLDER = """
import os, sys, time
from pathlib import Path
from sandboxrt.store.serving import ServingLock
with ServingLock.held(Path(sys.argv[1])) as lock:
    lock.announce("http://127.0.0.1:1234")
    print("held", flush=True)
    if sys.argv[2] == "fork" and os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    async def make() -> None:
        async with Store.open(tmp_path / "state"):
            pass

    trio.run(make)
    return tmp_path / "state"


def holder(folder: Path, how: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, folder, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_is_first(folder: Path) -> None:
    with holder(folder) as first:
        found = incumbent(folder)
        assert found is not None
        assert (found.pid, found.url) == (first.pid, "http://127.0.0.1:1234")
        with pytest.raises(SandboxClientError) as caught, ServingLock.held(folder):
            pass
        for word in (str(folder), f"process {first.pid}", "http://127.0.0.1:1234", f"kill {first.pid}", "--state-dir"):
            assert word in str(caught.value)
        assert incumbent(folder) == found, "the refused one has changed nothing"
    assert incumbent(folder) is None
    with ServingLock.held(folder), pytest.raises(SandboxClientError, match="is starting"), ServingLock.held(folder):
        pass


def test_a_killed_one_is_none(folder: Path) -> None:
    with holder(folder) as first:
        first.kill()
    said = json.loads((folder / "server.json").read_text())
    # Its process id is somebody's again.
    (folder / "server.json").write_text(json.dumps({**said, "pid": os.getpid()}))
    assert incumbent(folder) is None
    with ServingLock.held(folder):
        assert incumbent(folder) is not None


def test_what_it_forked_does_not_hold_it(folder: Path) -> None:
    with holder(folder, "fork") as first:
        assert first.stdout is not None
        child = int(first.stdout.readline())
        first.kill()
        first.wait(10)
        try:
            with ServingLock.held(folder):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_fork_of_this_process_does_not_hold_it(folder: Path) -> None:
    context = multiprocessing.get_context("fork")
    forked = context.Event()

    def live() -> None:
        forked.set()
        signal.pause()

    with ServingLock.held(folder):
        child = context.Process(target=live)
        child.start()
        assert forked.wait(10)
    try:
        with ServingLock.held(folder):
            pass
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("how", ["-a", "-al"])
def test_a_copy_is_free(folder: Path, how: str) -> None:
    with ServingLock.held(folder) as lock:
        lock.announce("http://127.0.0.1:1")
        copy = folder.with_name("copy")
        subprocess.run(["cp", how, folder, copy], check=True)
        assert incumbent(copy) is None
        with ServingLock.held(copy):
            assert incumbent(folder) is not None


def test_it_cannot_be_tidied_away(folder: Path) -> None:
    with ServingLock.held(folder):
        for path in folder.iterdir():
            if path.is_file() and not path.name.startswith("state.db"):
                path.unlink()
        with pytest.raises(SandboxClientError, match="another process"), ServingLock.held(folder):
            pass


async def test_a_hard_linked_copy_is_refused(folder: Path) -> None:
    copy = folder.with_name("copy")
    subprocess.run(["cp", "-al", folder, copy], check=True)
    with pytest.raises(SandboxClientError, match="one file in two folders") as caught:
        async with Store.open(copy):
            pass
    assert str(copy) in str(caught.value)
    database = copy / "state.db"
    subprocess.run(f"cp -p {database} {database}.own && mv {database}.own {database}", shell=True, check=True)
    async with Store.open(copy) as its, Store.open(folder) as ours:
        assert its.identity != ours.identity
