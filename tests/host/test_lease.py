"""Leases on sandboxes: protocol of our own, under virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from sandboxrt.errors import ResourceNotFoundError, ValidationError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.exec import Execute
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import converse
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import MemoryRecords, memory_state


async def _gone(host: Host, name: str) -> bool:
    try:
        await host.get_sandbox(name)
    except ResourceNotFoundError:
        return True
    return False


async def test_a_sandbox_goes_when_its_lease_is_not_renewed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with FakeEngine() as engine:
        async with open_host(HostConfig(state_dir=tmp_path), engine=engine, state=memory_state()) as host:
            info = await host.create_sandbox(CreateSandbox(name="leased", lease_seconds=60))
            assert info.lease_seconds == 60
            await host.create_sandbox(CreateSandbox(name="free"))
            for _ in range(5):
                await trio.sleep(50)
                assert await host.renew_lease(info.id) == 60
            # A command does not renew it: its owner may be gone all the same.
            async with converse(host, "leased", Execute(command="sleep 1000", timeout_s=0)) as reader:
                await reader.started()
                await trio.sleep(59)
                assert not await _gone(host, "leased")
                await trio.sleep(2)
            assert await _gone(host, "leased")
            assert not await _gone(host, "free")
            with pytest.raises(ResourceNotFoundError):
                await host.renew_lease(info.id)
            with pytest.raises(ValidationError, match="without a lease"):
                await host.renew_lease("free")
        assert not engine.containers


async def test_a_lease_counts_from_when_the_sandbox_is_ready_and_also_when_it_failed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        FakeEngine() as engine,
        open_host(HostConfig(state_dir=tmp_path), engine=engine, state=memory_state()) as host,
    ):
        await host.create_sandbox(CreateSandbox(name="box", lease_seconds=10))
        next(iter(engine.containers.values())).die("killed by a test")
        with trio.fail_after(5):
            while (await host.get_sandbox("box")).status != "failed":
                await trio.sleep(0.1)
        await trio.sleep(11)
        assert await _gone(host, "box")


async def test_a_lease_begins_anew_with_the_next_host(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    config, state = HostConfig(state_dir=tmp_path, keep=True), memory_state()
    async with FakeEngine() as engine:
        async with open_host(config, engine=engine, state=state) as host:
            await host.create_sandbox(CreateSandbox(name="box", lease_seconds=30))
            await trio.sleep(20)
        assert isinstance(state.records, MemoryRecords)
        async with open_host(config, engine=engine, state=state) as host:
            host.adopt(list(state.records.rows.values()))
            await trio.sleep(25)
            info = await host.get_sandbox("box")
            assert (info.status, info.lease_seconds) == ("stopped", 30)
            await host.renew_lease("box")
            await trio.sleep(25)
            assert not await _gone(host, "box")
            await trio.sleep(6)
            assert await _gone(host, "box")
