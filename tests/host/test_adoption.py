"""A host that takes over what a dead one has kept: at once, however many there are and however slow this machine is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxrt.engine.remains import SESSIONS_FOLDER
from sandboxrt.errors import ResourceNotFoundError, ResourceTimeoutError, SandboxClientError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.host.opening import open_host
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.host.spill import _PREFIX
from sandboxrt.models import Limits
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.snapshots.content import ImageConfig, SnapshotContent
from sandboxrt.store import Store
from sandboxrt.testing.fake import FakeEngine


class SlowEngine(FakeEngine):
    """Frees what dead hosts left only when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_free: dict[Path, trio.Event] = {}
        self.freed: list[Path] = []
        self.asked: list[Path] = []
        self.error: Exception | None = None

    async def release(self, state_dir: Path, container_id: str) -> None:
        self.asked.append(state_dir)
        if (event := self.may_free.get(state_dir)) is not None:
            await event.wait()
        if self.error is not None:
            raise self.error
        self.freed.append(state_dir)


async def _die(state_dir: Path, *statuses: str, keep: bool = True) -> list[Path]:
    """Leave sandboxes of a host that is gone, one of each status; their folders."""
    folders = []
    async with Store.open(state_dir) as dead:
        snapshot = await dead.add_snapshot(name="app", kind="image", fs_capacity_bytes=1)
        content = SnapshotContent((), ImageConfig()).to_json(state_dir)
        await dead.finish_snapshot(snapshot.id, content=content, fs_used_bytes=0)
        for number, status in enumerate(statuses):
            name = f"{status}-{number}"
            row = await dead.add_sandbox(name=name, snapshot_id=snapshot.id, limits=Limits(), keep=keep)
            await dead.set_sandbox_status(row.id, status, "as it was" if status == "failed" else None)
            folders.append(sandbox_dir(state_dir, row.engine_id))
    return folders


@asynccontextmanager
async def _taken_over(state_dir: Path, engine: FakeEngine) -> AsyncIterator[Host]:
    with trio.fail_after(60):
        async with engine, open_host(HostConfig(state_dir=state_dir, keep=True), engine=engine) as host:
            yield host


async def _until(true: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not true():
            await trio.sleep(0.01)


async def test_it_serves_before_what_was_left_is_freed(tmp_path: Path) -> None:
    folders = await _die(tmp_path, "stopped", "ready", "failed", "provisioning", "deleting")
    engine = SlowEngine()
    engine.may_free = {folder: trio.Event() for folder in folders}
    async with _taken_over(tmp_path, engine) as host:
        statuses = [info.status for info in await host.list_sandboxes()]
        assert statuses == ["stopped", "stopped", "failed", "deleting", "deleting"]
        # What was running has left something, so it comes first.
        await _until(lambda: bool(engine.asked))
        assert folders[1] in engine.asked[:3]
        assert folders[0] not in engine.asked
        # Its own start is the only one that waits for it.
        with pytest.raises(ResourceTimeoutError):
            await host.start_sandbox("ready-1", 0.2)
        engine.may_free[folders[1]].set()
        assert (await host.wait_for_sandbox("ready-1", 10)).status == "ready"
        for event in engine.may_free.values():
            event.set()
        await _until(lambda: set(folders) <= set(engine.freed))
        with trio.fail_after(20):
            while len(await host.list_sandboxes()) > 3:
                await trio.sleep(0.01)
        assert [info.name for info in await host.list_sandboxes()] == ["stopped-0", "ready-1", "failed-2"]


async def test_one_transaction_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await _die(tmp_path, *["stopped"] * 60)
    transactions = 0
    transact = Store.transact

    async def counting(self: Store, *arguments: Any, **more: Any) -> Any:
        nonlocal transactions
        transactions += 1
        return await transact(self, *arguments, **more)

    monkeypatch.setattr(Store, "transact", counting)
    async with _taken_over(tmp_path, FakeEngine()) as host:
        assert len(await host.list_sandboxes()) == 60
        assert transactions < 20


async def test_what_cannot_be_freed_fails_a_start_and_not_the_host(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder,) = await _die(tmp_path, "ready")
    engine = SlowEngine()
    engine.error = RuntimeError("loop device busy")
    async with _taken_over(tmp_path, engine) as host:
        await _until(lambda: "loop device busy" in caplog.text)
        with pytest.raises(SandboxClientError, match="loop device busy"):
            await host.start_sandbox("ready-0")
        engine.error = None
        assert (await host.start_sandbox("ready-0")).status == "ready"
        assert engine.freed == [folder]


async def test_embedded_leftovers_go_beside_it_and_names_wait_for_that(tmp_path: Path) -> None:
    (folder,) = await _die(tmp_path, "ready", keep=False)

    class SlowDiscard(FakeEngine):
        may = trio.Event()

        async def discard(self, state_dir: Path, container_id: str) -> None:
            if state_dir == folder:
                await self.may.wait()
            await super().discard(state_dir, container_id)

    engine = SlowDiscard()
    async with _taken_over(tmp_path, engine) as host:
        assert await host.list_sandboxes() == []
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("ready-0")
        async with Store.open(tmp_path) as store:
            (row,) = await store.list_sandboxes()
        made: list[str] = []

        async def create() -> None:
            made.append((await host.create_sandbox(CreateSandbox(name="ready-0", snapshot_id=row.snapshot_id))).status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await trio.sleep(0.2)
            assert made == []
            engine.may.set()
        assert made == ["ready"]


async def test_what_commands_left_goes_with_it(tmp_path: Path) -> None:
    folders = await _die(tmp_path, "ready", "stopped")
    left = []
    for folder in folders:
        (folder / SESSIONS_FOLDER).mkdir(parents=True)
        left.append(folder / SESSIONS_FOLDER / f"{_PREFIX}of-a-dead-host")
        left[-1].write_bytes(b"output")
    async with _taken_over(tmp_path, FakeEngine()):
        await _until(lambda: not any(path.exists() for path in left))
