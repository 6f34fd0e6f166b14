"""``sandboxrt doctor``: what isolation this machine gives to sandboxes, and what would give more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import click
import trio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sandboxrt.cli.doctor_state import check_state
from sandboxrt.engine.probe import probe_host
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import default_state_dir
from sandboxrt.host.opening import clean_leftovers
from sandboxrt.models import DEFAULT_LIMITS, DEFAULT_REQUIRE, Isolation, IsolationFinding, IsolationReport
from sandboxrt.room import Room

__all__ = ["doctor"]

_LIMITS = {
    "mem_bytes": Isolation.MEMORY_LIMIT,
    "vcpus": Isolation.CPU_LIMIT,
    "pids": Isolation.PIDS_LIMIT,
    "disk_bytes": Isolation.DISK_LIMIT,
    "inotify_instances": Isolation.INOTIFY_LIMIT,
}
NEEDED: frozenset[Isolation] = DEFAULT_REQUIRE | {
    prop for name, prop in _LIMITS.items() if getattr(DEFAULT_LIMITS, name) is not None
}
"""What a sandbox needs when its creator says nothing: the required isolation, and enforcement of the default limits."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--clean", is_flag=True, help="First remove what killed processes left behind.")
@click.option("--state", is_flag=True, help="Check the state folder instead: its database, its files and what runs.")
@click.option("--repair", is_flag=True, help="With --state: mend what can be mended safely.")
@click.option("--state-dir", metavar="DIR", type=click.Path(path_type=Path), help="Folder for snapshots and sandboxes.")
@click.option(
    "--runtime",
    metavar="NAME",
    envvar="SANDBOXRT_RUNTIME",
    default="crun",
    show_default=True,
    help="OCI runtime: crun, runc, runsc, or a path.",
)
def doctor(*, as_json: bool, clean: bool, state: bool, repair: bool, state_dir: Path | None, runtime: str) -> None:
    """Show what isolation sandboxes have on this machine, by what, and how to get what is missing.

    Everything is tried out for real, and removed again. The exit code is 0 when a sandbox can be created with the
    default requirements and limits.

    With --state, check the state folder instead, and change nothing without --repair. The exit code is 0 when it is
    sound, 1 when something is wrong with it (still, after a repair), 2 when it cannot be checked.
    """
    if repair and not state:
        raise click.UsageError("--repair goes with --state")
    if state and clean:
        raise click.UsageError("--clean does not go with --state, whose --repair removes the same and more")
    if state:
        check_state(state_dir or default_state_dir(), runtime, repairs=repair, as_json=as_json)
        return
    try:
        examined = trio.run(_examine, runtime, state_dir or default_state_dir(), clean)
    except (SandboxClientError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(_as_json(examined), indent=2)) if as_json else _print(examined)
    if _blocking(examined.report):
        raise SystemExit(1)


@attrs.frozen
class _Examined:
    report: IsolationReport
    state_dir: Path
    removed: list[str] | None


async def _examine(runtime: str, state_dir: Path, clean: bool) -> _Examined:
    await trio.to_thread.run_sync(lambda: state_dir.mkdir(mode=0o700, parents=True, exist_ok=True))
    removed = await clean_leftovers(state_dir) if clean else None
    # First: what is tried on a full disk fails for reasons that are none of the host's properties.
    await Room(state_dir).require("sandbox can be made")
    return _Examined((await probe_host(runtime, state_dir)).report, state_dir, removed)


def _blocking(report: IsolationReport) -> tuple[Isolation, ...]:
    return report.missing(NEEDED)


def _as_json(examined: _Examined) -> dict[str, Any]:
    report = examined.report
    found: dict[str, Any] = {
        "runtime": report.runtime,
        "state_dir": str(examined.state_dir),
        "ready": not _blocking(report),
        "properties": {
            prop.value: {**attrs.asdict(finding), "needed": prop in NEEDED} for prop, finding in report.findings.items()
        },
    }
    if examined.removed is not None:
        found["removed"] = examined.removed
    return found


def _print(examined: _Examined) -> None:
    console = Console(highlight=False, soft_wrap=False)
    report = examined.report
    if examined.removed is not None:
        what = ", ".join(examined.removed) or "nothing was left behind"
        console.print(f"cleaned: {what}", markup=False)
    table = Table(title=f"Isolation of sandboxes with {escape(report.runtime)}", title_justify="left", box=None)
    table.add_column("property", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("by", overflow="fold")
    for prop, finding in report.findings.items():
        table.add_row(prop.value, _verdict(prop, finding), escape(finding.detail))
    console.print(table)
    _print_fixes(console, report)


def _verdict(prop: Isolation, finding: IsolationFinding) -> str:
    if finding.achieved:
        return "[green]yes[/]"
    return "[red]MISSING[/]" if prop in NEEDED else "[yellow]no[/]"


def _print_fixes(console: Console, report: IsolationReport) -> None:
    """Each fix once, with what it is for; unwrapped, so that it can be copied."""
    blocking = _blocking(report)
    fixes: dict[str, list[Isolation]] = {}
    for prop, finding in report.findings.items():
        if not finding.achieved and finding.fix:
            fixes.setdefault(finding.fix, []).append(prop)
    for title, wanted in (("To create sandboxes with the defaults:", True), ("For more:", False)):
        chosen = {fix: props for fix, props in fixes.items() if any(prop in blocking for prop in props) is wanted}
        if chosen:
            console.print(f"\n{title}")
        for fix, props in chosen.items():
            console.print(f"  {', '.join(prop.value for prop in props)}", markup=False, soft_wrap=True)
            console.print(f"    {fix}", markup=False, soft_wrap=True)
    if blocking:
        names = ", ".join(prop.value for prop in blocking)
        console.print(f"\nNot ready: sandboxes with the defaults are refused for want of {names}.", soft_wrap=True)
        if not set(blocking) & DEFAULT_REQUIRE:
            console.print("They are created with `allow_unenforced_limits=True` (`--allow-unenforced-limits`).")
    else:
        console.print("\nReady: sandboxes are created with the default requirements and limits.")
