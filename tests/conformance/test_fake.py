"""The conformance suites over the real host and the fake engine, under virtual time."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio.testing

from sandboxrt.host.command import CommandSettings
from sandboxrt.host.host import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.testing.conformance import ALL_CASES
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state


@pytest.mark.parametrize("name", ALL_CASES)
async def test_case(name: str, tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    config = HostConfig(state_dir=tmp_path, command=CommandSettings(term_grace_s=0.3))
    async with FakeEngine() as engine:
        async with open_host(config, engine=engine, state=memory_state()) as host:
            await ALL_CASES[name](host)
            assert await host.list_sandboxes() == []
        assert not engine.containers
        assert not engine.kept
