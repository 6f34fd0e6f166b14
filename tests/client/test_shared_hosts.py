"""Clients of one run and state folder share its host: what each sees, what goes with whom, and what is refused."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from sandboxrt import Limits, ResourceInUseError, ResourceNotFoundError, SandboxClientError
from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.testing.fake import FakeEngine
from tests.cancelling import CancelAt


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as engine:
        yield engine


def embedded(state_dir: Path, engine: FakeEngine, **more: object) -> AsyncSandboxClient:
    return AsyncSandboxClient(mode="embedded", state_dir=state_dir, engine=engine, **more)  # type: ignore[arg-type]


@asynccontextmanager
async def open_elsewhere(client: AsyncSandboxClient) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A client in a task of its own, which closes it at any time."""
    closing, closed = trio.Event(), trio.Event()

    async def live(task_status: trio.TaskStatus[None]) -> None:
        async with client:
            task_status.started()
            await closing.wait()
        closed.set()

    async def close() -> None:
        closing.set()
        await closed.wait()

    async with trio.open_nursery() as nursery:
        await nursery.start(live)
        try:
            yield close
        finally:
            closing.set()


async def names(client: AsyncSandboxClient) -> list[str]:
    return [sandbox.name for sandbox in await client.list_sandboxes()]


async def test_each_uses_what_the_other_created(tmp_path: Path, engine: FakeEngine) -> None:
    async with embedded(tmp_path, engine) as one, embedded(tmp_path, engine) as other:
        mine = await one.create_sandbox(name="mine")
        assert await names(other) == ["mine"]
        found = await other.get_sandbox("mine")
        assert (found.id, found.owner) == (mine.id, None)
        assert (await found.run("echo hello")).stdout == "hello\n"
        await found.write("/root/x", "content")
        assert await mine.read("/root/x") == b"content"
        await found.delete()
        assert await names(one) == []


