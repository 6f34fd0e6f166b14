"""``sandboxrt rescue``: files out of a sandbox whose disk is damaged."""

from __future__ import annotations

from pathlib import Path

import click
import trio
from rich.filesize import decimal

from sandboxrt.engine.damage import Rescued
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import default_state_dir
from sandboxrt.host.rescue import rescue_sandbox
from sandboxrt.store import Store

__all__ = ["rescue"]


@click.command()
@click.argument("sandbox")
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="The state folder (a server's, or your own)."
)
def rescue(sandbox: str, target: Path, state_dir: Path | None) -> None:
    """Copy what was written in a stopped SANDBOX (a name or an id) to the new folder DIR.

    Its disk may be damaged; what can be read is copied, and nothing of it is changed. A server may run meanwhile.
    """
    folder = (state_dir or default_state_dir()).absolute()
    if not folder.exists():
        raise click.ClickException(f"There is no state folder {folder}; name another one with --state-dir")

    place = target.absolute()

    async def run() -> Rescued:
        async with Store.open(folder) as store:
            return await rescue_sandbox(store, sandbox, place)

    try:
        rescued = trio.run(run)
    except SandboxClientError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{rescued.files} files, {decimal(rescued.size_bytes)}, are in {target}")
    if rescued.said:
        click.echo(f"not all could be read:\n{rescued.said}", err=True)
        raise SystemExit(1)
