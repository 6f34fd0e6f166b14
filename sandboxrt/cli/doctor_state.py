"""``sandboxrt doctor --state``: whether a state folder is sound, what is wrong with it, and its repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import trio

from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.doctor.examine import examine
from sandboxrt.host.doctor.findings import Examination, Finding
from sandboxrt.host.doctor.repair import Repaired, repair
from sandboxrt.host.opening import default_engine

__all__ = ["check_state"]


class _CannotCheckError(click.ClickException):
    exit_code = 2


def check_state(state_dir: Path, runtime: str, *, repairs: bool, as_json: bool) -> None:
    """Check a state folder, print what is wrong, and end with 1 where something is (still) wrong."""
    try:
        if repairs:
            done = trio.run(_repair, state_dir, runtime)
        else:
            found = examine(state_dir)
            done = Repaired(found, found)
    except (SandboxClientError, OSError) as error:
        raise _CannotCheckError(str(error)) from error
    if as_json:
        click.echo(json.dumps(_as_json(done, repairs=repairs), indent=2))
    else:
        _print(done, repairs=repairs)
    if done.after.findings or done.trouble:
        raise SystemExit(1)


async def _repair(state_dir: Path, runtime: str) -> Repaired:
    # First a look, for entering an engine is for those who have a state folder.
    await trio.to_thread.run_sync(examine, state_dir)
    async with default_engine(HostConfig(state_dir=state_dir, runtime=runtime)) as engine:
        return await repair(state_dir, engine)


def _as_json(done: Repaired, *, repairs: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "state_dir": str(done.after.state_dir),
        "sound": not done.after.findings,
        "living_owners": len(done.after.living),
        "findings": [_finding(finding) for finding in done.after.findings],
    }
    if repairs:
        found |= {"repaired": [_finding(finding) for finding in done.mended], "trouble": list(done.trouble)}
    return found


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind.value,
        "what": finding.what,
        "where": finding.where,
        "repair": finding.repair,
        "advice": finding.advice,
    }


def _print(done: Repaired, *, repairs: bool) -> None:
    for finding in done.mended if repairs else ():
        click.echo(f"repaired: {finding.kind.value}: {finding.where}\n  {finding.repair}")
    for finding in done.after.findings:
        click.echo(f"{finding.kind.value}: {finding.where}\n  {finding.what}")
        if finding.repair is not None:
            click.echo(f"  --repair would {finding.repair}" if not repairs else f"  could not {finding.repair}")
        if finding.advice is not None:
            click.echo(f"  by hand: {finding.advice}")
    for line in done.trouble:
        click.echo(f"failed: {line}", err=True)
    click.echo(_verdict(done.after))


def _verdict(found: Examination) -> str:
    beside = f" ({len(found.living)} living owners use it)" if found.living else ""
    if not found.findings:
        return f"{found.state_dir} is sound{beside}."
    number = len(found.findings)
    return f"{found.state_dir} is not sound: {number} finding{'s' if number > 1 else ''}{beside}."
