"""The built-in snapshot: at once, nothing copied, nothing private."""

from __future__ import annotations

import os
import pwd
import re
import stat
import time
from pathlib import Path

import pytest

from sandboxrt.engine.base import Layer
from sandboxrt.errors import EngineUnavailableError, ResourceInUseError, ResourceNotFoundError, SandboxNotReadyError
from sandboxrt.models import Limits
from sandboxrt.snapshots import host
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store
from tests.snapshots.conftest import OpenLibrary, left_on_disk

PRIVATE = re.compile(
    rb"PRIVATE KEY|root:[$!*]|BEGIN OPENSSH|aws_secret|password\s*=|://[^/\s:]+:[^/\s@]+@|machine [^\s]+ login", re.I
)


def _build(folder: Path) -> tuple[Path, Path]:
    content = host.build_host(folder, folder)
    assert [layer.at for layer in content.layers] == ["/", "/usr", "/usr"]
    assert content.layers[2] == Layer(Path("/usr"), "/usr")
    return content.layers[0].path, content.layers[1].path


async def test_it_is_ready_at_once_and_made_once(open_library: OpenLibrary, tmp_path: Path) -> None:
    async with open_library() as library:
        started = time.perf_counter()
        first = await library.host_snapshot()
        assert time.perf_counter() - started < 5
        assert (first.name, first.status) == ("host", "ready")
        assert first.fs_capacity_bytes == 4 * 1024**3
        assert (await library.host_snapshot()).id == first.id
        assert (await library.get("host")).id == first.id
    async with open_library() as library:
        assert (await library.host_snapshot()).id == first.id
    assert left_on_disk(tmp_path) == [first.id]


async def test_several_at_once_make_one(open_library: OpenLibrary) -> None:
    import trio

    found: set[str] = set()

    async def make(library: SnapshotLibrary) -> None:
        found.add((await library.host_snapshot()).id)

    async with open_library() as library:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(make, library)
        assert len(found) == 1
        assert len(await library.list()) == 1


def test_nothing_of_usr_is_copied(tmp_path: Path) -> None:
    root, mask = _build(tmp_path)
    assert list((root / "usr").iterdir()) == []
    assert sum(path.lstat().st_blocks * 512 for path in tmp_path.rglob("*")) < 8 * 1024**2
    assert [path for path in mask.rglob("*") if path.is_file() and not path.is_symlink()] == []


