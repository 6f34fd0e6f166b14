"""``sandboxrt doctor``: what isolation this machine gives to sandboxes, and what would give more."""

from __future__ import annotations

import functools
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
from sandboxrt.cli.values import SIZE
from sandboxrt.engine.probe import probe_host
from sandboxrt.engine.requirements import LIMIT_PROPERTIES
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import HostConfig, default_state_dir
from sandboxrt.host.doctor.trial import Tried, try_sandbox
from sandboxrt.host.opening import clean_leftovers, default_engine
from sandboxrt.models import DEFAULT_LIMITS, DEFAULT_REQUIRE, Isolation, IsolationFinding, IsolationReport, Limits
from sandboxrt.room import Room

__all__ = ["doctor"]


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
@click.option(
    "--require",
    metavar="PROPERTY",
    multiple=True,
    type=click.Choice([prop.value for prop in Isolation]),
    help="Require this as well, as `require=` does; repeatable.",
)
@click.option("--cpus", type=click.FloatRange(min=0.01), default=DEFAULT_LIMITS.vcpus, show_default=True)
@click.option("--memory", type=SIZE, default=DEFAULT_LIMITS.mem_bytes, help="Memory limit.  [default: 1g]")
@click.option("--disk", type=SIZE, default=DEFAULT_LIMITS.disk_bytes, help="Disk limit.  [default: 4g]")
@click.option("--pids", type=click.IntRange(min=1), default=DEFAULT_LIMITS.pids, show_default=True)
@click.option("--allow-unenforced-limits", is_flag=True, help="Do without limits that this host cannot enforce.")
def doctor(
    *,
    as_json: bool,
    clean: bool,
    state: bool,
    repair: bool,
    state_dir: Path | None,
    runtime: str,
    require: tuple[str, ...],
    cpus: float,
    memory: int,
    disk: int,
    pids: int,
    allow_unenforced_limits: bool,
) -> None:
    """Show what isolation sandboxes have on this machine, by what, and how to get what is missing.

    The verdict comes from a real sandbox: it is made in the state folder with the runtime, the requirements and the
    limits given, used, and removed. The exit code is 0 when that worked, and 1 when not. A server on the same folder
    is not disturbed.

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
        wanted = _Wanted(
            runtime=runtime,
            state_dir=(state_dir or default_state_dir()).absolute(),
            require=DEFAULT_REQUIRE.union(Isolation(name) for name in require),
            limits=Limits(vcpus=cpus, mem_bytes=memory, disk_bytes=disk, pids=pids),
            allow_unenforced_limits=allow_unenforced_limits,
        )
        examined = trio.run(_examine, wanted, clean)
    except (SandboxClientError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(json.dumps(_as_json(examined), indent=2)) if as_json else _print(examined)
    if not examined.tried.ok:
        raise SystemExit(1)


@attrs.frozen(kw_only=True)
class _Wanted:
    """The configuration that is tried."""

    runtime: str
    state_dir: Path
    require: frozenset[Isolation]
    limits: Limits
    allow_unenforced_limits: bool

    @property
    def needed(self) -> frozenset[Isolation]:
        """What a sandbox needs: the required isolation, and the enforcement of its limits."""
        if self.allow_unenforced_limits:
            return self.require
        set_limits = (prop for name, prop in LIMIT_PROPERTIES.items() if getattr(self.limits, name) is not None)
        return self.require.union(set_limits)


@attrs.frozen
class _Examined:
    """What came of it; ``without`` is of a second trial, where limits alone stood in the way."""

    wanted: _Wanted
    report: IsolationReport
    tried: Tried
    without: Tried | None
    removed: list[str] | None

    @property
    def blocking(self) -> tuple[Isolation, ...]:
        return self.report.missing(self.wanted.needed)


async def _examine(wanted: _Wanted, clean: bool) -> _Examined:
    await trio.to_thread.run_sync(lambda: wanted.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True))
    removed = await clean_leftovers(wanted.state_dir) if clean else None
    # First: what is tried on a full disk fails for reasons that are none of the host's properties.
    await Room(wanted.state_dir).require("sandbox can be made")
    async with default_engine(HostConfig(state_dir=wanted.state_dir, runtime=wanted.runtime)) as engine:
        report = (await probe_host(wanted.runtime, wanted.state_dir)).report
        attempt = functools.partial(try_sandbox, engine, limits=wanted.limits, require=wanted.require)
        tried = await attempt(allow_unenforced_limits=wanted.allow_unenforced_limits)
        without = None
        if not tried.ok and report.missing(wanted.needed) and not report.missing(wanted.require):
            without = await attempt(allow_unenforced_limits=True)
    return _Examined(wanted, report, tried, without, removed)


def _as_json(examined: _Examined) -> dict[str, Any]:
    report, wanted, tried = examined.report, examined.wanted, examined.tried
    found: dict[str, Any] = {
        "runtime": report.runtime,
        "state_dir": str(wanted.state_dir),
        "ready": tried.ok,
        "trial": {"ok": tried.ok, "done": tried.done, "failed": tried.failed, "detail": tried.words, "fix": tried.fix},
        "limits": attrs.asdict(wanted.limits),
        "properties": {
            prop.value: {**attrs.asdict(finding), "needed": prop in wanted.needed}
            for prop, finding in report.findings.items()
        },
    }
    if examined.without is not None:
        found["ready_without_limits"] = examined.without.ok
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
    said: set[str] = set()
    for prop, finding in report.findings.items():
        # What many lack for one reason is said once.
        detail = "the same" if finding.detail in said else finding.detail
        if not finding.achieved:
            said.add(finding.detail)
        table.add_row(prop.value, _verdict(examined, prop, finding), escape(detail))
    console.print(table)
    _print_fixes(console, examined)
    _print_verdict(console, examined)


def _verdict(examined: _Examined, prop: Isolation, finding: IsolationFinding) -> str:
    if finding.achieved:
        return "[green]yes[/]"
    return "[red]MISSING[/]" if prop in examined.wanted.needed else "[yellow]no[/]"


def _print_fixes(console: Console, examined: _Examined) -> None:
    """Each fix once, with what it is for; unwrapped, so that it can be copied."""
    blocking = examined.blocking
    fixes: dict[str, list[Isolation]] = {}
    for prop, finding in examined.report.findings.items():
        if not finding.achieved and finding.fix:
            fixes.setdefault(finding.fix, []).append(prop)
    for title, wanted in (("To create such sandboxes:", True), ("For more:", False)):
        chosen = {fix: props for fix, props in fixes.items() if any(prop in blocking for prop in props) is wanted}
        if chosen:
            console.print(f"\n{title}")
        for fix, props in chosen.items():
            console.print(f"  {', '.join(prop.value for prop in props)}", markup=False, soft_wrap=True)
            console.print(f"    {fix}", markup=False, soft_wrap=True)


def _print_verdict(console: Console, examined: _Examined) -> None:
    tried, without = examined.tried, examined.without

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if tried.ok:
        say(f"\nReady: a sandbox with these requirements and limits was made and used in {examined.wanted.state_dir}.")
        return
    if examined.blocking:
        names = ", ".join(prop.value for prop in examined.blocking)
        say(f"\nNot ready: such sandboxes are refused for want of {names}.")
    else:
        say(f"\nNot ready: a sandbox was tried, and failed at its {tried.failed}: {tried.words}")
        if tried.fix is not None:
            say(f"  {tried.fix}")
    if without is not None and without.ok:
        say("They are created with `allow_unenforced_limits=True` (`--allow-unenforced-limits`).")
    elif without is not None:
        say(f"Without limits, too, a sandbox failed at its {without.failed}: {without.words}")
