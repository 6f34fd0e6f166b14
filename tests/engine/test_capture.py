"""Captures of containers: as of one instant, of running and of stopped ones, and interrupted at any point."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.base import Container, Layer, ProcessSpec
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.errors import ResourceCreationError
from sandboxrt.models import Limits
from tests.engine.oci_kit import ENV, ROOT, Workplace, output, processes_of, settled
from tests.engine.test_oci_ownership import CancelAtStep, open_descriptors

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

MIB = 1024**2
MAX_STEPS = 400
WRITER = "while :; do echo >> /root/one; echo >> /root/two; done"
FILL = "mkdir /root/many; cd /root/many; for i in $(seq 1 {0}); do head -c 100000 /dev/zero > $i; done"


def target_in(workplace: Workplace, name: str = "target") -> Path:
    folder = workplace.folder / name
    folder.mkdir()
    return folder


def is_frozen(container: OciContainer) -> bool:
    assert container.cgroups is not None
    file, _ = container.cgroups.thawing
    return file.read_text().strip() in ("1", "FROZEN", "FREEZING")


async def start(container: Container, script: str) -> None:
    await container.spawn(ProcessSpec(argv=("/bin/sh", "-c", script), env=ENV, cwd="/", identity=ROOT, stdin=False))


@pytest.mark.parametrize("disk_bytes", [64 * MIB, None])
async def test_a_running_one_is_captured_as_of_one_instant(
    engine: OciEngine, workplace: Workplace, disk_bytes: int | None
) -> None:
    container = await engine.create(workplace.spec(limits=Limits(disk_bytes=disk_bytes)))
    await output(container, "rm /etc/hostname; rm -rf /opt; mkdir /opt; echo x > /usr/share/new; echo t > /tmp/t")
    await output(container, "ln /etc/passwd /root/hard; chown 1000:1000 /etc/group; mkfifo /root/fifo")
    await start(container, WRITER)
    await trio.sleep(0.1)
    for number in range(5):
        target = target_in(workplace, f"target{number}")
        copied = await container.capture(target)
        tree = target / "tree"
        one, two = ((tree / "@/root" / name).stat().st_size for name in ("one", "two"))
        assert one - two in (0, 1)
        assert copied.paused_s is not None
        assert 0 < copied.paused_s < 30
        assert not is_frozen(container)
    assert sorted(path.name for path in tree.iterdir()) == ["@", "@usr"]
    assert not (tree / "@/tmp").exists()
    assert (tree / "@/etc/hostname").lstat().st_rdev == 0
    assert os.getxattr(tree / "@/opt", "trusted.overlay.opaque") == b"y"
    assert (tree / "@/root/hard").stat().st_nlink == 2
    assert (tree / "@/etc/group").stat().st_uid == 1000
    assert (tree / "@usr/share/new").read_text() == "x\n"
    assert all(path.lstat().st_uid in (0, 1000) for path in tree.rglob("*"))
    before = await output(container, "stat -c %s /root/one")
    await trio.sleep(0.1)
    assert await output(container, "stat -c %s /root/one") != before
    await container.close()


async def test_a_capture_starts_as_what_was_captured(engine: OciEngine, workplace: Workplace) -> None:
    spec = workplace.spec()
    container = await engine.create(spec)
    await output(container, "rm -rf /opt; mkdir /opt; rm /etc/group; echo mine > /usr/share/new; chown 1000 /root")
    target = target_in(workplace)
    await container.capture(target)
    await container.close()
    own = (Layer(target / "tree/@"), Layer(target / "tree/@usr", "/usr"))
    copy = await engine.create(workplace.spec(layers=(*own, *spec.layers)))
    assert await output(copy, "cat /usr/share/new; ls /etc/group /opt 2>&1 | head -1; stat -c %u /root /usr/share/new")
    assert await output(copy, "cat /usr/share/new; test ! -e /etc/group; stat -c %u /root") == "mine\n1000"
    await output(copy, "echo changed > /usr/share/new")
    assert (target / "tree/@usr/share/new").read_text() == "mine\n"
    await copy.close()


@pytest.mark.parametrize("disk_bytes", [64 * MIB, None])
async def test_a_stopped_one_is_captured(engine: OciEngine, workplace: Workplace, disk_bytes: int | None) -> None:
    spec = workplace.spec(limits=Limits(disk_bytes=disk_bytes))
    container = await engine.create(spec)
    await output(container, "echo one > /root/one; echo two > /tmp/two")
    await container.close()
    target = target_in(workplace)
    copied = await engine.capture(spec.state_dir, spec.uid_base, target)
    assert copied.paused_s is None
    assert (target / "tree/@/root/one").read_text() == "one\n"
    assert await settled(workplace) == []
    again = await engine.create(spec)
    assert await output(again, "cat /root/one /tmp/two") == "one\ntwo"
    await again.close()


@pytest.mark.parametrize("engine", ["crun"], indirect=True)
async def test_cancel_at_every_step_lets_it_run_on(engine: OciEngine, workplace: Workplace) -> None:
    container = await engine.create(workplace.spec())
    await output(container, FILL.format(20))
    await container.capture(target_in(workplace, "first"))
    before = open_descriptors()
    for step in range(1, MAX_STEPS):
        target = target_in(workplace, f"target{step}")
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, trio.lowlevel.current_task(), step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await container.capture(target)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert not is_frozen(container), f"cancelled at step {step}"
        if not scope.cancelled_caught:
            break
    else:
        pytest.fail(f"no uncancelled capture within {MAX_STEPS} steps")
    assert step > 5
    assert open_descriptors() == before
    assert await output(container, "echo up") == "up"
    await container.close()


def copiers(workplace: Workplace) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if re.match(rf"{re.escape(str(workplace.folder))}/tools/copy", os.readlink(entry / "exe")):
                    found.append(int(entry.name))
    return found


@pytest.mark.parametrize("engine", ["crun"], indirect=True)
async def test_a_killed_copier_is_an_error_and_the_sandbox_runs_on(engine: OciEngine, workplace: Workplace) -> None:
    container = await engine.create(workplace.spec(limits=Limits(disk_bytes=256 * MIB)))
    await output(container, FILL.format(1500))
    errors: list[Exception] = []

    async def capture() -> None:
        try:
            await container.capture(target_in(workplace))
        except ResourceCreationError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(capture)
        with trio.fail_after(10):
            while not is_frozen(container):
                await trio.sleep(0.001)
        for pid in copiers(workplace):
            os.kill(pid, signal.SIGKILL)
    assert "could not be copied" in str(errors[0])
    assert not is_frozen(container)
    assert await output(container, "echo up") == "up"
    await container.close()


OWNER = """
    import sys, trio
    from pathlib import Path
    from sandboxrt.engine.oci import OciEngine
    from sandboxrt.models import Limits
    from tests.engine.oci_kit import Workplace, output

    async def main():
        workplace = Workplace(Path(sys.argv[1]))
        async with OciEngine(workplace.folder) as engine:
            container = await engine.create(workplace.spec(limits=Limits(disk_bytes=256 * 1024**2)))
            await output(container, sys.argv[2])
            file, _ = container.cgroups.thawing
            target = workplace.folder / "target"
            target.mkdir()
            print(container.id, workplace.blocks().start, file, flush=True)
            while True:
                await container.capture(target)
                import shutil
                shutil.rmtree(target / "tree")

    trio.run(main)
