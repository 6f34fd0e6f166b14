"""What is the same state folder, and what is another one: only the same place keeps its identity."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from sandboxrt.store import Store, container_id
from sandboxrt.store import identity as identity_module
from sandboxrt.store.examine import read_state
from sandboxrt.store.identity import IDENTITY_FILE, find_identity, settle_identity


async def identity_of(folder: Path) -> str:
    async with Store.open(folder) as store:
        assert find_identity(folder) == store.identity
        return store.identity


def copy(folder: Path) -> Path:
    subprocess.run(["cp", "-a", folder, folder.with_name("copy")], check=True)
    return folder.with_name("copy")


def restore_contents(folder: Path) -> Path:
    """As a backup is put back into the folder that it was made of."""
    kept = folder.with_name("kept")
    subprocess.run(["cp", "-a", folder, kept], check=True)
    held = os.open(folder / IDENTITY_FILE, os.O_RDONLY)  # or the file system might give its inode to the new file
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    subprocess.run(["cp", "-a", f"{kept}/.", folder], check=True)
    os.close(held)
    return folder


def exchange_by_a_hard_linked_copy(folder: Path) -> Path:
    other = folder.with_name("linked")
    other.mkdir(mode=0o700)
    os.link(folder / IDENTITY_FILE, other / IDENTITY_FILE)
    return other


def change(**values: object) -> Callable[[Path], Path]:
    def edit(folder: Path) -> Path:
        path = folder / IDENTITY_FILE
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return folder

    return edit


def spoil(text: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / IDENTITY_FILE).write_text(text)
        return folder

    return write


def rename(folder: Path) -> Path:
    return folder.rename(folder.with_name("moved"))


def link(folder: Path) -> Path:
    folder.with_name("link").symlink_to(folder)
    return folder.with_name("link")


SAME: dict[str, Callable[[Path], Path]] = {"as it was": lambda folder: folder, "renamed": rename, "a link to it": link}
OTHER: dict[str, Callable[[Path], Path]] = {
    "cp -a": copy,
    "contents put back": restore_contents,
    "hard links": exchange_by_a_hard_linked_copy,
    "a clone of the file system": change(device=1),
    "a reboot": change(boot="another"),
    "cut short": spoil('{"id": "00'),
    "not ours": spoil("[]"),
    "a name that leads elsewhere": change(id="../../../system"),
    "empty": spoil(""),
}


@pytest.mark.parametrize("name", SAME)
async def test_the_same_place(tmp_path: Path, name: str) -> None:
    before = await identity_of(tmp_path / "state")
    assert await identity_of(SAME[name](tmp_path / "state")) == before


@pytest.mark.parametrize("name", OTHER)
async def test_another_place(tmp_path: Path, name: str) -> None:
    before = await identity_of(tmp_path / "state")
    place = OTHER[name](tmp_path / "state")
    assert find_identity(place) is None
    if (place / "state.db").exists():
        found = await trio.to_thread.run_sync(read_state, place)
        assert found.container_id("0" * 32) is None, "nothing that runs is its own before it is opened"
    after, new = settle_identity(place)
    assert after != before and new
    assert settle_identity(place) == (after, False)
    assert container_id(after, "0" * 32) != container_id(before, "0" * 32)


async def test_the_original_keeps_its_own(tmp_path: Path) -> None:
    before = await identity_of(tmp_path / "state")
    await identity_of(copy(tmp_path / "state"))
    assert await identity_of(tmp_path / "state") == before


async def test_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await identity_of(tmp_path / "state")
    monkeypatch.setattr(identity_module, "_boot_id", lambda: "the next one")
    assert await identity_of(tmp_path / "state") != before


async def test_all_that_open_at_once_have_the_same(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    found: list[tuple[str, bool]] = []
    threads = [threading.Thread(target=lambda: found.append(settle_identity(tmp_path / "state"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await trio.to_thread.run_sync(thread.join)
    assert len({identity for identity, _ in found}) == 1 and [new for _, new in found].count(True) == 1
    assert os.listdir(tmp_path / "state") == [IDENTITY_FILE], "no drafts"
