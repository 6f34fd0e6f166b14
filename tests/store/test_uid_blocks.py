"""Blocks of user ids are one sandbox's on the whole machine, whatever folder it is in, and end with their holder."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandboxrt.errors import QuotaExceededError, SandboxClientError
from sandboxrt.models import Limits
from sandboxrt.store import SandboxRow, Store
from sandboxrt.store import uid_blocks as module
from sandboxrt.store.uid_blocks import UidBlocks


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "REGISTRY", tmp_path / "run" / "uid-blocks")
    return tmp_path / "run" / "uid-blocks"


@pytest.fixture
def same_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody tries the same block first."""
    monkeypatch.setattr("secrets.randbelow", lambda _: 77)


async def add(store: Store, name: str = "box", *, keep: bool = False) -> SandboxRow:
    snapshot = await store.add_snapshot(name="s", kind="image", fs_capacity_bytes=1)
    await store.finish_snapshot(snapshot.id, content="{}")
    return await store.add_sandbox(name=name, snapshot_id=snapshot.id, limits=Limits(), keep=keep)


def test_one_holder(registry: Path) -> None:
    first, second = UidBlocks(registry), UidBlocks(registry)
    assert first.hold(5) and first.hold(5) and first.holds(5)
    assert not second.hold(5) and not second.holds(5)
    assert second.hold(4) and second.hold(6)
    first.free(5)
    first.free(5)
    assert second.hold(5) and not first.hold(5)
    second.close()
    second.close()
    assert first.hold(5) and first.hold(4)
    first.close()


def test_ordinary_users_have_none_to_keep_apart() -> None:
    first, second = UidBlocks(None), UidBlocks(None)
    assert first.hold(5) and second.hold(5) and second.holds(5)


def test_locks_end_with_their_holder(registry: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from sandboxrt.store.uid_blocks import UidBlocks\n"
        "print(UidBlocks(Path(sys.argv[1])).hold(5), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, registry]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        blocks = UidBlocks(registry)
        assert not blocks.hold(5)
        holder.kill()
        holder.wait(10)
        assert blocks.hold(5)
        blocks.close()


def test_a_forked_child_does_not_keep_them(registry: Path) -> None:
    context = multiprocessing.get_context("fork")
    forked = context.Event()

    def live() -> None:
        forked.set()
        signal.pause()

    first, second = UidBlocks(registry), UidBlocks(registry)
    assert first.hold(5)
    child = context.Process(target=live)
    child.start()
    try:
        assert forked.wait(10)
        assert not second.hold(5)
        first.close()
        assert second.hold(5)
    finally:
        second.close()
        child.kill()
        child.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="blocks are root's")
@pytest.mark.usefixtures("same_block")
async def test_two_folders(registry: Path, tmp_path: Path) -> None:
    async with Store.open(tmp_path / "a") as a, Store.open(tmp_path / "b") as b:
        first, second = await add(a), await add(b)
        assert first.uid_base != second.uid_base
        assert await a.secure_block(first) == first
        await a.remove_sandbox(first.id)
        assert (await add(b, "another")).uid_base == first.uid_base


@pytest.mark.skipif(os.geteuid() != 0, reason="blocks are root's")
@pytest.mark.usefixtures("same_block")
async def test_one_that_was_given_away_is_seen_at_the_start(registry: Path, tmp_path: Path) -> None:
    async with Store.open(tmp_path / "a") as a:
        old = await add(a, keep=True)
        shutil.copytree(tmp_path / "a", tmp_path / "copy")
        (tmp_path / "copy").chmod(0o700)
        async with Store.open(tmp_path / "copy") as copy:
            async with copy.claim_owner(a.owner_id) as claimed:
                assert claimed
                (row,) = await copy.adopt_sandboxes({old.id: "stopped"})
            assert row.uid_base == old.uid_base
            moving = await copy.secure_block(row)
            assert moving.uid_base != old.uid_base and moving.moved_from == old.uid_base
            # Whoever dies in the middle finds it so.
            assert await copy.secure_block(moving) == moving == await copy.find_sandbox(old.id)
            await copy.owners_moved(moving.id)
            moved = await copy.find_sandbox(old.id)
            assert (moved.uid_base, moved.moved_from) == (moving.uid_base, None)
            assert await copy.secure_block(moved) == moved
        assert await a.secure_block(old) == old


@pytest.mark.skipif(os.geteuid() != 0, reason="blocks are root's")
async def test_all_are_taken_elsewhere(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxrt.store.store.UID_BLOCK_COUNT", 2)
    others = UidBlocks(registry)
    assert others.hold(0) and others.hold(1)
    async with Store.open(tmp_path / "a") as store:
        with pytest.raises(QuotaExceededError):
            await add(store)
        others.free(1)
        assert (await add(store, "fits")).uid_base == 0x20010000
    others.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("how", ["another's", "writable", "a file"])
async def test_a_registry_of_others_is_refused(registry: Path, tmp_path: Path, how: str) -> None:
    if how == "a file":
        registry.parent.touch()
    else:
        registry.parent.mkdir()
    if how == "another's":
        os.chown(registry.parent, 65534, 65534)
    elif how == "writable":
        registry.parent.chmod(0o777)
    async with Store.open(tmp_path / "a") as store:
        with pytest.raises(SandboxClientError, match=r"user ids of this machine.*RuntimeDirectory"):
            await add(store)
