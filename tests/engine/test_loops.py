"""Loop devices: which are whose, and that "free" is only said of those that are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from sandboxrt.engine import loops
from sandboxrt.engine.capture import DISK_IMAGE
from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.engine.launch.plan import LOOP_NOTE
from sandboxrt.engine.loops import backings, detach_loops_below, loops_below, wait_detached
from sandboxrt.engine.oci import OciEngine
from sandboxrt.engine.remains import record_folder
from tests.engine.oci_kit import Workplace, output, settled

MIB = 1024**2


@contextmanager
def attached(image: Path) -> Iterator[str]:
    done = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True, check=True)
    name = done.stdout.strip().removeprefix("/dev/")
    try:
        yield name
    finally:
        if backings().get(name, "").startswith(str(image)):
            subprocess.run(["losetup", "-d", f"/dev/{name}"], check=True)


@pytest.fixture
async def images(tmp_path: Path) -> list[Path]:
    """Disks in two folders, of which one's name begins with the other's."""
    found = []
    for name in ("mine", "mine-not"):
        (tmp_path / name).mkdir()
        found.append(tmp_path / name / "disk.img")
        await DiskTemplates(tmp_path / "templates").clone(16 * MIB, found[-1])
    return found


@pytest.mark.container
async def test_only_loop_devices_below_the_folder_are_freed(images: list[Path]) -> None:
    with attached(images[0]) as mine, attached(images[1]) as other:
        images[0].unlink()
        assert loops_below(images[0].parent) == (mine,)
        assert await detach_loops_below(images[0].parent) == [mine]
        assert not Path("/sys/block", mine, "loop").exists()
        assert Path("/sys/block", other, "loop").exists()
        assert await detach_loops_below(images[0].parent) == []
        assert await detach_loops_below(images[1].parent) == [other]


@pytest.mark.container
async def test_a_device_that_somebody_has_open_is_free_when_they_close_it(images: list[Path]) -> None:
    with attached(images[0]) as name:
        # As udev does with every new one.
        held = os.open(f"/dev/{name}", os.O_RDONLY)
        freed: list[str] = []

        async def free() -> None:
            freed.extend(await detach_loops_below(images[0].parent, wait_s=30))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(free)
                # From when it is asked for, the kernel frees it with its last user.
                while Path("/sys/block", name, "loop/autoclear").read_text() == "0\n":
                    await trio.sleep(0.01)
                assert freed == []
                assert name in backings()
                os.close(held)
            assert freed == [name]
            assert name not in backings()
        finally:
            with suppress(OSError):
                os.close(held)


@pytest.mark.container
async def test_a_device_that_stays_open_is_not_said_to_be_free(images: list[Path]) -> None:
    with attached(images[0]) as name:
        with open(f"/dev/{name}", "rb"):
            assert await detach_loops_below(images[0].parent, wait_s=0.1) == []
            assert name in backings()
        await wait_detached(images[0])


async def test_a_device_that_holds_another_image_is_not_waited_for(tmp_path: Path) -> None:
    for name, image in (("loop3", "mine"), ("loop4", "other"), ("loop-control", "mine"), ("loop5", None)):
        (tmp_path / name / "loop").mkdir(parents=True)
        if image is not None:
            (tmp_path / name / "loop/backing_file").write_text(f"{tmp_path}/{image}\n")
    assert backings(tmp_path) == {"loop3": f"{tmp_path}/mine", "loop4": f"{tmp_path}/other"}
    await wait_detached(tmp_path / "mine", 4, tmp_path)
    await wait_detached(tmp_path / "nobody", None, tmp_path)
    for number in (3, None):
        with trio.move_on_after(0.05) as scope:
            await wait_detached(tmp_path / "mine", number, tmp_path)
        assert scope.cancelled_caught


@pytest.mark.container
@pytest.mark.timeout(60)
@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_removal_looks_at_no_other_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """A machine has as many as it ever had sandboxes; to read them all for each costs more than the removal."""
    workplace = Workplace.make(tmp_path)
    spec = workplace.spec()
    async with OciEngine(workplace.folder) as engine:
        container = await engine.create(spec)
        assert await output(container, "echo here") == "here"
        note = record_folder(spec.state_dir, spec.id) / LOOP_NOTE
        assert loops_below(spec.state_dir) == (f"loop{int(note.read_text())}",)

        def look(sys_block: Path = loops.SYS_BLOCK) -> dict[str, str]:
            raise AssertionError("all devices were looked at")

        monkeypatch.setattr(loops, "backings", look)
        if not is_killed:
            await container.close()
        await engine.release(spec.state_dir, spec.id)
        await engine.discard(spec.state_dir, spec.id)
        monkeypatch.undo()
        await container.close()
    assert await settled(workplace) == []


@pytest.mark.container
@pytest.mark.timeout(60)
async def test_a_device_of_an_older_versions_record_is_found_all_the_same(images: list[Path]) -> None:
    folder = images[0].parent
    record_folder(folder, "0" * 32).mkdir()
    with attached(images[0]) as name:
        async with OciEngine(folder.parent) as engine:
            await engine.release(folder, "0" * 32)
        assert name not in backings()
    assert not record_folder(folder, "0" * 32).exists()


@pytest.mark.container
@pytest.mark.timeout(60)
async def test_what_is_removed_inside_goes_back_to_the_host_while_it_runs_and_when_it_has_stopped(
    tmp_path: Path,
) -> None:
    workplace = Workplace.make(tmp_path)
    spec = workplace.spec()
    image = spec.state_dir / DISK_IMAGE

    def kept() -> int:
        return image.stat().st_blocks * 512

    async with OciEngine(workplace.folder) as engine:
        container = await engine.create(spec)
        empty = kept()
        for _ in range(3):
            await output(container, "head -c 30M /dev/urandom > /root/big; sync /root/big")
            assert kept() >= empty + 30 * MIB
            await output(container, "rm /root/big; sync")
            assert kept() < empty + 2 * MIB
        await output(container, "head -c 30M /dev/urandom > /root/big; sync /root/big; rm /root/big")
        await container.close()
        assert kept() < empty + 2 * MIB
        await engine.discard(spec.state_dir, spec.id)
    assert await settled(workplace) == []
