"""The host and its sandboxes: ownership, failures, lifetimes, shared state folders."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from sandboxrt.errors import (
    ClientClosedError,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxClientError,
    SandboxNotReadyError,
    SandboxOperationError,
)
from sandboxrt.host.host import Host, HostConfig
from sandboxrt.host.opening import clean_leftovers, open_host
from sandboxrt.host.ports import HostState
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.models import Limits
from sandboxrt.protocol.exec import ErrorFrame, Execute, Exit
from sandboxrt.protocol.rest import CreateSandbox, CreateSnapshot, UpdateSandbox
from sandboxrt.store import RegistryRecords, Store
from sandboxrt.testing.conformance import converse, run
from sandboxrt.testing.fake import FakeEngine, Faults
from sandboxrt.testing.state import MemoryContents, MemoryImage, MemoryRecords, MemorySnapshots, memory_state, state_of

from .conftest import OpenFake

BOX = CreateSandbox(name="box")


# -- what the caller's exceptions and cancels do -----------------------------------------------------------------------


async def test_the_callers_exception_leaves_as_it_is(fake_host: OpenFake) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with fake_host():
            raise KeyError("mine")


class Steps(trio.abc.Instrument):
    """Cancels a scope at the n-th task step after it was armed."""

    def __init__(self) -> None:
        self.left = -1
        self.scope: trio.CancelScope | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.scope is not None:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def test_cancel_at_every_step_leaves_nothing(tmp_path: Path) -> None:
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    for number in range(1, 2000):
        async with FakeEngine() as engine:
            state = memory_state()
            with trio.CancelScope() as scope:
                steps.scope, steps.left = scope, number
                async with open_host(HostConfig(state_dir=tmp_path), engine=engine, state=state) as host:
                    await host.create_sandbox(BOX)
                    async with converse(host, "box", Execute(command="sleep 100 & echo x; cat")) as reader:
                        await reader.until("x")
                    await host.delete_sandbox("box")
            steps.scope = None
            assert not engine.containers, number
            assert not engine.kept, number
            assert isinstance(state.records, MemoryRecords)
            assert not state.records.rows, number
        if not scope.cancelled_caught and steps.left > 0:
            break
    else:
        pytest.fail("never went through uncancelled")
    assert number > 50
    trio.lowlevel.remove_instrument(steps)


async def test_a_failed_create_leaves_nothing_and_may_be_repeated(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(engine=FakeEngine(Faults(create_error=RuntimeError("boom"))), box=False) as (host, engine):
        with pytest.raises(ResourceCreationError, match="boom") as raised:
            await host.create_sandbox(BOX)
        assert raised.value.resource_type == "sandbox"
        assert await host.list_sandboxes() == []
        engine.faults.create_error = None
        assert (await host.create_sandbox(BOX)).status == "ready"


async def test_a_create_that_takes_too_long_is_taken_back(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(engine=FakeEngine(Faults(create_delay_s=60)), box=False) as (host, _):
        with pytest.raises(ResourceTimeoutError) as raised:
            await host.create_sandbox(attrs.evolve(BOX, timeout_s=10))
        assert raised.value.last_status == "provisioning"
        assert "not ready after 10s" in str(raised.value)
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("box")


async def test_not_ready_yet_is_said(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(engine=FakeEngine(Faults(create_delay_s=60)), box=False) as (host, _):
        info = await host.create_sandbox(attrs.evolve(BOX, wait_for_ready=False))
        assert (info.status, info.expires_at) == ("provisioning", None)
        for doing in (host.attach("box", Execute(command="true")), host.read_file("box", "/x"), host.isolation("box")):
            with pytest.raises(SandboxNotReadyError, match="not ready \\(status: provisioning\\)"):
                await doing
        with pytest.raises(ResourceTimeoutError):
            await host.wait_for_sandbox("box", 5, 1)
        assert (await host.wait_for_sandbox("box", 100, 1)).status == "ready"


async def test_a_background_create_that_fails_says_so(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    faults = Faults(create_error=ResourceCreationError("no image", "sandbox", "ImagePull"), create_delay_s=1)
    async with fake_host(engine=FakeEngine(faults), box=False) as (host, _):
        await host.create_sandbox(attrs.evolve(BOX, wait_for_ready=False))
        with pytest.raises(ResourceCreationError, match="no image") as raised:
            await host.wait_for_sandbox("box", 10, 1)
        assert raised.value.error_type == "ImagePull"
        status = await host.sandbox_status("box")
        assert status.status == "failed"
        assert "no image" in str(status.status_message)
        await host.delete_sandbox("box")
        assert await host.list_sandboxes() == []


async def test_creates_take_turns(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    engine = FakeEngine(Faults(create_delay_s=1))
    async with fake_host(engine=engine, box=False, max_concurrent_creates=5) as (host, _):
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(host.create_sandbox, CreateSandbox(name=f"box{number}"))
        assert trio.current_time() - began == pytest.approx(4)


# -- deaths ------------------------------------------------------------------------------------------------------------


async def test_a_dead_container_fails_its_sandbox_and_no_other(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, engine):
        await host.create_sandbox(CreateSandbox(name="other"))
        victim, other = engine.containers.values()
        async with (
            converse(host, "box", Execute(command="echo one; sleep 100")) as reader,
            converse(host, "other", Execute(command="sleep 2; echo fine")) as neighbour,
        ):
            await reader.until("one")
            victim.die("its first process was shot")
            outcome = await reader.to_end()
            assert outcome.error.error_type == "SandboxDied"
            assert "its first process was shot" in outcome.error.error
            assert (await neighbour.to_end()).stdout == "fine\n"
        await trio.sleep(1)
        assert list(engine.containers.values()) == [other]
        assert len(engine.kept) == 1
        status = await host.sandbox_status("box")
        assert status.status == "failed"
        with pytest.raises(SandboxNotReadyError, match="its first process was shot"):
            await host.attach("box", Execute(command="true"))
        with pytest.raises(SandboxNotReadyError):
            await host.read_file("box", "/etc/passwd")
        await host.delete_sandbox("box")
        assert (await host.create_sandbox(BOX)).status == "ready"


async def use_amid_faults(host: Host, name: str) -> None:
    """Whatever happens is an end that a client understands."""
    try:
        await host.create_sandbox(CreateSandbox(name=name))
        for _ in range(3):
            end = (await run(host, name, "sleep 0.1; echo x")).end
            assert isinstance(end, Exit | ErrorFrame)
            assert end == Exit(0) or (isinstance(end, ErrorFrame) and end.error_type in ("CommandError", "SandboxDied"))
    except SandboxClientError:
        return


async def test_faults_of_any_seed_leave_order_behind(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    for seed in range(20):
        faults = Faults(create_failure=0.2, slow_spawn=0.3, spawn_failure=0.2, container_death=0.1)
        async with (
            fake_host(engine=FakeEngine(faults, seed=seed), box=False) as (host, _),
            trio.open_nursery() as nursery,
        ):
            for number in range(8):
                nursery.start_soon(use_amid_faults, host, f"box{number}")


async def test_what_cannot_be_removed_is_reported_and_left_to_the_next_start(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, engine):
        engine.faults.close_error = RuntimeError("mount busy")
        with pytest.raises(SandboxClientError, match="mount busy"):
            await host.delete_sandbox("box")
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("box")
        row = await host._records.find_sandbox("box")
        assert row.name == "box"
        engine.faults.close_error = None


async def test_a_closed_host_says_so(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host() as (host, _):
        attachment = await host.attach("box", Execute(command="sleep 100"))
    end = await attachment.receive()
    assert isinstance(end, ErrorFrame)
    assert end.error_type == "SandboxDeleted"
    for doing in (host.create_sandbox(BOX), host.get_sandbox("box"), host.list_snapshots()):
        with pytest.raises(ClientClosedError):
            await doing


async def test_many_sandboxes_are_removed_together(fake_host: OpenFake) -> None:
    async with fake_host(box=False) as (host, engine):
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(host.create_sandbox, CreateSandbox(name=f"box{number}"))
        for number in range(0, 100, 10):
            await host.attach(f"box{number}", Execute(command="trap '' TERM; sleep 1000"))
        assert len(engine.containers) == 100


# -- lifetimes ---------------------------------------------------------------------------------------------------------


async def test_sandboxes_go_when_their_time_has_come(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="short", ttl_seconds=120))
        await host.create_sandbox(CreateSandbox(name="idle", idle_ttl_seconds=60))
        await host.create_sandbox(CreateSandbox(name="busy", idle_ttl_seconds=60))
        await host.create_sandbox(CreateSandbox(name="kept", ttl_seconds=0, idle_ttl_seconds=0))
        assert (await host.get_sandbox("short")).expires_at
        assert (await host.get_sandbox("kept")).expires_at is None
        async with converse(host, "busy", Execute(command="sleep 200", timeout_s=0)) as reader:
            await trio.sleep(50)
            await host.read_file("idle", "/etc/passwd")
            await trio.sleep(50)
            assert {s.name for s in await host.list_sandboxes()} == {"short", "idle", "busy", "kept"}
            await trio.sleep(30)
            assert {s.name for s in await host.list_sandboxes()} == {"busy", "kept"}
            assert (await reader.to_end()).exit_code == 0
        await trio.sleep(55)
        assert {s.name for s in await host.list_sandboxes()} == {"busy", "kept"}
        await trio.sleep(10)
        assert {s.name for s in await host.list_sandboxes()} == {"kept"}
        await host.update_sandbox("kept", UpdateSandbox(idle_ttl_seconds=60))
        await trio.sleep(61)
        assert await host.list_sandboxes() == []


# -- snapshots and files -----------------------------------------------------------------------------------------------


async def test_an_images_settings_are_honoured(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    records = MemoryRecords()
    snapshots = MemorySnapshots(records)
    image = MemoryImage(env={"A": "image", "PATH": "/opt/bin"}, user="user:staff", work_dir="/home/user")
    made = snapshots.add("mine", MemoryContents(config=image))
    async with FakeEngine() as engine:
        state = state_of(records, snapshots)
        async with open_host(HostConfig(state_dir=tmp_path), engine=engine, state=state) as host:
            info = await host.create_sandbox(CreateSandbox(name="box", snapshot_name="mine", env={"B": "box"}))
            assert info.snapshot_id == made.id
            script = "printenv A; printenv B; printenv PATH; printenv HOME; printenv HOSTNAME; pwd; id -u"
            outcome = await run(host, "box", script)
            assert outcome.stdout == "image\nbox\n/opt/bin\n/home/user\nbox\n/home/user\n1000\n"
            with pytest.raises(SandboxOperationError) as raised:
                await host.read_file("box", "/root/x")
            assert raised.value.error_type == "PermissionDenied"
            with pytest.raises(ResourceInUseError):
                await host.delete_snapshot(made.id)
            wrong = snapshots.add("wrong", MemoryContents(config=MemoryImage(user="ghost")))
            await host.create_sandbox(CreateSandbox(name="wrong", snapshot_id=wrong.id))
            assert "ghost" in (await run(host, "wrong", "true")).error.error
            with pytest.raises(SandboxOperationError, match="ghost"):
                await host.read_file("wrong", "/etc/passwd")


async def test_a_full_disk_refuses_a_file_and_keeps_the_old_one(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async def content(data: bytes):  # type: ignore[no-untyped-def]
        yield data

    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box", limits=Limits(disk_bytes=10_000)))
        await host.write_file("box", "/a", content(b"old"))
        with pytest.raises(SandboxOperationError) as raised:
            await host.write_file("box", "/a", content(b"x" * 20_000))
        assert (raised.value.operation, raised.value.error_type) == ("write", "NoSpace")
        assert await host.read_file("box", "/a") == b"old"


async def test_snapshots_pass_through(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(box=False) as (host, _):
        request = CreateSnapshot(name="py", docker_image="python:3.12-slim", fs_capacity_bytes=4 * 1024**3)
        made = await host.create_snapshot(request)
        assert (await host.wait_for_snapshot(made.id, 60)).status == "ready"
        assert [s.name for s in await host.list_snapshots("PY", 10, 0)] == ["py"]
        assert [p.phase for p in [p async for p in host.snapshot_progress(made.id)]] == ["done"]
        await host.delete_snapshot(made.id)
        with pytest.raises(ResourceNotFoundError):
            await host.get_snapshot(made.id)


# -- several owners of one state folder, with the real store -----------------------------------------------------------


class Snapshots(MemorySnapshots):
    """Snapshots that the real store knows of."""

    def __init__(self, store: Store) -> None:
        super().__init__(MemoryRecords())
        self._store = store

    async def host_snapshot(self):  # type: ignore[no-untyped-def]
        rows = await self._store.snapshots_where(kind="host", status="ready")
        if not rows:
            row = await self._store.add_snapshot(name="host", kind="host", fs_capacity_bytes=1)
            await self._store.finish_snapshot(row.id, content="{}", fs_used_bytes=0)
            rows = (row,)
        return rows[0].public

    async def use(self, snapshot_id: str) -> MemoryContents:
        return MemoryContents()


async def test_two_owners_share_a_state_folder(tmp_path: Path) -> None:
    config = HostConfig(state_dir=tmp_path)
    async with (
        FakeEngine() as engine,
        Store.open(tmp_path) as one,
        Store.open(tmp_path) as two,
        open_host(config, engine=engine, state=HostState(one, Snapshots(one), RegistryRecords(one))) as first,
        open_host(config, engine=engine, state=HostState(two, Snapshots(two), RegistryRecords(two))) as second,
    ):
        info = await first.create_sandbox(BOX)
        for key in ("box", info.id):
            with pytest.raises(ResourceInUseError, match="another event loop of this process") as raised:
                await second.get_sandbox(key)
            assert raised.value.used_by == (str(await one.owner(one.owner_id)),)
        with pytest.raises(ResourceAlreadyExistsError):
            await second.create_sandbox(BOX)
        assert await second.list_sandboxes() == []
        (seen,) = await second.list_elsewhere()
        assert (seen.id, seen.name, seen.mem_bytes) == (info.id, "box", info.mem_bytes)
        assert seen.owner is not None and seen.owner.pid == os.getpid()
        assert await first.list_elsewhere() == []
        assert await clean_leftovers(tmp_path, engine=engine) == []
        assert (await first.get_sandbox("box")).status == "ready"


async def test_what_a_dead_owner_left_is_cleaned_and_its_name_is_free(tmp_path: Path) -> None:
    async with FakeEngine() as engine:
        names = []
        async with Store.open(tmp_path) as dead:
            snapshot = await Snapshots(dead).host_snapshot()
            for number in range(3):
                row = await dead.add_sandbox(name=f"box{number}", snapshot_id=snapshot.id, limits=Limits())
                folder = sandbox_dir(tmp_path, row.engine_id)
                folder.mkdir(parents=True)
                names.append(row.name)
        assert await clean_leftovers(tmp_path, engine=engine) == names
        assert await clean_leftovers(tmp_path, engine=engine) == []
        async with Store.open(tmp_path) as dead:
            await dead.add_sandbox(name="box", snapshot_id=snapshot.id, limits=Limits())
        async with Store.open(tmp_path) as alive:

            async def reclaim() -> None:
                await clean_leftovers(tmp_path, engine=engine)

            state = HostState(alive, Snapshots(alive), RegistryRecords(alive), reclaim)
            async with open_host(HostConfig(state_dir=tmp_path), engine=engine, state=state) as host:
                with pytest.raises(ResourceNotFoundError):
                    await host.get_sandbox("box")
                assert (await host.create_sandbox(BOX)).status == "ready"
