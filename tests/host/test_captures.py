"""Captures under virtual time: who waits for them, who ends them, and what they keep alive."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sandboxrt.errors import ResourceCreationError, ResourceNotFoundError, SandboxClientError, SandboxNotReadyError
from sandboxrt.host.host import Host
from sandboxrt.models import Snapshot
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox
from sandboxrt.testing.fake import FakeEngine, Faults
from tests.host.conftest import OpenFake

SLOW = Faults(capture_delay_s=30)


async def capture(host: Host, name: str = "box") -> Snapshot:
    begun = await host.capture_snapshot(name, CaptureSnapshot(name="captured"))
    return await host.wait_for_snapshot(begun.id, 60)


async def test_a_stop_waits_for_a_capture(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(engine=FakeEngine(SLOW)) as (host, _), trio.open_nursery() as nursery:
        began = trio.current_time()
        nursery.start_soon(capture, host)
        await trio.sleep(1)
        await host.stop_sandbox("box")
        assert trio.current_time() - began >= 30
        assert (await host.get_snapshot("captured")).status == "ready"


async def test_a_start_waits_for_the_capture_of_what_is_stopped(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(engine=FakeEngine(SLOW)) as (host, _), trio.open_nursery() as nursery:
        await host.stop_sandbox("box")
        began = trio.current_time()
        nursery.start_soon(capture, host)
        await trio.sleep(1)
        assert (await host.start_sandbox("box")).status == "ready"
        assert trio.current_time() - began >= 30


async def test_a_capture_waits_for_a_stop_that_goes_on(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, engine), trio.open_nursery() as nursery:
        nursery.start_soon(host.stop_sandbox, "box")
        await trio.testing.wait_all_tasks_blocked()
        assert (await capture(host)).status == "ready"
        assert not engine.containers


async def test_a_deletion_ends_captures_those_that_wait_too(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(engine=FakeEngine(SLOW)) as (host, _):
        failed = []

        async def fail() -> None:
            with pytest.raises(ResourceCreationError, match="ended while it was captured") as caught:
                await capture(host)
            failed.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fail)
            await trio.sleep(1)
            began = trio.current_time()
            await host.delete_sandbox("box")
            assert trio.current_time() == began
        assert len(failed) == 3


async def test_a_capture_is_activity(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(engine=FakeEngine(Faults(capture_delay_s=3600)), box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=60))
        begun = await host.capture_snapshot("box", CaptureSnapshot(name="long"))
        assert (await host.wait_for_snapshot(begun.id, 4000)).status == "ready"
        await trio.sleep(50)
        assert (await host.get_sandbox("box")).status == "ready"


async def test_what_cannot_be_captured_says_why(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    reason = ResourceCreationError("No space left on device", "snapshot", "DiskFull")
    async with fake_host(engine=FakeEngine(Faults(capture_error=reason))) as (host, engine):
        with pytest.raises(ResourceCreationError, match="No space left"):
            await capture(host)
        engine.faults.create_delay_s = 10
        await host.create_sandbox(CreateSandbox(name="slow", wait_for_ready=False))
        with pytest.raises(SandboxNotReadyError, match="provisioning"):
            await capture(host, "slow")
        with pytest.raises(ResourceNotFoundError):
            await capture(host, "nobody")
        box = (await host.get_sandbox("box")).id.replace("-", "")
        next(each for name, each in engine.containers.items() if name.endswith(box)).die("it was told to")
        await trio.sleep(1)
        with pytest.raises(SandboxNotReadyError, match="it was told to"):
            await capture(host)


async def test_closing_the_host_ends_captures(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        async with fake_host(engine=FakeEngine(SLOW)) as (host, _):

            async def fail() -> None:
                with pytest.raises(SandboxClientError):
                    await capture(host)

            nursery.start_soon(fail)
            await trio.sleep(1)
            began = trio.current_time()
        assert trio.current_time() == began
