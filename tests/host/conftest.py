"""Hosts over the fake engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sandboxrt.host.command import CommandSettings
from sandboxrt.host.host import Host, HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state

OpenFake = Callable[..., AbstractAsyncContextManager[tuple[Host, FakeEngine]]]


@pytest.fixture
def fake_host(tmp_path: Path) -> OpenFake:
    """``async with fake_host(...) as (host, engine)``: with a ready sandbox named ``box`` unless told otherwise."""

    @asynccontextmanager
    async def opened(
        *, engine: FakeEngine | None = None, box: bool = True, command: CommandSettings | None = None, **config: Any
    ) -> AsyncIterator[tuple[Host, FakeEngine]]:
        settings = HostConfig(state_dir=tmp_path, command=command or CommandSettings(), **config)
        async with engine or FakeEngine() as fake:
            async with open_host(settings, engine=fake, state=memory_state()) as host:
                if box:
                    await host.create_sandbox(CreateSandbox(name="box"))
                yield host, fake
            assert not fake.containers
            assert not fake.kept

    return opened
