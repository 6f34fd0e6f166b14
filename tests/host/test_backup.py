"""Backups that are not whole are told from those that are, and nothing is left of one that fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio

from sandboxrt.engine.base import Layer
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.backup import archive as archive_module
from sandboxrt.host.backup import restore as restore_module
from sandboxrt.host.backup.archive import open_sealed
from sandboxrt.host.backup.create import back_up
from sandboxrt.host.backup.restore import restore
from sandboxrt.host.doctor.examine import examine
from sandboxrt.models import Limits
from sandboxrt.protocol.registries import CreateRegistry
from sandboxrt.snapshots.content import ImageConfig, SnapshotContent
from sandboxrt.store import SCHEMA_VERSION, KeyRecords, RegistryRecords, Store
from sandboxrt.store.examine import read_state
from tests.snapshots.conftest import small_disk

BLOCKS = os.urandom(3_000_000)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A state folder with a sandbox that rests, one that is being deleted, an embedded one, and a snapshot."""
    state = tmp_path / "state"
    async with Store.open(state) as store:
        base = await store.add_snapshot(name="base", kind="image", fs_capacity_bytes=2**30)
        layer = state / "snapshots" / base.id / "layer"
        (layer / "etc").mkdir(parents=True)
        (layer / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        os.setxattr(layer / "etc", "trusted.overlay.opaque", b"y")
        content = SnapshotContent((Layer(layer, "/"),), ImageConfig())
        await store.finish_snapshot(base.id, content=content.to_json(state / "snapshots"))
        await store.add_snapshot(name="half", kind="image", fs_capacity_bytes=1)
        for name, status, keep in (("rests", "stopped", True), ("going", "deleting", True), ("brief", "ready", False)):
            row = await store.add_sandbox(
                name=name, snapshot_id=base.id, limits=Limits(), keep=keep, ttl_seconds=3600, tenant="acme"
            )
            await store.set_sandbox_status(row.id, status)
            sandbox = state / "sandboxes" / row.engine_id
            sandbox.mkdir(parents=True, mode=0o700)
            with open(sandbox / "disk.img", "wb") as image:
                image.truncate(2**30)
                image.seek(2**29)
                image.write(BLOCKS)
        await KeyRecords(store).create("acme")
        await RegistryRecords(store).add(CreateRegistry(name="own", url="r.example", username="me", password="word"))
    return state


async def restored(backup: Path, folder: Path) -> Path:
    await restore(backup, folder)
    return folder


async def test_everything_that_counts(folder: Path, tmp_path: Path) -> None:
    made = await back_up(folder, tmp_path / "a.backup")
    assert [(item.kind, item.name, item.was) for item in made.contents.items] == [
        ("snapshot", "base", "ready"),
        ("sandbox", "rests", "stopped"),
    ]
    assert dict(made.contents.left_out) == {
        "snapshot half": "it is building",
        "sandbox going": "it is deleting",
        "sandbox brief": "it goes with the process that made it",
    }
    other = await restored(made.path, tmp_path / "other")
    assert {finding.kind.value for finding in examine(other).findings} == set()
    async with Store.open(other) as its, Store.open(folder) as ours:
        (row,) = await its.list_sandboxes()
        old = await ours.find_sandbox("rests", "acme")
        assert (row.id, row.status, row.uid_base, row.tenant) == (old.id, "stopped", old.uid_base, "acme")
        assert its.identity != ours.identity
        (snapshot,) = await its.snapshots_where()
        layer = SnapshotContent.from_json(snapshot.content or "", other / "snapshots").layers[0].path
        assert (layer / "etc" / "passwd").read_text() == "root:x:0:0::/root:/bin/sh\n"
        assert os.getxattr(layer / "etc", "trusted.overlay.opaque") == b"y"
        assert [key.tenant for key in await KeyRecords(its).list()] == ["acme"]
        registry = await RegistryRecords(its).find("own", "")
        assert (await RegistryRecords(its).login(registry.id, "")).password == "word"
        image = other / "sandboxes" / row.engine_id / "disk.img"
        assert image.stat().st_size == 2**30 and image.stat().st_blocks * 512 < 8_000_000
        with open(image, "rb") as file:
            file.seek(2**29)
            assert file.read(len(BLOCKS)) == BLOCKS


async def test_what_comes_and_goes_meanwhile(folder: Path, tmp_path: Path) -> None:
    """Made after the look around, and removed before, during and after its copy: what is in a backup is whole."""
    async with Store.open(folder) as store:
        for name in ("before", "during", "after"):
            old = await store.find_sandbox("rests", "acme")
            row = await store.add_sandbox(name=name, snapshot_id=old.snapshot_id, limits=Limits(), keep=True)
            await store.set_sandbox_status(row.id, "stopped")
            subprocess.run(
                ["cp", "-a", folder / "sandboxes" / old.engine_id, folder / "sandboxes" / row.engine_id], check=True
            )
        rows = {row.name: row for row in await store.list_sandboxes()}

    def change(statement: str, *arguments: str) -> None:
        with contextlib.closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as db:
            db.execute(statement, arguments)

    def remove(name: str) -> None:
        change("DELETE FROM sandboxes WHERE name = ?", name)
        shutil.rmtree(folder / "sandboxes" / rows[name].engine_id)

    def tell(what: str) -> None:
        if what == "snapshot base":
            remove("before")
            copied = {"id": str(uuid.uuid4()), "name": "new", "uid_block": 7}
            with contextlib.closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as db:
                columns = [row[1] for row in db.execute("PRAGMA table_info(sandboxes)") if row[1] != "seq"]
                picked = ", ".join(f"'{copied[each]}'" if each in copied else each for each in columns)
                db.execute(
                    f"INSERT INTO sandboxes ({', '.join(columns)}) SELECT {picked} FROM sandboxes WHERE name = 'rests'"
                )
        elif what == "sandbox during":
            remove("during")
        elif what == "sandbox after":
            remove("rests")

    made = await back_up(folder, tmp_path / "a.backup", tell=tell)
    assert {item.name for item in made.contents.items} == {"base", "after"}
    left_out = dict(made.contents.left_out)
    assert left_out["sandbox before"] == "its files are gone"
    assert left_out["sandbox during"] == left_out["sandbox rests"] == "it was deleted meanwhile"
    other = await restored(made.path, tmp_path / "other")
    async with Store.open(other) as store:
        assert [row.name for row in await store.list_sandboxes()] == ["after"]
    assert examine(other).findings == ()
    assert [path.name for path in (other / "sandboxes").iterdir()] == [rows["after"].engine_id]


async def test_into_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    made = await back_up(folder, tmp_path / "backups")
    assert list((tmp_path / "backups").iterdir()) == [made.path]


async def test_time_stands_still_in_a_backup(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await back_up(folder, tmp_path / "a.backup")
    day = datetime.now(UTC) + timedelta(days=1)

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return day

    monkeypatch.setattr(restore_module, "datetime", Tomorrow)
    other = await restored(made.path, tmp_path / "other")
    async with Store.open(other) as its, Store.open(folder) as ours:
        (new,), old = await its.list_sandboxes(), await ours.find_sandbox("rests", "acme")
        assert new.created_at == old.created_at
        assert 86_400 <= (new.ttl_seconds or 0) - (old.ttl_seconds or 0) <= 86_460
        assert (new.ttl_seconds or 0) % 60 == 0
        passed = datetime.fromisoformat(new.stopped_at or "") - datetime.fromisoformat(old.stopped_at or "")
        assert timedelta(hours=23, minutes=59) < passed < timedelta(hours=24, minutes=1)


def cut(length: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:length]


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


SPOILED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (cut(0), "no whole backup"),
    "one byte short": (cut(-1), "no whole backup"),
    "without seal": (cut(-2048), "no whole backup"),
    "half": (lambda content: content[: len(content) // 2], "no whole backup"),
    "a block too long": (lambda content: content + bytes(512), "no whole backup"),
    "first byte": (flip(0), "damaged"),
    "in the middle": (lambda content: flip(len(content) // 2)(content), "damaged"),
    "the list of contents": (flip(-2600), "damaged"),
    "another file": (lambda _: os.urandom(100_000), "no whole backup"),
    "a piece taken out": (lambda content: content[:512] + content[1024:], "damaged"),
}


@pytest.fixture
async def whole(folder: Path, tmp_path: Path) -> Path:
    return (await back_up(folder, tmp_path / "a.backup")).path


@pytest.mark.parametrize("name", SPOILED)
async def test_what_is_not_whole_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    spoil, words = SPOILED[name]
    whole.write_bytes(spoil(whole.read_bytes()))
    with pytest.raises(SandboxClientError, match=words) as caught:
        await restore(whole, tmp_path / "other")
    assert str(whole) in str(caught.value)
    assert not (tmp_path / "other").exists()


async def test_a_newer_schema_is_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_module, "SCHEMA_VERSION", SCHEMA_VERSION - 1)
    with pytest.raises(SandboxClientError, match=f"version {SCHEMA_VERSION}.*up to {SCHEMA_VERSION - 1}.*Upgrade"):
        await restore(whole, tmp_path / "other")
    assert not (tmp_path / "other").exists()


async def test_a_newer_format_is_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "FORMAT", 0)
    with pytest.raises(SandboxClientError, match="format 1, made by a newer sandboxrt"):
        await restore(whole, tmp_path / "other")


async def test_nothing_is_overwritten(whole: Path, folder: Path, tmp_path: Path) -> None:
    before = whole.read_bytes()
    with pytest.raises(SandboxClientError, match="exists already"):
        await back_up(folder, whole)
    assert whole.read_bytes() == before
    with pytest.raises(SandboxClientError, match="is not empty"):
        await restore(whole, folder)
    with pytest.raises(SandboxClientError, match="must not lie in the state folder"):
        await back_up(folder, folder / "a.backup")
    (tmp_path / "other").mkdir()
    await restore(whole, tmp_path / "other")
    with pytest.raises(SandboxClientError, match="is not empty"):
        await restore(whole, tmp_path / "other")


async def test_a_full_disk(whole: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("backups", "restored"):
        (tmp_path / name).mkdir(mode=0o700)
    with small_disk(tmp_path / "backups", 2_000_000):
        with pytest.raises(SandboxClientError, match="no room"):
            await back_up(folder, tmp_path / "backups")
        assert list((tmp_path / "backups").iterdir()) == []
    with small_disk(tmp_path / "restored", 2_000_000):
        with pytest.raises(SandboxClientError, match="no room"):
            await restore(whole, tmp_path / "restored")
        assert list((tmp_path / "restored").iterdir()) == []
        sealed = open_sealed(whole)
        # It was reckoned to fit, and somebody else takes the room meanwhile.
        small = attrs.evolve(sealed, contents=attrs.evolve(sealed.contents, unpacked_bytes=0))
        monkeypatch.setattr(restore_module, "open_sealed", lambda _: small)
        with pytest.raises(SandboxClientError, match="no room"):
            await restore(whole, tmp_path / "restored")
        assert list((tmp_path / "restored").iterdir()) == []


async def test_cancelled(whole: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "backups").mkdir()
    for what in ("snapshot base", "sandbox rests"):
        with trio.CancelScope() as scope:

            def tell(now: str, what: str = what, scope: trio.CancelScope = scope) -> None:
                if now == what:
                    scope.cancel()

            await back_up(folder, tmp_path / "backups", tell=tell)
        assert scope.cancelled_caught
        assert list((tmp_path / "backups").iterdir()) == []
    for seconds in (0.0, 0.02, 0.05, 0.1):
        with trio.move_on_after(seconds) as scope:
            await restore(whole, tmp_path / "other")
        if not scope.cancelled_caught:
            break
        assert not (tmp_path / "other").exists()


async def test_a_restore_that_is_killed(tmp_path: Path, whole: Path) -> None:
    slow = tmp_path / "bin" / "tar"
    slow.parent.mkdir()
    slow.write_text('#!/bin/sh\ncase $* in *--version*) exec /bin/tar "$@";; esac\n/bin/tar "$@"; echo; sleep 60\n')
    slow.chmod(0o755)
    program = "import sys, trio; from pathlib import Path; from sandboxrt.host.backup.restore import restore\n"
    program += "trio.run(restore, Path(sys.argv[1]), Path(sys.argv[2]))"
    environment = {**os.environ, "PATH": f"{slow.parent}:{os.environ['PATH']}"}
    killed = subprocess.Popen(
        [sys.executable, "-c", program, whole, tmp_path / "other"], env=environment, start_new_session=True
    )
    try:
        while not (tmp_path / "other" / "state.db").exists():
            assert killed.poll() is None
            await trio.sleep(0.02)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait(10)
    with pytest.raises(SandboxClientError, match=r"half restored.*restore again"):
        async with Store.open(tmp_path / "other"):
            raise AssertionError("half of a state folder was used")
    for use in (lambda: examine(tmp_path / "other"), lambda: read_state(tmp_path / "other")):
        with pytest.raises(SandboxClientError, match="half restored"):
            use()
    with pytest.raises(SandboxClientError, match="half restored"):
        await back_up(tmp_path / "other", tmp_path / "b.backup")


async def test_a_damaged_folder_is_not_backed_up(folder: Path, tmp_path: Path) -> None:
    (folder / "state.db").write_bytes(b"no database" * 1000)
    with pytest.raises(SandboxClientError, match=r"damaged.*doctor"):
        await back_up(folder, tmp_path / "a.backup")
    assert not (tmp_path / "a.backup").exists()


async def test_the_list_of_contents_can_be_read_by_any_tar(whole: Path) -> None:
    done = await trio.run_process(["tar", "-xOf", whole, "contents.json"], capture_stdout=True)
    assert json.loads(done.stdout)["schema"] == SCHEMA_VERSION
    done = await trio.run_process(["tar", "-tf", whole], capture_stdout=True, capture_stderr=True)
    assert done.stderr == b""
    names = done.stdout.decode().split()
    assert names[-2:] == ["contents.json", "seal.json"]
    assert any(name.startswith("sandboxes/") and name.endswith("/disk.img") for name in names)
