"""``sandboxrt prune``: give back the room that nobody needs."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import click
import trio
from rich.filesize import decimal

from sandboxrt.cli.values import DURATION
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import HostConfig, default_state_dir
from sandboxrt.host.opening import default_engine
from sandboxrt.host.prune import Pruner, Unneeded, open_pruner

__all__ = ["prune"]


@click.command()
@click.option("--snapshots", is_flag=True, help="Also snapshots that no sandbox was made from, and nothing lies on.")
@click.option(
    "--older-than",
    type=DURATION,
    default="168h",
    show_default=True,
    help="With --snapshots: only those made longer ago than this.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--force", "-f", is_flag=True, help="With --snapshots: do not ask.")
@click.option(
    "--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="The state folder (a server's, or your own)."
)
def prune(*, snapshots: bool, older_than: float, dry_run: bool, force: bool, state_dir: Path | None) -> None:
    """Remove what nobody needs: sandboxes of dead owners, failed builds, caches; a server may run meanwhile.

    Sandboxes that a server keeps are never removed, whether they run or not.
    """
    folder = (state_dir or default_state_dir()).absolute()
    if not folder.exists():
        raise click.ClickException(f"There is no state folder {folder}; name another one with --state-dir")
    unused_for = timedelta(seconds=older_than) if snapshots else None

    async def run() -> bool:
        config = HostConfig(state_dir=folder)
        async with default_engine(config) as engine, open_pruner(folder, engine, config.snapshots) as pruner:
            found = await pruner.find(unused_for=unused_for)
            for item in found:
                if item.kind != "cache":
                    click.echo(_line(item))
            if dry_run:
                return True
            if any(item.kind == "snapshot" for item in found) and not force:
                click.confirm("Remove these?", abort=True)
            return await _remove(pruner, found, folder)

    try:
        whole = trio.run(run)
    except SandboxClientError as error:
        raise click.ClickException(str(error)) from error
    if not whole:
        raise SystemExit(1)


def _line(item: Unneeded) -> str:
    return f"{item.kind} {item.name}" + (f" ({decimal(item.used_bytes)})" if item.used_bytes else "")


async def _remove(pruner: Pruner, found: tuple[Unneeded, ...], folder: Path) -> bool:
    before = _free_bytes(folder)
    trouble = await pruner.remove(found)
    for line in trouble:
        click.echo(f"could not be removed: {line}", err=True)
    # As the file system sees it: others write to it meanwhile, so it is never said to be less than nothing.
    click.echo(f"{decimal(max(0, _free_bytes(folder) - before))} more are free below {folder}")
    return not trouble


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bfree * found.f_frsize
