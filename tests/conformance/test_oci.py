"""The conformance suites over the real host and real containers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxrt.host.command import CommandSettings
from sandboxrt.host.host import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.testing.conformance import ALL_CASES

pytestmark = [pytest.mark.container, pytest.mark.timeout(90)]


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


def leftovers(state_dir: Path) -> Iterator[str]:
    """What a host has left of its own; what others do on this machine meanwhile does not matter."""
    yield from (str(path) for path in (state_dir / "sandboxes").glob("*"))
    yield from (line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state_dir) in line)
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            text = backing.read_text()
        except OSError:
            continue
        if str(state_dir) in text:
            yield f"{backing}: {text}"


def children() -> set[str]:
    """The processes that this one started; a registry of the whole test run may be among them."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.mark.parametrize("name", ALL_CASES)
async def test_case(name: str, state_dir: Path) -> None:
    before = children()
    config = HostConfig(state_dir=state_dir, command=CommandSettings(term_grace_s=0.3))
    async with open_host(config) as host:
        await ALL_CASES[name](host)
        assert await host.list_sandboxes() == []
        assert list(leftovers(state_dir)) == []
        assert children() <= before
    assert list(leftovers(state_dir)) == []
    assert children() <= before
