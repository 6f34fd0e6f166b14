"""What is said when a sandbox cannot be started: never nothing, and what to do where that is known."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from sandboxrt.engine.base import Layer
from sandboxrt.engine.launch.words import how_it_ended, meaning
from sandboxrt.engine.oci import OciEngine
from sandboxrt.errors import ResourceCreationError
from sandboxrt.models import Limits
from tests.engine.oci_kit import Workplace, output, settled


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("idmap: /srv/state: Invalid argument\n", f"/srv/state cannot be mapped .*{os.uname().release}.*ext4"),
        ("overlay: root: No such device\n", "no overlay file system.*sudo modprobe overlay"),
        ("warning\next4: data: No such device\n", "^warning; .*sudo modprobe ext4$"),
        ("disk: /dev/loop-control: No such file or directory", "loop-control.*sudo modprobe loop"),
        ("disk: no free loop device: Device or resource busy", "no free loop device"),
        ("\n\nsomething else\n", "^something else$"),
        ("one\ntwo\nthree\nfour\n", "^two; three; four$"),
        ("", "^$"),
    ],
)
def test_last_words_and_what_they_mean(said: str, meant: str) -> None:
    assert re.search(meant, meaning(said))


@pytest.mark.parametrize("code", [0, 1, 125, -9, None])
def test_a_reason_is_never_empty(code: int | None) -> None:
    assert how_it_ended(code, "its words") == "its words"
    said = how_it_ended(code, "")
    assert len(said) > 20
    assert "exit code 0" not in said


@pytest.mark.container
@pytest.mark.timeout(60)
async def test_a_layer_that_cannot_be_mapped_is_named_with_the_way_out(workplace: Workplace) -> None:
    """No kernel maps a mounted overlay, as old ones do not map a tmpfs."""
    folders = [workplace.folder / name for name in ("lower", "upper", "work", "merged")]
    for each in folders:
        each.mkdir()
    options = "lowerdir={},upperdir={},workdir={}".format(*folders[:3])
    subprocess.run(["mount", "-t", "overlay", "-o", options, "none", folders[3]], check=True)
    try:
        async with OciEngine(workplace.folder) as engine:
            layers = (Layer(workplace.folder / "root"), Layer(Path("/usr"), "/usr"), Layer(folders[3], "/opt/more"))
            with pytest.raises(ResourceCreationError, match=rf"file system of {folders[3]} cannot be mapped.*ext4"):
                await engine.create(workplace.spec(layers=layers))
    finally:
        subprocess.run(["umount", folders[3]], check=True)
    assert await settled(workplace) == []


@pytest.mark.container
@pytest.mark.timeout(60)
async def test_a_relative_state_folder_works(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace.folder.parent)
    async with OciEngine(Path(workplace.folder.name)) as engine:
        container = await engine.create(workplace.spec(limits=Limits(disk_bytes=None)))
        monkeypatch.chdir("/")
        assert await output(container, "echo here") == "here"
        await container.close()
    assert await settled(workplace) == []
