from __future__ import annotations

from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from tests.images.registry import Registry


@pytest.fixture(scope="session")
def readme_state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme-state")


@pytest.fixture
def readme_host(readme_state_dir: Path, readme_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine as the README's reader has it: nothing configured, and the images' names mean what they say."""
    monkeypatch.setenv("SANDBOXRT_STATE_DIR", str(readme_state_dir))
    for name in ("LANGSMITH_ENDPOINT", "LANGCHAIN_ENDPOINT", "LANGSMITH_API_KEY", "LANGCHAIN_API_KEY"):
        monkeypatch.delenv(name, raising=False)


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
