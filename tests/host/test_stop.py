"""Stop and start of sandboxes: what stays, what goes, and when; fake engine, virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sandboxrt.errors import (
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceNotFoundError,
    SandboxNotReadyError,
)
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.host.lifetime import expiry_at_rest
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.exec import Execute, Reconnect
from sandboxrt.protocol.rest import CreateSandbox, UpdateSandbox
from sandboxrt.testing.conformance import converse, run
from sandboxrt.testing.fake import FakeEngine, Faults
from sandboxrt.testing.state import memory_state


@asynccontextmanager
async def opened(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[Host, FakeEngine]]:
    async with FakeEngine() as engine:
        config = HostConfig(state_dir=tmp_path, **settings)
        async with open_host(config, engine=engine, state=memory_state()) as host:
            yield host, engine
        assert not engine.containers


async def test_sessions_end_with_the_stop(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path) as (host, engine):
        await host.create_sandbox(CreateSandbox(name="box"))
        done = await run(host, "box", "echo done", command_id="done")
        assert done.exit_code == 0
        await host.stop_sandbox("box")
        assert not engine.containers
        for doing in (
            run(host, "box", "true"),
            host.read_file("box", "/etc/hostname"),
            host.isolation("box"),
        ):
            with pytest.raises(SandboxNotReadyError, match="start it first"):
                await doing
        await host.start_sandbox("box")
        # Sessions are of what ran, and that is gone.
        async with converse(host, "box", Reconnect("done")) as reader:
            assert (await reader.to_end()).error.error_type == "CommandInterrupted"


async def test_days_are_counted_while_stopped(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path) as (host, engine):
        await host.create_sandbox(CreateSandbox(name="mortal", ttl_seconds=600, idle_ttl_seconds=60))
        await host.stop_sandbox("mortal")
        await trio.sleep(500)
        # The idle time does not count for what cannot be used.
        assert (await host.get_sandbox("mortal")).status == "stopped"
        await host.update_sandbox("mortal", UpdateSandbox(ttl_seconds=1200))
        await trio.sleep(600)
        assert (await host.get_sandbox("mortal")).status == "stopped"
        await trio.sleep(200)
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("mortal")
        assert not engine.kept


@pytest.mark.parametrize(
    ("created", "stopped", "ttl", "after_stop", "expected"),
    [
        (0, None, None, None, float("inf")),
        (0, 10, 0, 0, float("inf")),
        (5, 10, 60, None, 65),
        (5, 10, None, 120, 130),
        (5, 10, 600, 120, 130),
        (5, None, None, 120, float("inf")),
    ],
)
def test_the_deadline_of_what_is_stopped(
    created: float, stopped: float | None, ttl: int | None, after_stop: int | None, expected: float
) -> None:
    found = expiry_at_rest(
        created_at=created, stopped_at=stopped, ttl_seconds=ttl, delete_after_stop_seconds=after_stop
    )
    assert found == expected


async def test_a_start_that_fails_keeps_the_files(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path) as (host, engine):
        await host.create_sandbox(CreateSandbox(name="box"))
        await run(host, "box", "echo kept > /tmp/file")
        await host.stop_sandbox("box")
        engine.faults = Faults(create_error=ResourceCreationError("no room", "sandbox"))
        with pytest.raises(ResourceCreationError, match="no room"):
            await host.start_sandbox("box")
        assert (await host.get_sandbox("box")).status == "failed"
        engine.faults = Faults()
        assert (await host.start_sandbox("box")).status == "ready"
        assert (await run(host, "box", "cat /tmp/file")).stdout == "kept\n"


async def test_names_stay_taken_while_stopped(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box", exclusive=True))
        await host.stop_sandbox("box")
        with pytest.raises(ResourceAlreadyExistsError):
            await host.create_sandbox(CreateSandbox(name="box", exclusive=True))
        await host.delete_sandbox("box")
        await host.create_sandbox(CreateSandbox(name="box", exclusive=True))


async def test_what_died_cannot_be_stopped_or_started(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path) as (host, engine):
        await host.create_sandbox(CreateSandbox(name="box"))
        next(iter(engine.containers.values())).die("killed by a test")
        await trio.sleep(1)
        for doing in (host.stop_sandbox("box"), host.start_sandbox("box")):
            with pytest.raises(SandboxNotReadyError, match="killed by a test"):
                await doing


async def test_stops_and_starts_in_any_haste(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with opened(tmp_path) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box"))
        async with converse(host, "box", Execute(command="sleep 1000")) as reader:
            await reader.started()
            for _ in range(20):
                with trio.move_on_after(0):
                    await host.stop_sandbox("box")
                with trio.move_on_after(0):
                    await host.start_sandbox("box")
        assert (await host.start_sandbox("box", 30)).status == "ready"
        assert (await run(host, "box", "echo here")).stdout == "here\n"
        await host.stop_sandbox("box")
        # A deletion takes a start that is under way with it; afterwards none begins.
        await host.start_sandbox("box", None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.delete_sandbox, "box")
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises((SandboxNotReadyError, ResourceNotFoundError)):
                await host.start_sandbox("box")
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("box")