"""


@pytest.mark.parametrize("also_the_copier", [False, True])
async def test_kill_9_of_the_owner_leaves_nothing_frozen(workplace: Workplace, also_the_copier: bool) -> None:
    command = [sys.executable, "-c", textwrap.dedent(OWNER), str(workplace.folder), FILL.format(1500)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert owner.stdout is not None
        name, first, file = owner.stdout.readline().split()
        workplace.ids.append(name)
        ids = range(int(first), int(first) + 65_536 * 10)
        with trio.fail_after(10):
            while Path(file).read_text().strip() not in ("1", "FROZEN"):
                await trio.sleep(0.001)
        owner.send_signal(signal.SIGSTOP)
        if also_the_copier:
            for pid in copiers(workplace):
                os.kill(pid, signal.SIGKILL)
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        if not also_the_copier:
            with trio.fail_after(10):
                while processes_of(ids) or copiers(workplace):
                    await trio.sleep(0.02)
    finally:
        owner.kill()
        owner.wait(10)
        assert owner.stdout is not None
        owner.stdout.close()
    async with OciEngine(workplace.folder) as engine:
        await engine.discard(workplace.folder / "sandboxes" / name, name)
    with trio.fail_after(10):
        while processes_of(ids):
            await trio.sleep(0.02)
    assert await settled(workplace) == []
