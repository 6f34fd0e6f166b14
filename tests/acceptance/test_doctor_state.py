"""A real state folder is damaged in one way at a time: the doctor sees just that, and mends what is safe to mend.

The folder has a stopped sandbox with a precious file, the built-in snapshot, a capture and an image.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import trio
from cryptography.fernet import Fernet

from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.hierarchy import this_host
from sandboxrt.engine.remains import find_remains, record_folder
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.doctor.examine import examine
from sandboxrt.host.doctor.findings import Kind
from sandboxrt.host.doctor.repair import Repaired, repair
from sandboxrt.host.opening import default_engine, open_host
from sandboxrt.models import Limits
from sandboxrt.protocol.registries import CreateRegistry
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox, CreateSnapshot
from sandboxrt.store import Store, container_id
from sandboxrt.store.database import _MIGRATIONS, SCHEMA_VERSION
from sandboxrt.store.identity import find_identity, settle_identity
from sandboxrt.store.vault import KEY_FILE
from sandboxrt.testing.conformance import run
from tests.images.catalogue import Catalogue
from tests.leaks import assert_nothing_left

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

PRECIOUS = "/root/precious"
KEEPER = """
import sys, trio
from sandboxrt.host.config import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import run

async def main():
    async with open_host(HostConfig(state_dir=sys.argv[1], keep=True)) as host:
        await host.start_sandbox("kept")
        print("ready", flush=True)
        await trio.sleep(60)

trio.run(main)
"""


@attrs.frozen
class Place:
    """A state folder to be damaged."""

    folder: Path
    sandbox: str
    shot: str
    tiny: str

    @property
    def sandbox_folder(self) -> Path:
        return self.folder / "sandboxes" / self.sandbox.replace("-", "")

    @property
    def container(self) -> str:
        identity = find_identity(self.folder)
        assert identity is not None
        return container_id(identity, self.sandbox_folder.name)

    def snapshot(self, name: str) -> Path:
        return self.folder / "snapshots" / name

    def execute(self, statement: str, *arguments: object) -> None:
        with contextlib.closing(sqlite3.connect(self.folder / "state.db", isolation_level=None)) as db:
            db.execute(statement, arguments)

    def one(self, statement: str) -> object:
        with contextlib.closing(sqlite3.connect(self.folder / "state.db")) as db:
            row = db.execute(statement).fetchone()
        return row and row[0]

    def seal(self) -> dict[str, tuple[object, ...]]:
        """What changes when anything in the folder does, by name: kind, owner, times, size and contents."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            stat = path.lstat()
            # Not the blocks: those of what was written a moment ago change when the file system finds places for it.
            facts = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_size, stat.st_mtime_ns)
            is_small = path.is_file() and stat.st_size < 2**24 and not path.is_symlink()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if is_small else ""
            found[str(path.relative_to(self.folder))] = (*facts, content)
        return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, catalogue: Catalogue) -> Place:
    folder = tmp_path_factory.mktemp("whole")

    async def fill() -> Place:
        async with open_host(HostConfig(state_dir=folder, keep=True)) as host:
            made = await host.create_sandbox(CreateSandbox(name="kept", idle_ttl_seconds=0))
            await run(host, "kept", f"echo kept > {PRECIOUS}; sync")
            shot = await host.capture_snapshot("kept", CaptureSnapshot(name="shot"))
            login = CreateRegistry(name="own", url="registry.example", username="me", password="of-no-use")
            await host.registries.create(login)
            image = CreateSnapshot(
                name="tiny", tag="1", docker_image=catalogue.reference("tiny:1"), fs_capacity_bytes=2**30
            )
            tiny = await host.create_snapshot(image)
            for snapshot in (shot, tiny):
                await host.wait_for_snapshot(snapshot.id, 60)
            assert made.id is not None
            return Place(folder, made.id, shot.id, tiny.id)

    return trio.run(fill)


