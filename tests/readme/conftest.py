"""Where the samples run: embedded, and against ``sandboxrt serve`` in a process of its own, unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from tests.images.registry import Registry
from tests.serving import Serving, serving

VARIABLES = ("LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT", "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY")


@pytest.fixture(scope="session")
def readme_state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme-state")


@pytest.fixture(scope="session")
def readme_server(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Iterator[Serving]:
    environment = {"SANDBOXRT_REGISTRIES_CONF": str(registry.registries_conf)}
    with serving(tmp_path_factory.mktemp("readme-served"), environment=environment) as server:
        yield server


@pytest.fixture(params=["embedded", "served"])
def readme_host(
    request: pytest.FixtureRequest,
    readme_state_dir: Path,
    readme_registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A machine as the README's reader has it, and the images' names mean what they say."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if request.param == "embedded":
        monkeypatch.setenv("SANDBOXRT_STATE_DIR", str(readme_state_dir))
        return
    server = request.getfixturevalue("readme_server")
    monkeypatch.setenv("LANGSMITH_ENDPOINT", server.url)
    monkeypatch.setenv("LANGSMITH_API_KEY", server.key)
    # Nothing may run on this machine by mistake.
    monkeypatch.setenv("SANDBOXRT_STATE_DIR", "/dev/null/none")


@pytest.fixture
def readme_snapshot_id(readme_host: None) -> str:
    """The ``snapshot_id`` that the samples assume; built once, found again by its name."""

    async def build() -> str:
        async with AsyncSandboxClient() as client:
            for snapshot in await client.list_snapshots(name_contains="readme"):
                if snapshot.status == "ready":
                    return snapshot.id
            snapshot = await client.create_snapshot(
                "readme", docker_image="python:3.12-slim", fs_capacity_bytes=4 * 1024**3
            )
            return snapshot.id

    return trio.run(build)