def test_it_has_what_programs_need(tmp_path: Path) -> None:
    root, _ = _build(tmp_path)
    for name in ("bin", "sbin", "lib"):
        assert os.readlink(root / name) == f"usr/{name}"
    users = dict(line.split(":")[0:3:2] for line in (root / "etc/passwd").read_text().splitlines())
    assert users == {"root": "0", "daemon": "1", "user": "1000", "nobody": "65534"}
    assert (root / "etc/resolv.conf").read_text() == ""
    assert "localhost" in (root / "etc/hosts").read_text()
    assert os.readlink(root / "etc/os-release") == "../usr/lib/os-release"
    assert (root / "etc/ld.so.cache").exists() == Path("/etc/ld.so.cache").exists()
    for name in ("var/tmp", "tmp"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o1777
    for name in ("root", "opt", "srv", "mnt", "media", "home/user", "proc", "sys", "dev", "run"):
        assert not [path for path in (root / name).iterdir() if path.name != "lock"], name
    if os.geteuid() == 0:
        assert (root / "home/user").stat().st_uid == 1000


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        root, mask = _build(tmp_path)
    finally:
        os.umask(old)
    closed = [
        path
        for top in (root, mask)
        for path in (top, *top.rglob("*"))
        if not path.is_symlink() and path != root / "root" and not path.is_char_device() and not path.stat().st_mode & 4
    ]
    assert closed == []


def test_nothing_private_is_in_it(tmp_path: Path) -> None:
    root, _ = _build(tmp_path)
    names = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert not [
        name
        for name in names
        if re.search(
            r"shadow|sudoers|ssh|machine-id|krb5|netrc|apt|cloud|docker|kube|snakeoil|ssl/private|crontab", name
        )
    ]
    for path in root.rglob("*"):
        if path.is_symlink():
            target = os.readlink(path)
            assert not os.path.normpath(os.path.join("/", target)).startswith(("/usr/local", "/home", "/root")), path
        elif path.is_file():
            assert not PRIVATE.search(path.read_bytes()), path
    here = {user.pw_name for user in pwd.getpwall() if 1000 <= user.pw_uid < 60000}
    inside = (root / "etc/passwd").read_text() + (root / "etc/group").read_text()
    assert not [name for name in here - {"user", "nobody"} if f"{name}:" in inside]


def test_certificates_are_public_and_come_from_usr(tmp_path: Path) -> None:
    root, _ = _build(tmp_path)
    certs = root / "etc/ssl/certs"
    assert certs.is_dir()
    regular = [path.name for path in certs.iterdir() if not path.is_symlink()]
    assert regular in ([], ["ca-certificates.crt"])
    for path in certs.iterdir():
        if path.is_symlink():
            target = os.readlink(path)
            assert target.startswith("/usr/share/") or (certs / target).is_symlink(), path
    if regular:
        assert (certs / "ca-certificates.crt").read_bytes().count(b"BEGIN CERTIFICATE") > 20


def test_the_mask_hides_usr_local_and_what_others_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, mask = _build(tmp_path)
    assert os.getxattr(mask / "local", "trusted.overlay.opaque") == b"y"
    hidden = tmp_path / "usr-of-this-test"
    (hidden / "share").mkdir(parents=True)
    (hidden / "share" / "closed").mkdir(mode=0o700)
    (hidden / "share" / "secret").write_text("x")
    (hidden / "share" / "secret").chmod(0o640)
    (hidden / "share" / "public").write_text("x")
    found = {path.name: is_folder for path, is_folder in host._unreadable(hidden, 3)}
    assert found == {"closed": True, "secret": False}
    for path, is_folder in host._unreadable(Path("/usr"), 3):
        inside = mask / path.relative_to("/usr")
        if is_folder:
            assert os.getxattr(inside, "trusted.overlay.opaque") == b"y"
        else:
            assert stat.S_ISCHR(inside.lstat().st_mode) and inside.lstat().st_rdev == 0


def test_usr_in_pieces_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_MOUNT_TABLE", str(tmp_path / "mountinfo"))
    line = "36 35 98:0 / {} rw,noatime master:1 - ext4 /dev/root rw\n"
    (tmp_path / "mountinfo").write_text(line.format("/usr") + line.format("/usr/local") + line.format("/usr/share/x"))
    with pytest.raises(EngineUnavailableError, match=r"other mounts in it here: /usr/share/x\."):
        host.build_host(tmp_path, tmp_path)
    (tmp_path / "mountinfo").write_text(line.format("/usr") + line.format("/usr/local") + line.format("/usrx/y"))
    _build(tmp_path)


async def test_changed_packages(open_library: OpenLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text("one")
    monkeypatch.setattr(host, "_PACKAGE_RECORDS", (str(status),))
    async with Store.open(tmp_path / "state") as store, SnapshotLibrary(store) as library:
        old = await library.host_snapshot()
        await store.add_sandbox(name="still-here", snapshot_id=old.id, limits=Limits())
        await library.use(old.id)
        status.write_text("one and two")
        for attempt in (library.host_snapshot(), library.use(old.id)):
            with pytest.raises(ResourceInUseError, match="packages of this machine changed") as caught:
                await attempt
            assert caught.value.used_by == ("still-here",)
        await store.remove_sandbox("still-here")
        new = await library.host_snapshot()
        assert new.id != old.id
        with pytest.raises(ResourceNotFoundError):
            await library.use(old.id)
        assert left_on_disk(tmp_path) == [new.id]


async def test_deleted_by_another_process_it_is_made_again(open_library: OpenLibrary) -> None:
    async with open_library() as one, open_library() as two:
        first = await one.host_snapshot()
        await two.delete(first.id)
        second = await one.host_snapshot()
        assert second.id != first.id
        assert (await one.use(second.id)).layers[0].path.is_dir()


async def test_an_unfinished_snapshot_cannot_be_used(tmp_path: Path) -> None:
    async with Store.open(tmp_path / "state") as store, SnapshotLibrary(store) as library:
        row = await store.add_snapshot(name="x", kind="image", fs_capacity_bytes=1)
        with pytest.raises(SandboxNotReadyError, match="building"):
            await library.use(row.id)
        await store.fail_snapshot(row.id, "broken")
        with pytest.raises(SandboxNotReadyError, match="failed"):
            await library.use(row.id)
        await library.delete(row.id)
