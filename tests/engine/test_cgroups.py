"""Real control groups of this host: made, filled, frozen, killed, counted and removed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from sandboxrt.engine import cgroups
from sandboxrt.engine.cgroup_events import CgroupEvents, read_flags, wait_for
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.hierarchy import FREEZER, CgroupKind, Hierarchy, this_host

pytestmark = pytest.mark.container


def both_kinds() -> list[Hierarchy]:
    """The host's v2 tree alone and its v1 trees alone, where it has them."""
    host = this_host()
    kinds = []
    if host.unified is not None:
        kinds.append(Hierarchy(kind=CgroupKind.V2, unified=host.unified, parent=host.parent))
    if FREEZER in host.v1:
        kinds.append(attrs.evolve(host, kind=CgroupKind.V1, unified=None))
    assert kinds, "these tests need control groups that can be written"
    return kinds


@pytest.fixture(params=both_kinds(), ids=lambda each: each.kind.value)
def hierarchy(request: pytest.FixtureRequest) -> Hierarchy:
    found: Hierarchy = request.param
    return found


@asynccontextmanager
async def sandbox(hierarchy: Hierarchy, *, with_events: bool = True) -> AsyncIterator[SandboxCgroups]:
    async with CgroupEvents.open() as events:
        groups = SandboxCgroups(hierarchy, secrets.token_hex(16), events if with_events else None)
        await groups.prepare()
        try:
            yield groups
        finally:
            with trio.CancelScope(shield=True):
                await groups.kill_all()
                await groups.remove()
        assert not [folder for folder in groups.folders if folder.exists()]


@contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(argv or ("sleep", "100"), stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


async def reaped(child: subprocess.Popen[bytes]) -> int:
    with trio.fail_after(10):
        return await trio.to_thread.run_sync(child.wait)


async def test_a_killed_group_is_empty_and_can_be_removed(hierarchy: Hierarchy) -> None:
    async with sandbox(hierarchy) as groups:
        group = groups.command_group()
        assert group is not None
        with process("sh", "-c", "for i in 1 2 3 4 5; do (trap '' TERM; sleep 100) & done; wait") as child:
            await group.add(child.pid)
            await group.kill()
            with trio.fail_after(5):
                await group.wait_empty()
            assert await reaped(child) == -signal.SIGKILL
        await group.remove()
        assert not group.folder.exists()


async def test_a_fork_storm_is_killed_to_the_last_process(hierarchy: Hierarchy) -> None:
    storm = "import os, time\nfor _ in range(6):\n    os.fork()\nwhile True:\n    pid = os.fork()\n    if pid == 0:\n"
    storm += "        time.sleep(0.001)\n        os._exit(0)\n    os.waitpid(pid, 0)\n"
    async with sandbox(hierarchy) as groups:
        group = groups.command_group()
        assert group is not None
        with process("sh", "-c", 'kill -STOP $$; exec "$@"', "sh", sys.executable, "-c", storm) as child:
            await group.add(child.pid)
            os.kill(child.pid, signal.SIGCONT)
            await trio.sleep(0.3)
            await group.kill()
            with trio.fail_after(10):
                await group.wait_empty()


async def test_a_signal_reaches_every_process_of_the_group_and_no_other(hierarchy: Hierarchy) -> None:
    async with sandbox(hierarchy) as groups:
        first, second = groups.command_group(), groups.command_group()
        assert first is not None
        assert second is not None
        with process() as one, process() as two, process() as other:
            await first.add(one.pid)
            await first.add(two.pid)
            await second.add(other.pid)
            await first.signal(signal.SIGTERM)
            assert await reaped(one) == await reaped(two) == -signal.SIGTERM
            with trio.fail_after(5):
                await first.wait_empty()
            assert other.poll() is None
            with trio.move_on_after(0.2) as scope:
                await second.wait_empty()
            assert scope.cancelled_caught, "a group with a living process is not empty"
            await second.kill()
            await second.wait_empty()


async def test_a_group_that_never_was_or_is_gone_is_harmless(hierarchy: Hierarchy) -> None:
    async with sandbox(hierarchy) as groups:
        group = groups.command_group()
        assert group is not None
        for _ in range(2):
            await group.signal(signal.SIGTERM)
            await group.kill()
            await group.wait_empty()
            await group.remove()
        with process() as child:
            child.kill()
            await reaped(child)
            with pytest.raises(ProcessLookupError):
                await group.add(child.pid)


async def test_removal_of_a_group_in_use_gives_up_in_time(
    hierarchy: Hierarchy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_REMOVE_TIMEOUT_S", 0.1)
    async with sandbox(hierarchy) as groups:
        group = groups.command_group()
        assert group is not None
        with process() as child:
            await group.add(child.pid)
            with pytest.raises(OSError, match="still in the control group"):
                await group.remove()


async def test_what_is_frozen_stands_still_and_goes_on(hierarchy: Hierarchy) -> None:
    count = "import time\nn = 0\nwhile True:\n    n += 1\n    open(PATH, 'w').write(str(n))\n    time.sleep(0.001)\n"
    async with sandbox(hierarchy) as groups:
        counter = Path("/tmp", f"frozen-{groups.id}")
        group = groups.command_group()
        assert group is not None
        with process(sys.executable, "-c", count.replace("PATH", repr(str(counter)))) as child:
            try:
                await group.add(child.pid)
                with trio.fail_after(5):
                    while not counter.exists():
                        await trio.sleep(0.01)
                await groups.freeze()
                stood = counter.stat().st_mtime_ns
                await trio.sleep(0.1)
                assert counter.stat().st_mtime_ns == stood
                await groups.thaw()
                with trio.fail_after(5):
                    while counter.stat().st_mtime_ns == stood:
                        await trio.sleep(0.01)
                await groups.freeze()
                file, text = groups.thawing
                stood = counter.stat().st_mtime_ns
                file.write_text(text)
                with trio.fail_after(5):
                    while counter.stat().st_mtime_ns == stood:
                        await trio.sleep(0.01)
                await groups.freeze()
                await group.kill()
                if hierarchy.unified is None:
                    # A v1 process dies when the whole sandbox runs again; ending a sandbox thaws it.
                    await groups.thaw()
                with trio.fail_after(5):
                    await groups.wait_empty()
                assert await reaped(child) == -signal.SIGKILL
            finally:
                counter.unlink(missing_ok=True)


async def test_without_events_waiting_polls(hierarchy: Hierarchy) -> None:
    async with sandbox(hierarchy, with_events=False) as groups:
        group = groups.command_group()
        assert group is not None
        with process() as child:
            await group.add(child.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(group.wait_empty)
                await trio.sleep(0.05)
                child.kill()
                nursery.cancel_scope.deadline = trio.current_time() + 5
            assert not nursery.cancel_scope.cancelled_caught


async def test_ends_of_many_sandboxes_never_break_the_start_of_others(hierarchy: Hierarchy) -> None:
    async def one() -> None:
        for _ in range(10):
            groups = SandboxCgroups(hierarchy, secrets.token_hex(16))
            await groups.prepare()
            assert all(folder.is_dir() for folder in groups.folders)
            await groups.remove()

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(one)


async def test_usage_and_oom_kills_are_counted_where_there_are_controllers() -> None:
    host = this_host()
    assert "memory" in host.controllers
    async with sandbox(host) as groups:
        folder = groups.hierarchy.limiting_folder("memory", groups.id)
        assert folder is not None
        limit = "memory.limit_in_bytes" if "memory" in host.v1 else "memory.max"
        (folder / limit).write_text(str(32 * 1024**2))
        swap = folder / ("memory.memsw.limit_in_bytes" if "memory" in host.v1 else "memory.swap.max")
        if swap.exists():
            swap.write_text(str(32 * 1024**2) if "memory" in host.v1 else "0")
        join = "; ".join(f"echo 0 > {each}/cgroup.procs" for each in groups.folders)
        with process("sh", "-c", f"{join}; sleep 0.3; exec {sys.executable} -c 'b = b\"x\" * 2**30'") as child:
            with trio.fail_after(5):
                while not (await groups.usage()).pids:
                    await trio.sleep(0.01)
            usage = await groups.usage()
            assert usage.pids == 1 or usage.pids == 2
            assert usage.memory_bytes is not None
            assert await reaped(child) == -signal.SIGKILL
        assert groups.oom_kills() == 1
        usage = await groups.usage()
        assert usage.memory_peak_bytes is not None
        assert usage.memory_peak_bytes > 16 * 1024**2
        assert usage.cpu_us is not None
        assert usage.cpu_us > 0
    assert groups.oom_kills() == 1, "the last count stays when the group is gone"


def test_a_v2_sandboxs_files_are_read_under_their_v2_names(tmp_path: Path) -> None:
    hierarchy = Hierarchy(kind=CgroupKind.V2, unified=tmp_path, controllers=frozenset({"memory", "cpu", "pids"}))
    groups = SandboxCgroups(hierarchy, "f" * 32)
    (folder := groups.folders[0]).mkdir(parents=True)
    contents = {
        "memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",
        "memory.current": "4096\n",
        "memory.peak": "8192\n",
        "cpu.stat": "usage_usec 77\nuser_usec 70\nsystem_usec 7\n",
        "pids.current": "3\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    assert groups.oom_kills() == 2
    assert groups.join_paths == ()
    assert trio.run(groups.usage) == cgroups.Usage(4096, 8192, 77, 3)


def test_v2_controllers_are_handed_down_to_the_sandboxes(tmp_path: Path) -> None:
    hierarchy = Hierarchy(
        kind=CgroupKind.V2,
        unified=tmp_path,
        parent="/user.slice/user@1.service/sandboxrt",
        controllers=frozenset({"memory", "pids"}),
        delegated=True,
    )
    parent = hierarchy.folder(tmp_path)
    parent.mkdir(parents=True)
    (parent.parent / "cgroup.controllers").write_text("memory pids io\n")
    (parent.parent / "cgroup.subtree_control").write_text("")
    (parent / "cgroup.controllers").write_text("memory pids io\n")
    (parent / "cgroup.subtree_control").write_text("pids")
    trio.run(SandboxCgroups(hierarchy, "f" * 32).prepare)
    assert (parent.parent / "cgroup.subtree_control").read_text() == "+memory +pids"
    assert (parent / "cgroup.subtree_control").read_text() == "+memory"
    assert (parent / ("f" * 32)).is_dir()


async def test_watchers_of_one_file_share_a_watch_and_a_lost_block_error_leaves_alone(tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_text("populated 1\n")
    woken = []

    async def waiter(events: CgroupEvents) -> None:
        await wait_for(lambda: read_flags(file)["populated"] == 0, events, file)
        woken.append(trio.current_time())

    with pytest.raises(KeyError, match="alone"):
        async with CgroupEvents.open() as events:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(waiter, events)
                await trio.sleep(0.05)
                file.write_text("populated 0\n")
                nursery.cancel_scope.deadline = trio.current_time() + 0.5
            assert len(woken) == 3, "events wake at once, long before the slow poll"
            raise KeyError("alone")


async def test_where_no_inotify_instance_can_be_had_waiting_still_ends(tmp_path: Path) -> None:
    file = tmp_path / "events"
    file.write_text("populated 1\n")
    events = CgroupEvents(-1)
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 5
        nursery.start_soon(wait_for, lambda: read_flags(file)["populated"] == 0, events, file)
        await trio.sleep(0.05)
        file.write_text("populated 0\n")
    assert not nursery.cancel_scope.cancelled_caught
