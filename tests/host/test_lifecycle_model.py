"""Sandboxes of a host over the fake engine against a plain model, days in virtual time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxrt.host.host import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state
from tests.lifecycle import NAMES, TIMELESS, Life, Plan

OPERATIONS = (*TIMELESS, "limit", "pass time")
STEPS = st.lists(
    st.tuples(st.sampled_from(OPERATIONS), st.integers(0, len(NAMES) - 1), st.integers(0, 8)), min_size=1, max_size=40
)


async def follow(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder, trio.fail_after(100_000):
        async with FakeEngine() as engine:
            config = HostConfig(state_dir=Path(folder))
            async with open_host(config, engine=engine, state=memory_state()) as host:
                life = Life(host)
                await life.follow(plan)
                assert len(engine.containers) == sum(box.status == "ready" for box in life.boxes.values())
                # What was deleted or has expired has left no files either.
                assert len(engine.kept) == len(life.boxes)
                await life.end()
            assert not engine.containers
            assert not engine.kept


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_whatever_is_asked_in_whatever_order(plan: Plan) -> None:
    trio.run(follow, plan, clock=trio.testing.MockClock(autojump_threshold=0))
