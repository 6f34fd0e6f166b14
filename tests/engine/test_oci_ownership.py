"""Nothing stays behind: not after cancels at any point, not after kill -9, not in a crowd."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.base import ContainerSpec
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.models import Limits
from tests.engine.oci_kit import Workplace, output, processes_of, settled

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

MAX_STEPS = 400


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when its task begins its n-th step."""

    def __init__(self, scope: trio.CancelScope, task: trio.lowlevel.Task, step: int) -> None:
        self.scope, self.task, self.left = scope, task, step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


def open_descriptors() -> set[str]:
    """Descriptors by what they are; the one that reads the list is not there any more."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return found


async def use(engine: OciEngine, spec: ContainerSpec) -> None:
    container = await engine.create(spec)
    try:
        assert await output(container, "echo in") == "in"
    finally:
        await container.close()


@pytest.mark.parametrize("engine", ["crun"], indirect=True)
@pytest.mark.parametrize("disk_bytes", [64 * 1024**2, None])
async def test_cancel_at_every_step_leaves_nothing(
    engine: OciEngine, workplace: Workplace, disk_bytes: int | None
) -> None:
    limits = Limits(disk_bytes=disk_bytes)
    await use(engine, workplace.spec(limits=limits))
    before = open_descriptors()
    for step in range(1, MAX_STEPS):
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, trio.lowlevel.current_task(), step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await use(engine, workplace.spec(limits=limits))
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert await settled(workplace) == [], f"cancelled at step {step}"
        if not scope.cancelled_caught:
            break
        workplace.ids.clear()
    else:
        pytest.fail(f"no uncancelled run within {MAX_STEPS} steps")
    assert step > 10
    assert open_descriptors() == before


async def test_many_at_once(engine: OciEngine, workplace: Workplace) -> None:
    made: list[OciContainer] = []

    async def make() -> None:
        made.append(await engine.create(workplace.spec()))

    async def use_and_close(container: OciContainer) -> None:
        assert await output(container, "echo $$ > /tmp/mine; cat /etc/hostname") == "kitchen"
        await container.close()

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(make)
    assert len(made) == 50
    async with trio.open_nursery() as nursery:
        for container in made:
            nursery.start_soon(use_and_close, container)
    assert await settled(workplace) == []


async def test_leaving_the_engine_ends_its_containers(workplace: Workplace) -> None:
    spec = workplace.spec()
    async with OciEngine(workplace.folder) as engine:
        await engine.create(spec)
    with trio.fail_after(10):
        while processes_of(workplace.blocks()):
            await trio.sleep(0.02)
    async with OciEngine(workplace.folder) as engine:
        await engine.discard(spec.state_dir, spec.id)
    assert await settled(workplace) == []


OWNER = """
    import sys, trio
    from pathlib import Path
    from sandboxrt.engine.oci import OciEngine
    from tests.engine.oci_kit import Workplace

    async def main():
        workplace = Workplace(Path(sys.argv[1]))
        async with OciEngine(workplace.folder, sys.argv[2]) as engine:
            for _ in range(3):
                container = await engine.create(workplace.spec())
                script = "setsid sleep 1000 & setsid sh -c 'trap : TERM HUP; sleep 1000' & sleep 1000"
                from sandboxrt.engine.base import Identity, ProcessSpec
                await container.spawn(
                    ProcessSpec(argv=("/bin/sh", "-c", script), env={"PATH": "/bin"}, cwd="/", identity=Identity())
                )
                print(container.id, workplace.blocks().start, flush=True)
            print("ready", flush=True)
            await trio.sleep_forever()

    trio.run(main)
"""


@pytest.mark.parametrize("runtime", ["crun", "runc"])
async def test_kill_9_of_the_owner_ends_all_processes_and_discard_removes_the_rest(
    workplace: Workplace, runtime: str
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(OWNER), str(workplace.folder), runtime]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert owner.stdout is not None
        first = 0
        for line in iter(owner.stdout.readline, "ready\n"):
            assert line, "the owner ended early"
            name, block = line.split()
            workplace.ids.append(name)
            first = int(block)
        ids = range(first, first + 65_536 * 10)
        assert len(processes_of(ids)) >= 9
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        with trio.fail_after(10):
            while processes_of(ids):
                await trio.sleep(0.02)
    finally:
        owner.kill()
        owner.wait(10)
        assert owner.stdout is not None
        owner.stdout.close()
    async with OciEngine(workplace.folder, runtime) as engine:
        for name in workplace.ids:
            await engine.discard(workplace.folder / "sandboxes" / name, name)
            await engine.discard(workplace.folder / "sandboxes" / name, name)
    assert await settled(workplace) == []
    assert list((workplace.folder / "sandboxes").iterdir()) == []


@pytest.mark.parametrize("engine", ["crun"], indirect=True)
async def test_discard_ends_a_container_that_lives(engine: OciEngine, workplace: Workplace) -> None:
    spec = workplace.spec(limits=Limits(disk_bytes=None))
    container = await engine.create(spec)
    depth = "python3 -c \"import os\nfor _ in range(5000): os.mkdir('d'); os.chdir('d')\""
    await output(container, depth, cwd="/root")
    await engine.discard(spec.state_dir, spec.id)
    assert not spec.state_dir.exists()
    assert await settled(workplace) == []
    with trio.fail_after(5):
        await container.wait_dead()
    await container.close()


@pytest.mark.parametrize("engine", ["crun"], indirect=True)
async def test_a_frozen_container_closes(engine: OciEngine, workplace: Workplace) -> None:
    container = await engine.create(workplace.spec())
    assert container.cgroups is not None
    await container.cgroups.freeze()
    with trio.fail_after(10):
        await container.close()
