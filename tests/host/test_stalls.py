"""What a pause of the whole process (stopped, suspended) does to the lives of sandboxes, under virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from sandboxrt.errors import ResourceNotFoundError
from sandboxrt.host.host import Host
from sandboxrt.protocol.rest import CreateSandbox
from tests.host.conftest import OpenFake


async def _is_there(host: Host) -> bool:
    await trio.sleep(0.01)
    try:
        return (await host.get_sandbox("leased")).status == "ready"
    except ResourceNotFoundError:
        return False


@pytest.mark.parametrize("before_s", [0, 5, 19, 59.5], ids=str)
@pytest.mark.parametrize("pause_s", [41, 90, 100_000], ids=str)
async def test_a_lease_has_a_round_again(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock, before_s: float, pause_s: float
) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="leased", lease_seconds=60, idle_ttl_seconds=0))
        await trio.sleep(before_s)
        autojump_clock.jump(pause_s)
        # Its owner notices late, and needs nearly the whole round.
        await trio.sleep(55)
        assert await _is_there(host)
        await host.renew_lease("leased")
        await trio.sleep(59)
        assert await _is_there(host)
        # Without a pause it ends as ever.
        await trio.sleep(20)
        assert not await _is_there(host)


async def test_pauses_again_and_again(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="leased", lease_seconds=60, idle_ttl_seconds=0))
        for _ in range(5):
            await trio.sleep(30)
            autojump_clock.jump(300)
        assert await _is_there(host)
        await trio.sleep(61)
        assert not await _is_there(host)


async def test_nothing_is_idle_while_its_host_stands_still(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="leased", idle_ttl_seconds=60))
        await trio.sleep(30)
        autojump_clock.jump(90)
        await trio.sleep(55)
        assert await _is_there(host)
        await trio.sleep(10)
        assert not await _is_there(host)


async def test_a_whole_life_is_over_when_it_is(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="leased", ttl_seconds=60, idle_ttl_seconds=0))
        await trio.sleep(30)
        autojump_clock.jump(90)
        assert not await _is_there(host)
