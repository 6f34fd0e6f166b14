"""``sandboxrt snapshot``: list, export, import and delete the snapshots of a state folder."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click
import trio
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from sandboxrt.cli.values import SIZE
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import default_state_dir
from sandboxrt.models import Snapshot
from sandboxrt.protocol.rest import CreateSnapshot
from sandboxrt.protocol.rest_wire import snapshot_to_json
from sandboxrt.snapshots.host import HOST_NAME
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store

__all__ = ["snapshot"]

T = TypeVar("T")
_STATE_DIR = click.option(
    "--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="The state folder (a server's, or your own)."
)


@click.group()
def snapshot() -> None:
    """List, export, import and delete snapshots; a server may run on the same state folder meanwhile."""


@snapshot.command(name="list")
@click.option("--name-contains", metavar="TEXT", help="Only names that contain this, upper and lower case alike.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_STATE_DIR
def list_snapshots(*, name_contains: str | None, as_json: bool, state_dir: Path | None) -> None:
    """List the snapshots of every tenant, newest first."""

    async def find(library: SnapshotLibrary, store: Store) -> list[Snapshot]:
        part = (name_contains or "").casefold()
        return [row.public for row in await store.snapshots_where() if part in row.name.casefold()]

    found = _with_library(state_dir, find)
    if as_json:
        click.echo(json.dumps([snapshot_to_json(each) for each in found], indent=2))
        return
    table = Table("id", "name", "tags", "status", "used", "capacity", "created", "from", box=None)
    for each in found:
        used = "" if each.fs_used_bytes is None else decimal(each.fs_used_bytes)
        source = each.docker_image or (f"sandbox {each.source_sandbox_id}" if each.source_sandbox_id else "")
        tags = " ".join(each.tags)
        capacity = decimal(each.fs_capacity_bytes)
        table.add_row(each.id, each.name, tags, each.status, used, capacity, each.created_at, source)
    Console(highlight=False, markup=False).print(table)


@snapshot.command(name="export")
@click.argument("reference", metavar="SNAPSHOT")
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path))
@click.option("--tag", default="latest", show_default=True, help="What the image is called in the layout.")
@_STATE_DIR
def export_snapshot(*, reference: str, target: Path, tag: str, state_dir: Path | None) -> None:
    """Write a snapshot as an OCI image: into the new folder TARGET, or the new file TARGET where it ends in .tar.

    SNAPSHOT is an id, NAME:TAG, a name, or 'host'. What is printed is how other tools call it, for instance:

        skopeo copy oci:DIR:latest docker://registry.example/team/app:1
    """

    async def export(library: SnapshotLibrary, store: Store) -> str:
        found = await _find(library, reference)
        return (await library.export(found.id, target, tag=tag)).reference

    click.echo(_with_library(state_dir, export, new=reference == HOST_NAME))


@snapshot.command(name="import")
@click.argument("source", metavar="SOURCE", type=click.Path(exists=True, path_type=Path))
@click.argument("name", metavar="NAME")
@click.option("--image", metavar="TAG", help="Which image of the layout, where it has several.")
@click.option("--tag", help="NAME:TAG means the snapshot from then on; 'latest' if left out.")
@click.option("--capacity", type=SIZE, default="4g", show_default=True, help="Disk size of its sandboxes.")
@_STATE_DIR
def import_snapshot(
    *, source: Path, name: str, image: str | None, tag: str | None, capacity: int, state_dir: Path | None
) -> None:
    """Make a snapshot NAME from an OCI image: the layout in the folder SOURCE, or in the tar SOURCE. Prints its id."""
    kind = "oci" if source.is_dir() else "oci-archive"
    place = f"{kind}:{source.absolute()}" + (f":{image}" if image else "")

    async def build(library: SnapshotLibrary, store: Store) -> str:
        request = CreateSnapshot(name=name, docker_image=place, fs_capacity_bytes=capacity, tag=tag or "latest")
        begun = await library.create(request)
        return (await library.wait(begun.id)).id

    click.echo(_with_library(state_dir, build, new=True))


@snapshot.command()
@click.argument("reference", metavar="SNAPSHOT")
@_STATE_DIR
def delete(*, reference: str, state_dir: Path | None) -> None:
    """Delete a snapshot, by its id, NAME:TAG or name; refused while sandboxes or captures lie on it."""

    async def remove(library: SnapshotLibrary, store: Store) -> str:
        found = await library.get(reference)
        await library.delete(found.id)
        return found.id

    click.echo(f"deleted {_with_library(state_dir, remove)}")


async def _find(library: SnapshotLibrary, reference: str) -> Snapshot:
    if reference == HOST_NAME:
        return await library.host_snapshot()
    return await library.get(reference)


def _with_library(
    state_dir: Path | None, work: Callable[[SnapshotLibrary, Store], Awaitable[T]], *, new: bool = False
) -> T:
    folder = state_dir or default_state_dir()
    if not new and not folder.exists():
        raise click.ClickException(f"There is no state folder {folder}; name another one with --state-dir")

    async def run() -> T:
        async with Store.open(folder) as store, SnapshotLibrary(store, folder) as library:
            return await work(library, store)

    try:
        return trio.run(run)
    except SandboxClientError as error:
        raise click.ClickException(str(error)) from error
