"""``sandboxrt keys``: who may use a server."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar, get_args

import attrs
import click
import trio
from rich.console import Console
from rich.table import Table

from sandboxrt.cli.quota import quota_options
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import default_state_dir
from sandboxrt.models import Quota
from sandboxrt.store import DEFAULT_TENANT, KeyRecords, LinkKeys, Store
from sandboxrt.store.keys import key_id as id_within
from sandboxrt.store.link_keys import Purpose

__all__ = ["keys"]

T = TypeVar("T")
_STATE_DIR = click.option(
    "--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="The server's state folder."
)


@click.group()
def keys() -> None:
    """Make, list, change and revoke the API keys of a server; it may run meanwhile."""


@keys.command()
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Whom the key speaks for; made when new.")
@click.option("--label", default="", help="What the key is for.")
@quota_options
@_STATE_DIR
def create(
    *,
    tenant: str,
    label: str,
    max_sandboxes: int | None,
    total_cpus: float | None,
    total_memory: int | None,
    total_storage: int | None,
    state_dir: Path | None,
) -> None:
    """Make a key and print it. It is never shown again.

    Quotas that are left out are the server's (`sandboxrt serve`).
    """
    quota = Quota(sandboxes=max_sandboxes, vcpus=total_cpus, mem_bytes=total_memory, storage_bytes=total_storage)
    made = _with_keys(state_dir, lambda records: records.create(tenant, label, quota), new=True)
    click.echo(made.secret)


@keys.command()
@click.argument("key_id", metavar="ID")
@quota_options
@click.option("--reset", is_flag=True, help="Let the server's quotas apply again, but for those given here.")
@_STATE_DIR
def update(
    *,
    key_id: str,
    max_sandboxes: int | None,
    total_cpus: float | None,
    total_memory: int | None,
    total_storage: int | None,
    reset: bool,
    state_dir: Path | None,
) -> None:
    """Change the quotas of a key, within seconds. What exists stays, even where it is more than that."""
    quota = Quota(sandboxes=max_sandboxes, vcpus=total_cpus, mem_bytes=total_memory, storage_bytes=total_storage)
    if quota == Quota() and not reset:
        raise click.UsageError("Say what to change: a quota such as --max-sandboxes 10, or --reset")
    identifier = id_within(key_id) or key_id
    changed = _with_keys(state_dir, lambda records: records.change_quota(identifier, quota, reset=reset))
    click.echo(f"{identifier}: {_shown(changed.quota) or 'as the server says'}")


@keys.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@_STATE_DIR
def list_keys(*, as_json: bool, state_dir: Path | None) -> None:
    """List the keys, without their secrets."""
    found = _with_keys(state_dir, lambda records: records.list())
    if as_json:
        click.echo(json.dumps([attrs.asdict(key) for key in found], indent=2))
        return
    table = Table("id", "tenant", "label", "created", "revoked", "quota", box=None)
    for key in found:
        table.add_row(key.id, key.tenant, key.label, key.created_at, key.revoked_at or "", _shown(key.quota))
    Console(highlight=False, markup=False).print(table)


@keys.command()
@click.argument("key_id", metavar="ID")
@_STATE_DIR
def revoke(*, key_id: str, state_dir: Path | None) -> None:
    """Make a key useless, within seconds, for good. ID is the part of the key between the underscores."""
    # Somebody who pastes the whole key must not see its secret repeated.
    identifier = id_within(key_id) or key_id
    _with_keys(state_dir, lambda records: records.revoke(identifier))
    click.echo(f"revoked {identifier}")


@keys.command(name="rotate-links")
@click.option("--retire", is_flag=True, help="Make everything useless that was signed before.")
@_STATE_DIR
def rotate_links(*, retire: bool, state_dir: Path | None) -> None:
    """Sign service tokens and download links with new keys from now on, within seconds."""

    async def rotate(store: Store) -> None:
        for purpose in get_args(Purpose):
            await LinkKeys(store).rotate(purpose, retire=retire)

    _with_store(state_dir, rotate)
    click.echo("new keys sign from now on" + ("; what was signed before is useless" if retire else ""))


def _shown(quota: Quota) -> str:
    said = {
        "sandboxes": quota.sandboxes,
        "cpus": quota.vcpus,
        "memory": quota.mem_bytes,
        "storage": quota.storage_bytes,
    }
    return ", ".join(f"{name} {value:.15g}" for name, value in said.items() if value is not None)


def _with_keys(state_dir: Path | None, work: Callable[[KeyRecords], Awaitable[T]], *, new: bool = False) -> T:
    return _with_store(state_dir, lambda store: work(KeyRecords(store)), new=new)


def _with_store(state_dir: Path | None, work: Callable[[Store], Awaitable[T]], *, new: bool = False) -> T:
    folder = state_dir or default_state_dir()
    if not new and not folder.exists():
        raise click.ClickException(
            f"There is no state folder {folder}. Give the server's with --state-dir, or make a first key with "
            "`sandboxrt keys create`"
        )

    async def run() -> T:
        async with Store.open(folder) as store:
            return await work(store)

    try:
        return trio.run(run)
    except SandboxClientError as error:
        raise click.ClickException(str(error)) from error
