"""``sandboxrt prune`` removes what nobody needs, says what, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.errors import ResourceCreationError
from sandboxrt.models import Limits
from sandboxrt.protocol.rest import CreateSnapshot
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store
from tests.images.layouts import entry, layer, write_layout

pytestmark = pytest.mark.container


async def prune(state: Path, *options: str, answer: str = "") -> subprocess.CompletedProcess[bytes]:
    return await trio.run_process(
        [sys.executable, "-m", "sandboxrt", "prune", "--state-dir", str(state), *options],
        stdin=answer.encode(),
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )


def request(name: str, image: str) -> CreateSnapshot:
    return CreateSnapshot(name=name, docker_image=image, fs_capacity_bytes=2**24)


async def make_snapshots(tmp_path: Path, names: str) -> Path:
    """A state folder with an image of its own for each letter, and a failed build."""
    state = tmp_path / "state"
    async with Store.open(state) as store, SnapshotLibrary(store) as library:
        for name in names:
            image = write_layout(tmp_path / name, [layer([entry(name, name * 100_000)])])
            begun = await library.create(
                CreateSnapshot(name=name, docker_image=f"oci:{image}", fs_capacity_bytes=2**24)
            )
            await library.wait(begun.id, 30)
        begun = await library.create(
            CreateSnapshot(name="broken", docker_image="oci:/nowhere", fs_capacity_bytes=2**24)
        )
        with pytest.raises(ResourceCreationError):
            await library.wait(begun.id, 30)
    return state


async def names_in(state: Path) -> list[str]:
    async with Store.open(state) as store:
        return sorted(row.name for row in await store.snapshots_where())


async def test_snapshots_go_only_when_asked_for_and_confirmed(tmp_path: Path) -> None:
    state = await make_snapshots(tmp_path, "ab")
    assert b"build broken" in (await prune(state, "--dry-run")).stdout
    assert await names_in(state) == ["a", "b", "broken"]
    done = await prune(state)
    assert done.returncode == 0, done.stdout
    assert await names_in(state) == ["a", "b"]

    young = await prune(state, "--snapshots")
    assert young.returncode == 0
    assert await names_in(state) == ["a", "b"], "made a moment ago"

    asked = await prune(state, "--snapshots", "--older-than", "0", answer="n\n")
    assert asked.returncode == 1
    assert b"snapshot a (" in asked.stdout
    assert await names_in(state) == ["a", "b"]

    done = await prune(state, "--snapshots", "--older-than", "0", "--force")
    assert done.returncode == 0, done.stdout
    assert await names_in(state) == []
    assert list((state / "snapshots").iterdir()) == []


async def test_what_is_in_use_stays(tmp_path: Path) -> None:
    state = await make_snapshots(tmp_path, "abc")
    async with Store.open(state) as store:
        ids = {row.name: row.id for row in await store.snapshots_where()}
        # A sandbox was made from what lies on "a"; nothing lies on what lies on "b".
        for base in "ab":
            row = await store.add_snapshot(name=f"on-{base}", kind="capture", fs_capacity_bytes=1, base_id=ids[base])
            await store.finish_snapshot(row.id, content='{"layers": [], "config": {}}', stands_alone=False)
            ids[row.name] = row.id
        await store.add_sandbox(name="box", snapshot_id=ids["on-a"], limits=Limits())
        done = await prune(state, "--snapshots", "--older-than", "0", "-f")
        assert done.returncode == 0, done.stdout
        assert sorted(row.name for row in await store.snapshots_where()) == ["a", "on-a"]
        assert [box.name for box in await store.list_sandboxes()] == ["box"]


async def test_caches_are_emptied_and_made_again(tmp_path: Path) -> None:
    state = await make_snapshots(tmp_path, "")
    templates = DiskTemplates(state / "templates")
    await templates.clone(2**24, tmp_path / "one.img")
    (state / "tools").mkdir(exist_ok=True)
    (state / "tools" / "init-0123456789").write_text("of another version")
    assert (await prune(state)).returncode == 0
    assert not list((state / "templates").glob("*.img"))
    assert not (state / "tools" / "init-0123456789").exists()
    await templates.clone(2**24, tmp_path / "two.img")
    assert (tmp_path / "two.img").stat().st_size == 2**24


async def test_wrong_arguments(tmp_path: Path) -> None:
    for state, options, code, says in (
        (tmp_path, ["--older-than", "soon"], 2, b"is not a duration"),
        (tmp_path / "nowhere", [], 1, b"There is no state folder"),
        (tmp_path, ["everything"], 2, b"unexpected extra argument"),
    ):
        done = await prune(state, *options)
        assert done.returncode == code, done.stdout
        assert says in done.stdout
    assert not list(tmp_path.iterdir())
