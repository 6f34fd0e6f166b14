"""A state folder that others could have changed is refused; what others could read is closed."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxrt.errors import SandboxClientError
from sandboxrt.host.doctor.examine import examine
from sandboxrt.host.doctor.findings import Kind
from sandboxrt.store import Store

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    async with Store.open(tmp_path / "state"):
        pass
    for name in ("tools", "sandboxes", "snapshots"):
        (tmp_path / "state" / name).mkdir(mode=0o700, exist_ok=True)
    (tmp_path / "state" / "tools" / "init-0").touch(0o755)
    return tmp_path / "state"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def give_away(*names: str, mode: int | None = None) -> Callable[[Path], Path]:
    def give(folder: Path) -> Path:
        path = folder.joinpath(*names)
        os.chown(path, NOBODY, NOBODY)
        if mode is not None:
            path.chmod(mode)
        return path

    return give


def writable(*names: str) -> Callable[[Path], Path]:
    def open_up(folder: Path) -> Path:
        path = folder.joinpath(*names)
        path.chmod(0o777)
        return path

    return open_up


def planted(folder: Path) -> Path:
    """Somebody had the time to put a folder where there was none; taking the right to write away would keep it."""
    folder.chmod(0o777)
    (folder / "templates").mkdir()
    os.chown(folder / "templates", NOBODY, NOBODY)
    return folder / "templates"


def link_of_another(folder: Path) -> Path:
    real = folder.rename(folder.with_name("real"))
    folder.symlink_to(real)
    os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nobody's, for everybody": (give_away(mode=0o777), "chown -hR --from=65534 root"),
    "nobody's": (give_away(), "chown -hR --from=65534 root"),
    "programs' folder": (give_away("tools"), "chown"),
    "a program": (give_away("tools", "init-0"), "rm -r"),
    "a writable program": (writable("tools", "init-0"), "rm -r"),
    "database": (give_away("state.db"), "chown"),
    "snapshots": (give_away("snapshots"), "chown"),
    "something planted": (planted, "chown"),
    "the folder above": (writable(".."), "chmod o-w"),
    "a link": (link_of_another, "real"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused(folder: Path, name: str) -> None:
    change, command = REFUSED[name]
    path = change(folder)
    try:
        with pytest.raises(SandboxClientError) as caught:
            async with Store.open(folder):
                pass
        for word in (str(folder), str(path.resolve() if name == "the folder above" else path), command):
            assert word in str(caught.value)
        found = [each for each in examine(folder).findings if each.kind is Kind.EXPOSED_FOLDER and not each.repair]
        assert found and command in (found[0].advice or "")
    finally:
        folder.parent.chmod(0o700)


def open_top(folder: Path) -> None:
    folder.chmod(0o755)


def writable_top(folder: Path) -> None:
    folder.chmod(0o777)


def readable_key(folder: Path) -> None:
    (folder / "secrets.key").touch()
    (folder / "secrets.key").chmod(0o644)
    folder.chmod(0o711)


@pytest.mark.parametrize("change", [open_top, writable_top, readable_key])
async def test_closed_and_said(folder: Path, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture) -> None:
    change(folder)
    assert next(each.kind for each in examine(folder).findings if each.repair) is Kind.EXPOSED_FOLDER
    with caplog.at_level(logging.WARNING, "sandboxrt.store"):
        async with Store.open(folder):
            pass
    assert str(folder) in caplog.text and "this user's alone now" in caplog.text
    assert mode_of(folder) == 0o700
    if (folder / "secrets.key").exists():
        assert mode_of(folder / "secrets.key") == 0o600
    assert examine(folder).findings == ()


async def test_what_nobody_can_reach_is_closed_without_a_word(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("tools", "sandboxes", "snapshots"):
        (folder / name).chmod(0o755)
    async with Store.open(folder):
        pass
    assert [mode_of(folder / name) for name in ("tools", "sandboxes", "snapshots")] == [0o700] * 3
    assert caplog.text == ""
