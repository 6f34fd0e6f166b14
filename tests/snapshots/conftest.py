from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from sandboxrt.protocol.rest import CreateSnapshot
from sandboxrt.snapshots.content import SnapshotConfig
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store

GIB = 1024**3

OpenLibrary = Callable[..., AbstractAsyncContextManager[SnapshotLibrary]]


@pytest.fixture
def open_library(tmp_path: Path) -> OpenLibrary:
    """Opens a library on this test's own state folder; may be called several times."""

    @asynccontextmanager
    async def opener(config: SnapshotConfig | None = None) -> AsyncIterator[SnapshotLibrary]:
        async with Store.open(tmp_path / "state") as store, SnapshotLibrary(store, config=config) as library:
            yield library

    return opener


def request_for(docker_image: str, name: str = "image", **options: object) -> CreateSnapshot:
    return CreateSnapshot(name=name, docker_image=docker_image, fs_capacity_bytes=GIB, **options)  # type: ignore[arg-type]


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[None]:
    """Put a file system of that size on a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def left_on_disk(tmp_path: Path) -> list[str]:
    folder = tmp_path / "state" / "snapshots"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