@pytest.fixture
def place(whole: Place, tmp_path: Path) -> Iterator[Place]:
    copy = tmp_path / "state"
    subprocess.run(["cp", "-a", "--sparse=always", whole.folder, copy], check=True)
    settle_identity(copy)
    with assert_nothing_left(copy):
        yield attrs.evolve(whole, folder=copy)


def kinds(place: Place) -> list[Kind]:
    """What is wrong; and that looking changed nothing."""
    before = place.seal()
    found = examine(place.folder)
    assert place.seal() == before
    return [finding.kind for finding in found.findings]


async def mend(place: Place) -> Repaired:
    async with default_engine(HostConfig(state_dir=place.folder)) as engine:
        done = await repair(place.folder, engine)
    assert done.trouble == ()
    return done


async def check_precious(place: Place) -> None:
    async with open_host(HostConfig(state_dir=place.folder, keep=True)) as host:
        await host.start_sandbox("kept")
        assert await host.read_file("kept", PRECIOUS) == b"kept\n"


def test_a_whole_folder_is_sound(place: Place) -> None:
    assert kinds(place) == []


Damage = Callable[[Place], None]


def status(word: str, keep: int = 1) -> Damage:
    return lambda place: place.execute("UPDATE sandboxes SET status = ?, keep = ?", word, keep)


def stray_sandbox(place: Place) -> None:
    shutil.copytree(place.sandbox_folder / "..", place.folder / "copy", copy_function=os.link)
    (place.folder / "copy" / place.sandbox_folder.name).rename(place.folder / "sandboxes" / uuid.uuid4().hex)
    (place.folder / "copy").rmdir()