async def test_paths_that_mean_the_same_folder(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    async with (
        embedded(tmp_path / "real", engine) as one,
        embedded(tmp_path / "link", engine) as other,
        embedded(Path("link/../real"), engine) as third,
    ):
        await one.create_sandbox(name="mine")
        assert await names(other) == await names(third) == ["mine"]


async def test_what_a_client_created_goes_with_it(tmp_path: Path, engine: FakeEngine) -> None:
    """Whoever uses it; the rest stays, until the last client leaves."""
    async with embedded(tmp_path, engine) as stays:
        await stays.create_sandbox(name="kept")
        async with embedded(tmp_path, engine) as leaves:
            await leaves.create_sandbox(name="goes")
            used = await stays.get_sandbox("goes")
            assert (await used.run("true")).exit_code == 0
            assert (await (await leaves.get_sandbox("kept")).run("true")).exit_code == 0
        assert await names(stays) == ["kept"]
        for use in (
            lambda: stays.get_sandbox("goes"),
            lambda: used.run("true"),
            lambda: used.read("/etc/passwd"),
            lambda: used.write("/x", ""),
            lambda: used.isolation(),
            lambda: used.stop(),
        ):
            with pytest.raises(ResourceNotFoundError, match="went with the client that created it"):
                await use()
        with pytest.raises(ResourceNotFoundError, match=r"^Sandbox 'other' not found$"):
            await stays.get_sandbox("other")
    async with embedded(tmp_path, engine) as later:
        assert await names(later) == []


async def test_the_one_that_opened_the_host_may_leave_first(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_elsewhere(embedded(tmp_path, engine)) as close_first, embedded(tmp_path, engine) as second:
        kept = await second.create_sandbox(name="kept")
        handle = await kept.run("sleep 30", wait=False, timeout=0)
        await close_first()
        assert await names(second) == ["kept"]
        await handle.kill()
        assert (await kept.run("echo on")).stdout == "on\n"


async def test_what_two_created_goes_with_the_second(tmp_path: Path, engine: FakeEngine) -> None:
    """A cell of a notebook that runs again makes a new client, asks for the same sandbox, and drops the old client."""
    async with embedded(tmp_path, engine) as watches:
        old = embedded(tmp_path, engine)
        async with open_elsewhere(old) as close_old:
            await old.create_sandbox(name="mine")
            async with embedded(tmp_path, engine) as new:
                again = await new.create_sandbox(name="mine")
                await close_old()
                assert (await again.run("echo still")).stdout == "still\n"
            assert await names(watches) == []


async def test_settings_of_a_client_are_its_own(tmp_path: Path, engine: FakeEngine) -> None:
    small, large = Limits(mem_bytes=2**27), Limits(mem_bytes=2**28)
    async with embedded(tmp_path, engine, limits=small) as one, embedded(tmp_path, engine, limits=large) as other:
        for client, limits in ((one, small), (other, large), (one, small)):
            async with client.sandbox() as sandbox:
                assert sandbox.mem_bytes == limits.mem_bytes


async def test_another_engine_or_runtime_is_refused(tmp_path: Path, engine: FakeEngine) -> None:
    async with embedded(tmp_path, engine, runtime="crun") as one:
        async with FakeEngine() as another:
            with pytest.raises(ValueError, match=r"another engine.*state_dir= of its own"):
                async with embedded(tmp_path, another):
                    pass
        with pytest.raises(ValueError, match=r"with another engine= \(.*not an OCI runtime\)"):
            async with AsyncSandboxClient(mode="embedded", state_dir=tmp_path):
                pass
        with pytest.raises(ValueError, match="runtime='crun', not 'runc'; leave runtime= out"):
            async with embedded(tmp_path, engine, runtime="runc"):
                pass
        async with embedded(tmp_path, engine) as takes_what_there_is:
            assert await names(takes_what_there_is) == []
        # Whoever was refused took nothing along.
        assert (await (await one.create_sandbox()).run("true")).exit_code == 0


async def test_opening_fails_for_all_who_wait(tmp_path: Path, engine: FakeEngine) -> None:
    place = tmp_path / "file"
    place.write_text("no folder")
    errors: list[Exception] = []

    async def use() -> None:
        try:
            async with embedded(place, engine):
                pass
        except SandboxClientError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(use)
    assert len(errors) == 3 and all(str(place) in str(error) for error in errors)
    place.unlink()
    async with embedded(place, engine) as client:
        assert await names(client) == []


@pytest.mark.parametrize("shared", [True, False])
async def test_cancelled_while_it_opens_or_closes(tmp_path: Path, engine: FakeEngine, shared: bool) -> None:
    """At every step of one client's life; another one, which shares the host or comes later, goes on."""

    async def live() -> None:
        async with embedded(tmp_path, engine) as client:
            await client.create_sandbox(name="mine")

    for step in range(1, 400, 2):
        instrument = CancelAt(step)
        if not shared:
            await instrument.run(live)
        async with embedded(tmp_path, engine) as other:
            if shared:
                await instrument.run(live)
            assert await names(other) == [], step
        if not instrument.scope.cancelled_caught:
            break
    assert 10 < step < 390


async def test_another_run_of_this_process(tmp_path: Path, engine: FakeEngine) -> None:
    """It has a host of its own; what is said of its sandboxes is true."""
    done = threading.Event()

    def elsewhere() -> None:
        async def main() -> None:
            async with FakeEngine() as its_own, embedded(tmp_path, its_own) as client:
                await client.create_sandbox(name="theirs")
                token.run_sync_soon(created.set)
                await trio.to_thread.run_sync(done.wait)

        trio.run(main)

    created, token = trio.Event(), trio.lowlevel.current_trio_token()
    async with trio.open_nursery() as nursery, embedded(tmp_path, engine) as client:
        nursery.start_soon(trio.to_thread.run_sync, elsewhere)
        await created.wait()
        await client.create_sandbox(name="ours")
        assert await names(client) == ["ours"]
        ours, theirs = await client.list_sandboxes(elsewhere=True)
        assert (ours.name, ours.owner) == ("ours", None)
        assert theirs.name == "theirs"
        assert theirs.owner is not None and theirs.owner.pid == os.getpid()
        for use in (lambda: client.get_sandbox("theirs"), lambda: theirs.run("true"), lambda: theirs.delete()):
            with pytest.raises(ResourceInUseError, match="another event loop of this process"):
                await use()
        done.set()
