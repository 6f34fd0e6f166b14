"""Processes share a state folder: who lives is never taken for dead, and who is dead is cleaned up once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trio

from sandboxrt.models import Limits
from sandboxrt.store import UID_BLOCK_BASE, UID_BLOCK_SIZE, Store

HAMMER = """
import sys, trio
from sandboxrt.models import Limits
from sandboxrt.store import Store

async def main():
    state, who, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    async with Store.open(state) as store:
        snapshot = await store.add_snapshot(name=who, kind="image", fs_capacity_bytes=1)
        await store.finish_snapshot(snapshot.id, content="{}")
        print(store.owner_id, flush=True)
        for number in range(rounds):
            row = await store.add_sandbox(name=f"{who}-{number}", snapshot_id=snapshot.id, limits=Limits())
            await store.set_sandbox_status(row.id, "ready")
            taken = [other for other in await store.list_sandboxes() if other.uid_base == row.uid_base]
            assert taken == [await store.find_sandbox(row.id)], taken
            assert store.owner_id not in await store.dead_owners()
            if number % 3:
                await store.remove_sandbox(row.id)
        print("done", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


def _hammer(state: Path, who: str, rounds: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", HAMMER, str(state), who, str(rounds)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        process.wait(10)
        assert process.stderr is not None
        raise AssertionError(process.stderr.read())
    return line


def _end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.wait(10)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


async def test_processes_hammer_one_folder_and_one_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    processes = [_hammer(state, f"p{number}", 60) for number in range(4)]
    try:
        owners = [_line(process) for process in processes]
        time.sleep(0.1)
        os.kill(processes[0].pid, signal.SIGKILL)
        processes[0].wait(10)
        for process in processes[1:]:
            assert _line(process) == "done"
        async with Store.open(state) as store:
            rows = await store.list_sandboxes()
            assert len({row.uid_base for row in rows}) == len(rows)
            assert {row.owner_id for row in rows} <= set(owners)
            assert await store.dead_owners() == (owners[0],)
            left = await store.sandboxes_of(owners[0])
            async with store.claim_owner(owners[0]) as claimed:
                assert claimed
                await store.forget_owner(owners[0])
            assert await store.dead_owners() == ()
            assert await store.sandboxes_of(owners[0]) == ()
            survivors = await store.list_sandboxes()
            assert len(survivors) == len(rows) - len(left) == 3 * 20
            snapshot_id = survivors[0].snapshot_id
            for row in left:
                # The dead owner's blocks are free again.
                number = (row.uid_base - UID_BLOCK_BASE) // UID_BLOCK_SIZE
                monkeypatch.setattr("secrets.randbelow", lambda _, number=number: number)
                again = await store.add_sandbox(name=f"again-{number}", snapshot_id=snapshot_id, limits=Limits())
                assert again.uid_base == row.uid_base
    finally:
        _end(*processes)


async def test_blocks_of_the_dead_stay_taken_until_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = _hammer(tmp_path / "state", "p", 1)
    try:
        owner = _line(process)
        assert _line(process) == "done"
    finally:
        _end(process)
    async with Store.open(tmp_path / "state") as store:
        (old,) = await store.sandboxes_of(owner)
        monkeypatch.setattr("secrets.randbelow", lambda _: (old.uid_base - UID_BLOCK_BASE) // UID_BLOCK_SIZE)
        new = await store.add_sandbox(name="new", snapshot_id=old.snapshot_id, limits=Limits())
        assert new.uid_base != old.uid_base


async def test_living_owners_of_other_threads_and_of_this_one(tmp_path: Path) -> None:
    ready, leave = threading.Event(), threading.Event()

    async def live() -> None:
        async with Store.open(tmp_path / "state"):
            ready.set()
            await trio.to_thread.run_sync(leave.wait)

    thread = threading.Thread(target=trio.run, args=(live,))
    thread.start()
    try:
        await trio.to_thread.run_sync(ready.wait)
        async with Store.open(tmp_path / "state") as one, Store.open(tmp_path / "state") as two:
            assert await one.dead_owners() == await two.dead_owners() == ()
            for owner in os.listdir(tmp_path / "state" / "owners"):
                async with one.claim_owner(owner.removesuffix(".lock")) as claimed:
                    assert not claimed
    finally:
        leave.set()
        await trio.to_thread.run_sync(thread.join)


async def test_an_owner_that_leaves_nothing_needs_no_cleaner(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "state"):
        assert len(os.listdir(tmp_path / "state" / "owners")) == 1
    assert os.listdir(tmp_path / "state" / "owners") == []


async def _dead_owner(state: Path) -> str:
    async with Store.open(state) as store:
        snapshot = await store.add_snapshot(name="x", kind="image", fs_capacity_bytes=1)
        await store.finish_snapshot(snapshot.id, content="{}")
        await store.add_sandbox(name="left", snapshot_id=snapshot.id, limits=Limits())
        return store.owner_id


async def test_one_cleaner_among_many(tmp_path: Path) -> None:
    owner = await _dead_owner(tmp_path / "state")
    cleaned: list[str] = []
    inside = 0

    async def clean(store: Store) -> None:
        nonlocal inside
        await store.dead_owners()
        async with store.claim_owner(owner) as claimed:
            if not claimed:
                return
            inside += 1
            assert inside == 1
            cleaned.append(store.owner_id)
            await trio.sleep(0.02)
            await store.forget_owner(owner)
            inside -= 1

    async def one() -> None:
        async with Store.open(tmp_path / "state") as store:
            await clean(store)
            await clean(store)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
    assert len(cleaned) == 1
    assert os.listdir(tmp_path / "state" / "owners") == []


async def test_a_cleaner_that_gives_up_leaves_it_to_the_next(tmp_path: Path) -> None:
    owner = await _dead_owner(tmp_path / "state")
    async with Store.open(tmp_path / "state") as store:
        with pytest.raises(KeyError):
            async with store.claim_owner(owner):
                assert await store.dead_owners() == ()
                raise KeyError
        assert await store.dead_owners() == (owner,)
        with pytest.raises(ValueError, match="not claimed"):
            await store.forget_owner(owner)
        async with store.claim_owner(owner) as claimed:
            assert claimed


async def test_a_lost_lock_file_does_not_keep_its_sandboxes(tmp_path: Path) -> None:
    owner = await _dead_owner(tmp_path / "state")
    (tmp_path / "state" / "owners" / f"{owner}.lock").unlink()
    async with Store.open(tmp_path / "state") as store:
        assert await store.dead_owners() == (owner,)
        async with store.claim_owner(owner) as claimed:
            assert claimed
            await store.forget_owner(owner)
        assert await store.list_sandboxes() == ()


async def test_children_do_not_keep_an_owner_alive(tmp_path: Path) -> None:
    program = """
import os, subprocess, sys, trio
from sandboxrt.models import Limits
from sandboxrt.store import Store

async def main():
    async with Store.open(sys.argv[1]) as store:
        snapshot = await store.add_snapshot(name="x", kind="image", fs_capacity_bytes=1)
        await store.finish_snapshot(snapshot.id, content="{}")
        await store.add_sandbox(name="left", snapshot_id=snapshot.id, limits=Limits())
        sleeper = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
        forked = os.fork()
        if not forked:
            os.close(1)
            import time; time.sleep(60); os._exit(0)
        print(store.owner_id, sleeper.pid, forked, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "state")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    owner, *children = process.stdout.readline().split()
    try:
        async with Store.open(tmp_path / "state") as store:
            assert await store.dead_owners() == ()
            process.kill()
            process.wait(10)
            assert await store.dead_owners() == (owner,)
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
