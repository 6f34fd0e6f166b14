"""Some hundred random operations on real containers against the plain model, with the real store; nothing is left."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from sandboxrt.host.host import HostConfig
from sandboxrt.host.opening import open_host
from tests.leaks import assert_nothing_left
from tests.lifecycle import NAMES, TIMELESS, Life

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

OPERATIONS = 250
WEIGHTS = {"create": 3, "write": 3, "start": 2}


async def test_whatever_is_asked_in_whatever_order(state_dir: Path) -> None:
    chance = random.Random(20)
    weights = [WEIGHTS.get(name, 1) for name in TIMELESS]
    plan = [
        (chance.choices(TIMELESS, weights)[0], chance.randrange(len(NAMES)), chance.randrange(9))
        for _ in range(OPERATIONS)
    ]
    with assert_nothing_left(state_dir), trio.fail_after(150):
        async with open_host(HostConfig(state_dir=state_dir)) as host:
            life = Life(host)
            await life.follow(plan)
            await life.end()