def stray_snapshot(prefix: str) -> Damage:
    def damage(place: Place) -> None:
        layer = place.snapshot(f"{prefix}{uuid.uuid4()}") / "root" / "etc"
        layer.mkdir(parents=True)
        (layer / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")

    return damage


def unfinished_beside_finished(place: Place) -> None:
    (place.snapshot(f".build-{place.tiny}") / "root").mkdir(parents=True)


def failed_build_with_files(place: Place) -> None:
    place.execute("UPDATE snapshots SET status = 'failed' WHERE id = ?", place.tiny)


def dead_build(place: Place) -> None:
    place.execute("UPDATE snapshots SET status = 'building', content = NULL WHERE id = ?", place.tiny)
    place.snapshot(place.tiny).rename(place.snapshot(f".build-{place.tiny}"))


def unreferenced_layer(place: Place) -> None:
    layer = place.snapshot(place.shot) / "tree" / "@opt"
    layer.mkdir()
    (layer / "file").touch()


def dangling_tag(place: Place) -> None:
    place.execute("INSERT INTO snapshot_tags VALUES ('', 'lost', '1', ?)", str(uuid.uuid4()))


def dead_owner(place: Place) -> None:
    (place.folder / "owners" / f"{uuid.uuid4().hex}.lock").touch(0o600)


MENDED: dict[str, tuple[Damage, Kind]] = {
    "half-made": (status("provisioning"), Kind.INTERRUPTED_SANDBOX),
    "half-deleted": (status("deleting"), Kind.INTERRUPTED_SANDBOX),
    "embedded": (status("ready", keep=0), Kind.ORPHANED_SANDBOX),
    "killed-server": (status("ready"), Kind.ABANDONED_SANDBOX),
    "no-folder": (lambda place: shutil.rmtree(place.sandbox_folder), Kind.SANDBOX_FILES_MISSING),
    "no-disk": (lambda place: (place.sandbox_folder / "disk.img").unlink(), Kind.SANDBOX_FILES_MISSING),
    "record": (lambda p: record_folder(p.sandbox_folder, p.container).mkdir(), Kind.LEFTOVER_CONTAINER),
    "stray-sandbox": (stray_sandbox, Kind.STRAY_SANDBOX_FOLDER),
    "half-snapshot": (stray_snapshot(".build-"), Kind.STRAY_SNAPSHOT_FOLDER),
    "trash": (stray_snapshot(".trash-"), Kind.STRAY_SNAPSHOT_FOLDER),
    "stray-snapshot": (stray_snapshot(""), Kind.STRAY_SNAPSHOT_FOLDER),
    "unfinished-beside-finished": (unfinished_beside_finished, Kind.STRAY_SNAPSHOT_FOLDER),
    "failed-build": (failed_build_with_files, Kind.STRAY_SNAPSHOT_FOLDER),
    "dead-build": (dead_build, Kind.INTERRUPTED_SNAPSHOT),
    "lost-snapshot": (lambda place: shutil.rmtree(place.snapshot(place.tiny)), Kind.SNAPSHOT_FILES_MISSING),
    "layer": (unreferenced_layer, Kind.UNREFERENCED_LAYER),
    "tag": (dangling_tag, Kind.DANGLING_REFERENCE),
    "owner": (dead_owner, Kind.DEAD_OWNER),
}
REMOVED = {"half-made", "half-deleted", "embedded"}
"""Where nobody wants the sandbox any more."""
LOST = {"no-folder", "no-disk"}


@pytest.mark.parametrize("name", MENDED)
async def test_it_is_seen_and_mended(place: Place, name: str) -> None:
    damage, kind = MENDED[name]
    damage(place)
    assert kinds(place) == [kind]
    done = await mend(place)
    assert [finding.kind for finding in done.mended] == [kind]
    assert kinds(place) == []
    state = place.one("SELECT status FROM sandboxes")
    if name in REMOVED:
        assert state is None
        assert not list((place.folder / "sandboxes").iterdir())
    elif name in LOST:
        assert state == "failed"
        async with open_host(HostConfig(state_dir=place.folder, keep=True)) as host:
            (info,) = await host.list_sandboxes()
            assert (info.status, info.status_message) == ("failed", "Its files are gone from the state folder")
    else:
        assert state == "stopped"
        await check_precious(place)


def two_in_one_block(place: Place) -> None:
    with contextlib.closing(sqlite3.connect(place.folder / "state.db", isolation_level=None)) as db:
        (text,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'sandboxes'").fetchone()
        db.execute("ALTER TABLE sandboxes RENAME TO older")
        db.execute(text.replace("uid_block INTEGER NOT NULL UNIQUE", "uid_block INTEGER NOT NULL"))
        db.execute("INSERT INTO sandboxes SELECT * FROM older")
        db.execute("UPDATE older SET seq = 1000, id = ?, name = 'twin', status = 'failed'", (str(uuid.uuid4()),))
        db.execute("INSERT INTO sandboxes SELECT * FROM older")
        db.execute("DROP TABLE older")


def foreign_names(place: Place) -> None:
    (place.folder / "sandboxes" / "lost+found").mkdir()
    place.snapshot("notes.txt").touch()


def damaged_page(place: Place) -> None:
    path = place.folder / "state.db"
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 8] = bytes(range(200, 208))
    path.write_bytes(content)


def trash_without_finished(place: Place) -> None:
    place.snapshot(place.tiny).rename(place.snapshot(f".trash-{place.tiny}"))


LEFT: dict[str, tuple[Damage, list[Kind]]] = {
    "uid-block-twice": (two_in_one_block, [Kind.UID_BLOCK, Kind.UID_BLOCK]),
    "uid-block-beyond": (lambda p: p.execute("UPDATE sandboxes SET uid_block = 1000000"), [Kind.UID_BLOCK]),
    "status": (lambda p: p.execute("UPDATE sandboxes SET status = 'odd'"), [Kind.UNKNOWN_STATUS]),
    "limits": (lambda p: p.execute("UPDATE sandboxes SET limits = '['"), [Kind.UNREADABLE_ROW]),
    "content": (
        lambda p: p.execute("UPDATE snapshots SET content = '{}' WHERE id = ?", p.shot),
        [Kind.UNREADABLE_LAYERS],
    ),
    "snapshot": (
        lambda p: p.execute("UPDATE sandboxes SET snapshot_id = ?", str(uuid.uuid4())),
        [Kind.DANGLING_REFERENCE],
    ),
    "base": (lambda p: shutil.rmtree(p.snapshot(str(base_of(p)))), [Kind.SNAPSHOT_FILES_MISSING]),
    "trash-alone": (trash_without_finished, [Kind.STRAY_SNAPSHOT_FOLDER, Kind.SNAPSHOT_FILES_MISSING]),
    "foreign-names": (foreign_names, [Kind.STRAY_SANDBOX_FOLDER, Kind.STRAY_SNAPSHOT_FOLDER]),
    "page": (damaged_page, [Kind.DAMAGED_DATABASE]),
    "no-database": (lambda p: (p.folder / "state.db").write_text("notes\n" * 1000) and None, [Kind.DAMAGED_DATABASE]),
    "key-lost": (lambda p: (p.folder / KEY_FILE).unlink(), [Kind.LOST_PASSWORD]),
    "key-exchanged": (
        lambda p: (p.folder / KEY_FILE).write_bytes(Fernet.generate_key()) and None,
        [Kind.LOST_PASSWORD],
    ),
    "newer": (lambda p: p.execute("PRAGMA user_version = 1000"), [Kind.NEWER_SCHEMA]),
}


def base_of(place: Place) -> object:
    return place.one("SELECT snapshot_id FROM sandboxes")


@pytest.mark.parametrize("name", LEFT)
async def test_it_is_seen_and_left_to_its_owner(place: Place, name: str) -> None:
    damage, expected = LEFT[name]
    damage(place)
    assert kinds(place) == expected
    before = place.seal()
    done = await mend(place)
    if not any(finding.repair for finding in done.before.findings):
        assert place.seal() == before, "nothing to mend, nothing touched"
    assert [finding.kind for finding in done.after.findings if finding.repair is None] == [
        finding.kind for finding in done.before.findings if finding.repair is None
    ]
    assert all(finding.advice for finding in done.after.findings)
    assert (place.sandbox_folder / "disk.img").exists()
    if name == "foreign-names":
        (place.folder / "sandboxes" / "lost+found").rmdir()


async def test_nothing_is_mended_before_unreadable_rows(place: Place) -> None:
    dead_owner(place)
    stray_snapshot(".trash-")(place)
    place.execute("UPDATE sandboxes SET env = 'odd'")
    assert kinds(place) == [Kind.UNREADABLE_ROW, Kind.STRAY_SNAPSHOT_FOLDER]
    before = place.seal()
    done = await mend(place)
    assert done.mended == ()
    assert place.seal() == before


async def test_a_folder_with_something_in_it_is_not_given_up(place: Place) -> None:
    (place.sandbox_folder / "disk.img").rename(place.sandbox_folder / "disk.old")
    assert kinds(place) == [Kind.SANDBOX_FILES_MISSING]
    await mend(place)
    assert kinds(place) == [Kind.SANDBOX_FILES_MISSING]
    (place.sandbox_folder / "disk.old").rename(place.sandbox_folder / "disk.img")
    assert kinds(place) == []
    await check_precious(place)


async def test_an_older_schema(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    (folder / "owners").mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(folder / "state.db", isolation_level=None)) as db:
        for statement in _MIGRATIONS[0]:
            db.execute(statement)
        db.execute("PRAGMA user_version = 1")
    (folder / "state.db").chmod(0o600)
    place = Place(folder, "", "", "")
    assert kinds(place) == [Kind.OLDER_SCHEMA]
    await mend(place)
    assert kinds(place) == []
    assert place.one("PRAGMA user_version") == SCHEMA_VERSION


async def test_a_server_that_was_killed(place: Place) -> None:
    keeper = subprocess.Popen([sys.executable, "-c", KEEPER, place.folder], stdout=subprocess.PIPE, text=True)
    try:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "ready\n"
        assert [finding.kind for finding in examine(place.folder).findings] == [], "it is in use and sound"
        keeper.send_signal(signal.SIGKILL)
        keeper.wait(10)
    finally:
        keeper.kill()
        keeper.wait(10)
        assert keeper.stdout is not None
        keeper.stdout.close()
    with trio.fail_after(10):
        while (left := find_remains(place.sandbox_folder, place.container, this_host())).pids or left.loops:
            await trio.sleep(0.05)  # Its disk is unmounted, and changes by that.
    assert (place.folder / "state.db-wal").exists(), "what was not written back is read, too"
    assert Kind.ABANDONED_SANDBOX in kinds(place)
    await mend(place)
    assert kinds(place) == []
    await check_precious(place)


@pytest.mark.parametrize("has_folder", [True, False], ids=["folder", "no folder"])
async def test_processes_that_nobody_owns(place: Place, has_folder: bool) -> None:
    cgroups = SandboxCgroups(this_host(), place.container)
    await cgroups.prepare()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        for folder in cgroups.folders:
            (folder / "cgroup.procs").write_text(str(sleeper.pid))
        if not has_folder:
            shutil.rmtree(place.sandbox_folder)
        assert Kind.LEFTOVER_CONTAINER in kinds(place)
        await mend(place)
        assert sleeper.wait(10) == -signal.SIGKILL
        assert not any(folder.exists() for folder in cgroups.folders)
    finally:
        sleeper.kill()
        sleeper.wait(10)
    assert kinds(place) == []


async def test_a_mount_is_left_alone(place: Place) -> None:
    stray = place.folder / "sandboxes" / uuid.uuid4().hex
    point = stray / "data"
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    try:
        (point / "file").touch()
        assert kinds(place) == [Kind.STRAY_SANDBOX_FOLDER, Kind.FOREIGN_MOUNT]
        async with default_engine(HostConfig(state_dir=place.folder)) as engine:
            done = await repair(place.folder, engine)
        assert (point / "file").exists()
        assert str(stray) in done.trouble[0]
    finally:
        subprocess.run(["umount", point], check=True)
    await mend(place)
    assert kinds(place) == []


async def test_beside_a_living_owner_only_the_dead_are_mended(place: Place) -> None:
    stray_sandbox(place)
    status("ready")(place)
    async with Store.open(place.folder) as store:
        snapshot = await store.find_snapshot("shot")
        row = await store.add_sandbox(name="theirs", snapshot_id=snapshot.id, limits=Limits())
        half = place.folder / "sandboxes" / row.engine_id
        half.mkdir()
        building = await store.add_snapshot(name="new", kind="image", fs_capacity_bytes=1)
        place.snapshot(f".build-{building.id}").mkdir()
        found = await trio.to_thread.run_sync(examine, place.folder)
        assert [finding.kind for finding in found.findings] == [Kind.ABANDONED_SANDBOX, Kind.STRAY_SANDBOX_FOLDER]
        assert found.living == {store.owner_id}
        done = await mend(place)
        assert [finding.kind for finding in done.mended] == [Kind.ABANDONED_SANDBOX]
        (left,) = done.after.findings
        assert left.kind is Kind.STRAY_SANDBOX_FOLDER
        assert left.advice is not None
        assert "end the processes" in left.advice
        assert (await store.find_sandbox("theirs")).status == "provisioning"
        assert half.exists()
        assert place.snapshot(f".build-{building.id}").exists()
        await store.remove_snapshot(building.id)
        await store.remove_sandbox("theirs")
        half.rmdir()
        place.snapshot(f".build-{building.id}").rmdir()
    await mend(place)
    assert kinds(place) == []
    await check_precious(place)


async def test_what_is_wrong_only_for_a_moment_is_not_wrong(place: Place) -> None:
    stray = place.folder / "sandboxes" / uuid.uuid4().hex
    stray.mkdir()
    async with Store.open(place.folder):
        found = examine(place.folder, sleep=lambda _: stray.rmdir())
    assert found.findings == ()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "There is no state folder"),
        (lambda path: path.touch(), "is no state folder but a file"),
        (lambda path: path.mkdir(), "there is no state.db in it"),
    ],
    ids=["missing", "file", "empty"],
)
def test_no_state_folder(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "there")
    with pytest.raises(SandboxClientError, match=words) as caught:
        examine(tmp_path / "there")
    assert str(tmp_path / "there") in str(caught.value)
