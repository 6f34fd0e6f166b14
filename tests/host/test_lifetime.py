"""How long sandboxes live: the function of recorded times against a plain model, and hosts in virtual time."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.errors import ResourceNotFoundError, ValidationError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.host.lifetime import MAX_TTL_S, Ending, age_s, check_ttl, expiry_at_rest, next_end
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.exec import Execute
from sandboxrt.protocol.rest import CreateSandbox, UpdateSandbox
from sandboxrt.testing.conformance import converse, run
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import MemoryRecords, MemorySnapshots, state_of
from tests.host.conftest import OpenFake

pytestmark = pytest.mark.timeout(60)

TIME = st.integers(0, 100)
TTL = st.none() | st.integers(0, 50)


@given(TIME, TIME, st.booleans(), TTL, TTL, TTL)
def test_what_happens_next(
    created: int, active: int, busy: bool, ttl: int | None, idle: int | None, after_stop: int | None
) -> None:
    """The model asks second by second what an owner with a calendar would do."""

    def model() -> tuple[float, Ending]:
        for now in range(300):
            if ttl and now == created + ttl:
                return now, Ending.DELETE
            if idle and not busy and now == active + idle:
                return now, Ending.DELETE if after_stop is None else Ending.STOP
        return math.inf, Ending.DELETE

    found = next_end(
        created_at=created,
        last_active_at=active,
        busy=busy,
        ttl_seconds=ttl,
        idle_ttl_seconds=idle,
        delete_after_stop_seconds=after_stop,
    )
    assert found == model()


@given(TIME, st.none() | TIME, TTL, TTL, st.none() | TIME, TTL)
def test_how_long_it_rests(
    created: int, stopped: int | None, ttl: int | None, after_stop: int | None, active: int | None, idle: int | None
) -> None:
    def ends(now: int) -> bool:
        return (
            bool(ttl and now == created + ttl)
            or bool(after_stop and stopped is not None and now == stopped + after_stop)
            or bool(idle and after_stop is None and active is not None and now == active + idle)
        )

    found = expiry_at_rest(
        created_at=created,
        stopped_at=stopped,
        ttl_seconds=ttl,
        delete_after_stop_seconds=after_stop,
        last_active_at=active,
        idle_ttl_seconds=idle,
    )
    assert found == next((now for now in range(300) if ends(now)), math.inf)


@given(st.integers(-10_000, 10_000))
def test_a_clock_that_is_set_back_makes_nothing_older(seconds: int) -> None:
    stamp = datetime(2026, 3, 24, tzinfo=UTC)
    assert age_s(stamp.isoformat(), stamp + timedelta(seconds=seconds)) == max(0, seconds)


@pytest.mark.parametrize("value", [-60, 61, True, 60.0, MAX_TTL_S + 60])
def test_impossible_ttls(value: object) -> None:
    with pytest.raises(ValidationError, match="idle_ttl_seconds must be"):
        check_ttl("idle_ttl_seconds", value)  # type: ignore[arg-type]


async def status(host: Host) -> str:
    return (await host.get_sandbox("box")).status


async def test_idleness_stops_where_somebody_said_what_is_then(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(box=False) as (host, engine):
        await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=60, delete_after_stop_seconds=120))
        await run(host, "box", "echo kept > /tmp/file")
        await trio.sleep(59)
        assert await status(host) == "ready"
        await trio.sleep(20)
        info = await host.get_sandbox("box")
        assert info.status == "stopped" and info.stopped_at and info.expires_at
        assert not engine.containers
        await host.start_sandbox("box")
        assert (await run(host, "box", "cat /tmp/file")).stdout == "kept\n"
        await trio.sleep(80)
        assert await status(host) == "stopped"
        await trio.sleep(125)
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("box")


async def test_it_may_stay_stopped_for_ever(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=60))
        await host.update_sandbox("box", UpdateSandbox(delete_after_stop_seconds=0))
        await trio.sleep(86_400)
        info = await host.get_sandbox("box")
        assert info.status == "stopped" and info.expires_at is None


async def test_a_command_is_activity_while_somebody_follows_it(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=120))
        command = Execute(command="sleep 10000", timeout_s=0, idle_timeout_s=-1)
        async with converse(host, "box", command):
            await trio.sleep(500)
            assert await status(host) == "ready"
        await trio.sleep(110)
        assert await status(host) == "ready"
        await trio.sleep(20)
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("box")


async def test_activity_of_others(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=60))
        with (await host.find("box")).activity():
            await trio.sleep(1000)
        await trio.sleep(50)
        assert await status(host) == "ready"
        await trio.sleep(20)
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("box")


# -- what the next host knows ------------------------------------------------------------------------------------------


def aged(records: MemoryRecords, seconds: float) -> None:
    """As if the recorded times were so much older: a host was away, or the clock was set."""

    def older(stamp: str | None) -> str | None:
        return stamp and (datetime.fromisoformat(stamp) - timedelta(seconds=seconds)).isoformat()

    for key, row in records.rows.items():
        records.rows[key] = attrs.evolve(
            row,
            created_at=older(row.created_at) or "",
            stopped_at=older(row.stopped_at),
            last_active_at=older(row.last_active_at),
        )


AWAY = (
    ("deleting", CreateSandbox(name="box", idle_ttl_seconds=600), False, 0, True),
    ("deleting", CreateSandbox(name="box", idle_ttl_seconds=600), False, 500, True),
    ("deleting", CreateSandbox(name="box", idle_ttl_seconds=600), False, 900, False),
    ("clock set back", CreateSandbox(name="box", idle_ttl_seconds=600), False, -90_000, True),
    ("stopped by its user", CreateSandbox(name="box", idle_ttl_seconds=600), True, 900, True),
    ("stopping", CreateSandbox(name="box", idle_ttl_seconds=60, delete_after_stop_seconds=1200), False, 900, True),
    ("stopping, too long", CreateSandbox(name="box", delete_after_stop_seconds=1200), False, 1300, False),
    ("absolute", CreateSandbox(name="box", ttl_seconds=1200, idle_ttl_seconds=0), False, 900, True),
    ("absolute, too long", CreateSandbox(name="box", ttl_seconds=1200, idle_ttl_seconds=0), True, 1300, False),
)


@pytest.mark.parametrize(("kind", "request_", "user_stops", "away_s", "there"), AWAY)
async def test_lifetimes_go_on_while_there_is_no_host(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    kind: str,
    request_: CreateSandbox,
    user_stops: bool,
    away_s: float,
    there: bool,
) -> None:
    records = MemoryRecords()
    state = state_of(records, MemorySnapshots(records))
    config = HostConfig(state_dir=tmp_path, keep=True)
    async with FakeEngine() as engine:
        async with open_host(config, engine=engine, state=state) as host:
            await host.create_sandbox(request_)
            if user_stops:
                await host.stop_sandbox("box")
        aged(records, away_s)
        async with open_host(config, engine=engine, state=state) as host:
            host.adopt(list(records.rows.values()))
            await trio.sleep(1)
            assert bool(await host.list_sandboxes()) is there, kind
            for info in await host.list_sandboxes():
                await host.delete_sandbox(info.id)


async def test_activity_is_noted_now_and_then(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    records = Counting()
    state = state_of(records, MemorySnapshots(records))
    async with FakeEngine() as engine:
        config = HostConfig(state_dir=tmp_path, keep=True)
        async with open_host(config, engine=engine, state=state) as host:
            await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=0))
            for _ in range(600):
                await run(host, "box", "true")
                await trio.sleep(1)
            assert 9 <= records.notes <= 11
            await trio.sleep(100)
            quiet = records.notes
            await trio.sleep(10_000)
            assert records.notes == quiet
            await host.delete_sandbox("box")


class Counting(MemoryRecords):
    """Counts what it is told."""

    notes = 0

    async def note_activity(self, sandbox_id: str, idle_for_s: float) -> None:
        self.notes += 1
        await super().note_activity(sandbox_id, idle_for_s)
