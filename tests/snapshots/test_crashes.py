"""An owner that dies in the middle of a build leaves only what the next library to open removes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sandboxrt.errors import ResourceCreationError
from sandboxrt.store import Store
from tests.images.registry import Registry
from tests.snapshots.conftest import OpenLibrary, left_on_disk

BUILDER = """
import os, signal, sys, trio
from sandboxrt.protocol.rest import CreateSnapshot
from sandboxrt.snapshots.content import SnapshotConfig
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store

async def main():
    state, registry, until, then = sys.argv[1:]
    async with Store.open(state) as store, SnapshotLibrary(store, config=SnapshotConfig()) as library:
        request = CreateSnapshot(
            name="doomed", docker_image="python:3.12-slim", fs_capacity_bytes=2**30, registry_url=f"http://{registry}"
        )
        snapshot = await library.create(request)
        async for progress in library.progress(snapshot.id):
            if progress.phase == until:
                print(snapshot.id, flush=True)
                if then == "freeze":
                    os.kill(os.getpid(), signal.SIGSTOP)
                await trio.sleep_forever()

trio.run(main)
"""


def _mentioning(text: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path("/proc", pid, "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def _builder(state: Path, registry: Registry, until: str, then: str) -> tuple[subprocess.Popen[str], str]:
    argv = [sys.executable, "-c", BUILDER, str(state), registry.address, until, then]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.parametrize("until", ["pull", "unpack", "check"])
async def test_a_killed_builder(until: str, open_library: OpenLibrary, registry: Registry, tmp_path: Path) -> None:
    process, snapshot_id = _builder(tmp_path / "state", registry, until, "freeze")
    try:
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()
    # The tools die with their owner, without anybody's help.
    deadline = time.monotonic() + 5
    while _mentioning(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _mentioning(str(tmp_path)) == []
    assert left_on_disk(tmp_path) == [f".build-{snapshot_id}"]
    async with open_library() as library:
        assert left_on_disk(tmp_path) == []
        with pytest.raises(ResourceCreationError, match="process that built it ended"):
            await library.wait(snapshot_id, 5)
    async with Store.open(tmp_path / "state") as store:
        assert await store.dead_owners() == ()


async def test_a_living_builder_is_left_alone(open_library: OpenLibrary, registry: Registry, tmp_path: Path) -> None:
    process, snapshot_id = _builder(tmp_path / "state", registry, "unpack", "go on")
    try:
        async with open_library() as library:
            assert (
                left_on_disk(tmp_path) == [f".build-{snapshot_id}"]
                or (await library.get(snapshot_id)).status == "ready"
            )
            # Building goes on there; here it is waited for.
            assert (await library.wait(snapshot_id, 60)).status == "ready"
            assert left_on_disk(tmp_path) == [snapshot_id]
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()
    async with open_library() as library:
        assert (await library.get(snapshot_id)).status == "ready"
        assert (await library.use(snapshot_id)).config.work_dir == "/app"


async def test_folders_without_a_record_go(open_library: OpenLibrary, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "snapshots"
    lost = "0b0ec5a1-7d6f-4a1e-9a52-0123456789ab"
    for name in (lost, f".build-{lost}", f".trash-{lost}", "somebody's own"):
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "file").write_text("x")
    (folder / lost / "deep").chmod(0o000)
    async with open_library():
        assert left_on_disk(tmp_path) == ["somebody's own"]


async def test_failures_are_forgotten_after_a_day(open_library: OpenLibrary, tmp_path: Path) -> None:
    for hours in (25, 23):
        then = datetime.now(UTC) - timedelta(hours=hours)
        async with Store.open(tmp_path / "state", now=lambda then=then: then) as store:  # type: ignore[misc]
            row = await store.add_snapshot(name=f"h{hours}", kind="image", fs_capacity_bytes=1)
            await store.fail_snapshot(row.id, "no luck")
    async with open_library() as library:
        assert [snapshot.name for snapshot in await library.list()] == ["h23"]
