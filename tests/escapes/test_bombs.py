"""What one sandbox can use up is bounded, counted inside; host and neighbours go on meanwhile.

Every bomb has a bound of its own, far above the sandbox's: reaching it means that nothing stopped it.
"""

from __future__ import annotations

import os
import subprocess
from errno import EAGAIN
from pathlib import Path

import attrs
import pytest
import trio

from sandboxrt.engine.base import Layer, SpawnFailedError
from sandboxrt.engine.oci import OciContainer, OciEngine
from tests.engine.oci_kit import Workplace, processes_of
from tests.escapes.kit import LIMITS, USER, ask, first_line, holding, host_pid, running, start

pytestmark = [pytest.mark.container, pytest.mark.timeout(60)]

MIB = 1024**2


def _count(answer: str) -> tuple[int, str]:
    count, _, error = answer.partition(" ")
    return int(count), error


def _counter(container: OciContainer, controller: str, v1: str, v2: str) -> str:
    assert container.cgroups is not None
    hierarchy = container.cgroups.hierarchy
    folder = hierarchy.limiting_folder(controller, container.id)
    assert folder is not None
    return (folder / (v1 if controller in hierarchy.v1 else v2)).read_text()


async def test_fork_bomb(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as bombed, running(engine, place, layer) as neighbour:
        assert LIMITS.pids == 64
        async with holding(bombed, "forks", "500") as said:
            made, error = _count(said)
            assert (error, made < 64, made > 50) == ("EAGAIN", True, True), said
            assert _counter(bombed, "pids", "pids.current", "pids.current").strip() == "64"
            refused = int(_counter(bombed, "pids", "pids.events", "pids.events").split()[1])
            assert refused >= 1
            subprocess.run(["true"], check=True, timeout=10)
            assert await ask(neighbour, "census") == "0"
            with pytest.raises(SpawnFailedError) as caught:
                await start(bombed, "census")
            assert caught.value.errno == EAGAIN
        # The end of the command is the end of the bomb, though its processes ignore SIGTERM.
        assert await ask(bombed, "census") == "0"


async def test_a_sandbox_full_of_processes_is_closed_whole(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as bombed:
        process = await start(bombed, "forks", "500")
        await first_line(process)
        first = int(Path(f"/proc/{host_pid(bombed)}/uid_map").read_text().split()[1])
        assert len(processes_of(range(first, first + 65_536))) == 64
        with trio.fail_after(10):
            await bombed.close()
        assert processes_of(range(first, first + 65_536)) == []
        await process.aclose()


async def test_daemons_that_hide_and_ignore_signals(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        process = await start(container, "daemons", "20")
        assert await first_line(process) == "20"
        await process.wait()
        assert await ask(container, "census") == "20"
        await process.kill_tree()
        with trio.fail_after(10):
            await process.wait_tree()
        assert await ask(container, "census") == "0"
        await process.aclose()


async def test_memory_hog(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer, attrs.evolve(LIMITS, mem_bytes=64 * MIB)) as container:
        for times in (1, 2):
            process = await start(container, "memory", str(512 * MIB))
            assert await first_line(process) == ""
            assert (await process.wait()).signal == 9
            await process.aclose()
            assert await container.oom_kills() >= times
        peak = int(_counter(container, "memory", "memory.max_usage_in_bytes", "memory.peak"))
        assert 32 * MIB < peak <= 64 * MIB
        assert await ask(container, "census") == "0"


@pytest.mark.parametrize("where", ["/root/fill", "/tmp/fill", "/fill"])
async def test_disk_fill(engine: OciEngine, place: Workplace, layer: Layer, where: str) -> None:
    async with running(engine, place, layer) as container, running(engine, place, layer) as neighbour:
        written, error = _count(await ask(container, "fill", where, str(200 * MIB)))
        assert (error, 16 * MIB < written <= 64 * MIB) == ("ENOSPC", True)
        # The image is no bigger on the host than it may be, and others have theirs.
        image = place.folder / "sandboxes" / place.ids[0] / "disk.img"
        assert image.stat().st_blocks * 512 <= 64 * MIB
        assert await ask(neighbour, "fill", where, str(MIB)) == f"{MIB} 0"


async def test_inode_fill(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        made, error = _count(await ask(container, "inodes", "/root/many", "200000"))
        assert (error, 1000 < made < 70_000) == ("ENOSPC", True)


async def test_memory_file_systems_fill(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        assert await ask(container, "fill", "/dev/shm/fill", str(200 * MIB)) == f"{64 * MIB} ENOSPC"
        assert int(_counter(container, "memory", "memory.usage_in_bytes", "memory.current")) > 64 * MIB
        written, error = _count(await ask(container, "fill", "/dev/fill", str(MIB)))
        assert (error, written <= 65_536) == ("ENOSPC", True)


async def test_descriptors_and_pipes(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        taken, error = _count(await ask(container, "descriptors", "100000"))
        assert (error, 100 < taken <= 20_000) == ("EMFILE", True)
        limits = (await ask(container, "dump", "/proc/self/limits")).splitlines()
        assert [line.split()[-3:-1] for line in limits if line.startswith("Max core file size")] == [["0", "0"]]
        async with holding(container, "pipes", "100000", identity=USER) as said:
            taken, error = _count(said)
            # By the number of descriptors, or before it by the memory of this user's pipes.
            assert error in ("EMFILE", "ENFILE", "EAGAIN", "ENOMEM")
            assert 100 < taken <= 10_000
            read, write = os.pipe()
            assert os.write(write, b"x" * 4096) == 4096
            os.close(read)
            os.close(write)


async def test_inotify_instances(engine: OciEngine, place: Workplace, layer: Layer, probe: Path) -> None:
    async with running(engine, place, layer) as container, running(engine, place, layer) as neighbour:
        assert LIMITS.inotify_instances == 32
        async with holding(container, "inotify", "500") as said, holding(container, "inotify", "500", identity=USER):
            assert said == "32 EMFILE"
            assert await ask(neighbour, "inotify", "500") == "32 EMFILE"
            done = await trio.run_process([probe, "inotify", "4"], capture_stdout=True)
            assert done.stdout == b"4 0\n"


async def test_terminals(engine: OciEngine, place: Workplace, layer: Layer, probe: Path) -> None:
    async with (
        running(engine, place, layer) as container,
        running(engine, place, layer) as neighbour,
        holding(container, "terminals", "500") as said,
    ):
        assert said == "64 ENOSPC"
        assert await ask(neighbour, "terminals", "500") == "64 ENOSPC"
        done = await trio.run_process([probe, "terminals", "4"], capture_stdout=True)
        assert done.stdout == b"4 0\n"


async def test_spinning(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer, attrs.evolve(LIMITS, vcpus=0.2)) as container:
        spent_ms = int(await ask(container, "spin", "1", "4"))
        # A fifth of a second, and what a period's quota may be overdrawn by; without a limit it is a second or more.
        assert spent_ms < 450
        periods = dict(line.split() for line in _counter(container, "cpu", "cpu.stat", "cpu.stat").splitlines())
        assert int(periods["nr_throttled"]) >= 3
