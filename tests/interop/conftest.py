from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.images.registry import Registry
from tests.interop.clients import GENERATIONS, Answer, Driver, Environments
from tests.interop.report import DOCUMENT, Outcome, render

_START_S = 60
APPLICATION = Path(__file__).parents[1] / "gateway" / "application.py"


@attrs.frozen
class Place:
    """A running server, and what scenarios need to know of it."""

    endpoint: str
    key: str
    common: dict[str, Any]

    def run(self, driver: Driver, row: str, form: str, *, timeout_s: float = 60, **options: Any) -> Answer:
        """One scenario with one client."""
        return driver.run(
            row, form, endpoint=self.endpoint, key=self.key, timeout_s=timeout_s, **self.common, **options
        )


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, registry: Registry, password_registry: Registry) -> Iterator[Place]:
    """A real server over real containers, in a process of its own, with faults on request."""
    state_dir = tmp_path_factory.mktemp("interop-state")
    environment = {**os.environ, "SANDBOXRT_REGISTRIES_CONF": str(registry.registries_conf)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.interop.server", str(state_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        told = json.loads(process.stdout.readline())
        yield Place(
            endpoint=told["endpoint"],
            key=told["key"],
            common={
                "snapshot_id": told["snapshot_id"],
                "snapshot_name": told["snapshot_name"],
                "limited_keys": told["limited_keys"],
                "image": "tiny:1",
                "missing_image": "nobody-made-this:1",
                "private": {
                    "url": f"http://{password_registry.address}",
                    "username": password_registry.username,
                    "password": password_registry.password,
                },
                "application": APPLICATION.read_text(),
            },
        )
    finally:
        process.stdin.close()
        code = process.wait(_START_S)
    assert code == 0, "the server stops cleanly"


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    """The clients; kept between runs in the folder that ``SANDBOXRT_TEST_CACHE`` names."""
    told = os.environ.get("SANDBOXRT_TEST_CACHE", "").strip()
    return Environments(Path(told) if told else tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="session")
def drivers(place: Place, environments: Environments) -> Iterator[dict[str, Driver]]:
    """A process for each generation's client."""
    with ExitStack() as stack:
        yield {
            generation: stack.enter_context(environments.driver(generation, place.endpoint, place.key))
            for generation in GENERATIONS
        }


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> Iterator[list[Outcome]]:
    """Filled by the scenarios; written down at the end when that was asked for."""
    found: list[Outcome] = []
    yield found
    if request.config.getoption("--write-compatibility"):
        DOCUMENT.write_text(render(found))
