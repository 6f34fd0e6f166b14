"""A state folder that cannot be used: the error names it and says what to do."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from sandboxrt.errors import SandboxClientError
from sandboxrt.store import SCHEMA_VERSION, LinkKeys, Store
from tests.snapshots.conftest import small_disk


async def _refused(folder: Path, *words: str) -> None:
    with pytest.raises(SandboxClientError) as caught:
        async with Store.open(folder):
            raise AssertionError("opened")
    for word in (str(folder), *words):
        assert word in str(caught.value)


async def test_it_is_made_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    async with Store.open(folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "owners").stat().st_mode) == 0o700
        for path in folder.glob("state.db*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    await _refused(tmp_path / "file", "is a file", "use another state folder")
    await _refused(tmp_path / "file" / "below", "is a file")


async def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with small_disk(tmp_path / "state", 1024**2):
        (tmp_path / "state" / "filler").write_bytes(bytes(1024**2 - 4096 * 4))
        await _refused(tmp_path / "state", "full", "free some space")
        (tmp_path / "state" / "filler").unlink()
        async with Store.open(tmp_path / "state") as store:
            await store.add_snapshot(name="before", kind="image", fs_capacity_bytes=1)
            with pytest.raises(SandboxClientError, match="free some space"), trio.fail_after(20):
                for number in range(10_000):
                    await store.add_snapshot(name="x" * 1000 + str(number), kind="image", fs_capacity_bytes=1)
            assert (await store.find_snapshot("before")).name == "before"


async def test_read_only(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with small_disk(tmp_path / "state", 1024**2):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "state")], check=True)
        await _refused(tmp_path / "state", "read-only", "use another state folder")


def test_not_writable_for_this_user(tmp_path: Path) -> None:
    program = """
import os, sys, trio
from sandboxrt.errors import SandboxClientError
from sandboxrt.store import Store
os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    try:
        async with Store.open(sys.argv[1]):
            print("opened")
    except SandboxClientError as error:
        print(error)
trio.run(main)
"""
    (tmp_path / "state").mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o011)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "state")], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"Cannot use the state folder {tmp_path / 'state'}" in done.stdout
    assert "not writable for this user" in done.stdout


async def test_a_newer_schema(tmp_path: Path) -> None:
    async with Store.open(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "state.db") as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 3}")
    await _refused(tmp_path, f"version {SCHEMA_VERSION + 3}", f"up to {SCHEMA_VERSION}", "Upgrade sandboxrt")
    assert os.listdir(tmp_path / "owners") == []


async def test_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_text("something else entirely" * 100)
    await _refused(tmp_path, "not a SQLite file")


async def test_many_open_an_empty_folder_at_once(tmp_path: Path) -> None:
    opened: list[str] = []

    async def one() -> None:
        async with Store.open(tmp_path / "state") as store:
            opened.append(store.owner_id)

    threads = [threading.Thread(target=trio.run, args=(one,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await trio.to_thread.run_sync(thread.join)
    assert len(set(opened)) == 8 and all(re.fullmatch(r"[0-9a-f]{32}", owner) for owner in opened)


def test_it_works_while_the_interpreter_exits(tmp_path: Path) -> None:
    # Python 3.12 and later start no thread then; the last clean-up must not need one.
    program = """
import atexit, sys, trio
from sandboxrt.store import Store
def last():
    async def main():
        async with Store.open(sys.argv[1]) as store:
            row = await store.add_snapshot(name="late", kind="image", fs_capacity_bytes=1)
            print((await store.find_snapshot("late")).id == row.id)
            await store.remove_snapshot(row.id)
    trio.run(main)
atexit.register(last)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


async def test_a_process_with_two_stores_notices_what_others_write(tmp_path: Path) -> None:
    """POSIX drops a process's locks on a file with the first descriptor that it closes."""
    program = (
        "import sys, trio; from pathlib import Path; from sandboxrt.store import LinkKeys, Store\n"
        "async def main():\n"
        "    async with Store.open(Path(sys.argv[1])) as store:\n"
        "        await LinkKeys(store).rotate('service', retire=True)\n"
        "trio.run(main)\n"
    )
    async with Store.open(tmp_path) as first, Store.open(tmp_path) as second:
        known = set()
        for _ in range(3):
            ids = {(await LinkKeys(store).keys("service"))[0].id for store in (first, second)}
            assert len(ids) == 1
            known |= ids
            await trio.run_process([sys.executable, "-c", program, str(tmp_path)])
        assert len(known) == 3
