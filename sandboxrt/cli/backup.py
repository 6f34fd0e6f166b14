"""``sandboxrt backup`` and ``sandboxrt restore``: a state folder as one file, and back."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import trio
from rich.filesize import decimal

from sandboxrt.errors import SandboxClientError
from sandboxrt.host.backup.archive import Contents
from sandboxrt.host.backup.create import back_up
from sandboxrt.host.backup.restore import restore as put_back
from sandboxrt.host.config import default_state_dir

__all__ = ["backup", "restore"]

_STATE_DIR = click.option("--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="The state folder.")


@click.command()
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path))
@_STATE_DIR
def backup(*, target: Path, state_dir: Path | None) -> None:
    """Write all that counts of a state folder into the new file TARGET, or into a new file in the folder TARGET.

    A server that uses the folder goes on meanwhile; each sandbox that runs stands still while its disk is copied, and
    is in the backup as of that instant, stopped. The file holds secrets: who can read it can read everything in the
    sandboxes. It is complete, or not there at all.
    """
    is_watched = sys.stderr.isatty()

    def tell(what: str) -> None:
        if is_watched:
            click.echo(f"copying {what}", err=True)

    try:
        made = trio.run(lambda: back_up(state_dir or default_state_dir(), target, tell=tell))
    except SandboxClientError as error:
        raise click.ClickException(str(error)) from error
    _print_contents(made.contents)
    click.echo(f"{made.path}  {decimal(made.bytes)}")


@click.command()
@click.argument("source", metavar="BACKUP", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_STATE_DIR
def restore(*, source: Path, state_dir: Path | None) -> None:
    """Put a backup into a state folder that does not exist yet, or is empty. The backup is checked first, all of it.

    Sandboxes are stopped, with their files; the time since the backup does not count towards what ends them.
    """
    folder = state_dir or default_state_dir()
    try:
        contents = trio.run(put_back, source, folder)
    except SandboxClientError as error:
        raise click.ClickException(str(error)) from error
    _print_contents(contents)
    click.echo(str(folder))


def _print_contents(contents: Contents) -> None:
    counts = {kind: sum(item.kind == kind for item in contents.items) for kind in ("sandbox", "snapshot")}
    numbers = f"{counts['sandbox']} sandboxes and {counts['snapshot']} snapshots"
    click.echo(f"{numbers}, as of {contents.made_at}", err=True)
    for name, why in contents.left_out:
        click.echo(f"not in it: {name}: {why}", err=True)
    for folder in contents.needs:
        click.echo(f"not in it: {folder}, on which snapshots of this machine's own files lie", err=True)
