"""``python -m tests.vm``: the short form; ``--long``: both guests and the suites."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import platformdirs

from tests.vm.cache import Cache
from tests.vm.debian import BOOKWORM, RELEASES, Release
from tests.vm.guest.report import PREFIX
from tests.vm.image import build_system, system_key
from tests.vm.machine import BOOT_S, Deadline, Machine, running_machine
from tests.vm.plan import USER, Step, check_steps, install_steps, suite_steps, tree_of
from tests.vm.summary import Result, closing_line, table, write_table
from tests.vm.supplies import ROOT, Wanted, build_supplies, supplies_key

_EVIDENCE = ROOT / "docs/evidence.md"
_CACHE_BYTES = 8 * 1024**3
_SHORT_S = 15 * 60
_LONG_S = 12 * 3600
# Of a failed step's output this many lines are shown.
_TOLD_LINES = 60
_PROGRAMS = ("mmdebstrap", "qemu-system-x86_64", "ssh", "ssh-keygen", "mke2fs", "apt-get", "dpkg-deb", "git")


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def _refuse_where_nothing_can_run() -> None:
    """Exit with what is missing: a run that skips proves nothing."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if os.geteuid() != 0:
        raise SystemExit("vm: making a guest's disk needs root")
    if platform.machine() != "x86_64":
        raise SystemExit(f"vm: the guests are amd64 machines; this one is {platform.machine()}")
    if missing:
        raise SystemExit(f"vm: missing {', '.join(missing)}; `tools/setup_system.sh --test` installs them")


class Run:
    """One run: its cache, its deadline, what it found.

    Args:
        folder: For consoles and for what the steps printed.
        deadline: When everything has to be over.
        patience: What the time limits of steps are multiplied by.
    """

    def __init__(self, folder: Path, deadline: Deadline, patience: float) -> None:
        self._folder = folder
        self._deadline = deadline
        self._patience = patience
        told = os.environ.get("SANDBOXRT_VM_CACHE", "").strip()
        self._cache = Cache(Path(told) if told else platformdirs.user_cache_path("sandboxrt-vm"), _CACHE_BYTES, _say)
        self.results: list[Result] = []

    def guest(self, release: Release, installer: str, steps: Iterable[Step], *, suites: bool) -> None:
        """Boot a fresh guest with this tree in the home of ``installer``, and go through ``steps`` there.

        ``suites`` says that it needs what the tests do.
        """
        key = system_key(release)
        wanted = Wanted.for_run(suites=suites)
        entry = self._cache.entry
        folder = self._folder / f"{release.codename}-{installer}"
        folder.mkdir()
        with (
            entry(f"{release.codename}-system", key, lambda made: build_system(release, made)) as system,
            entry(
                f"{release.codename}-supplies",
                supplies_key(release, wanted, key),
                lambda made: build_supplies(wanted, release, system, made),
            ) as supplies,
        ):
            began = time.monotonic()
            booting = running_machine(system, supplies, folder, self._deadline, boot_s=BOOT_S * self._patience)
            with contextlib.ExitStack() as stack:
                try:
                    machine = stack.enter_context(booting)
                except RuntimeError as error:
                    # The other guests are tried all the same.
                    self._note(Result(str(release), "boot", False, str(error), time.monotonic() - began))
                    return
                kernel = machine.run("uname -r").output.strip()
                self._note(Result(str(release), "boot", True, f"kernel {kernel}", time.monotonic() - began))
                machine.push(ROOT, tree_of(installer), user=installer)
                self._go_through(release, machine, f"cd {tree_of(installer)}", steps, folder)

    def _go_through(self, release: Release, machine: Machine, first: str, steps: Iterable[Step], logs: Path) -> None:
        """One step after another, until one fails that the others need."""
        for step in steps:
            outcome = machine.run(f"{first} && {step.command}", user=step.user, limit_s=step.limit_s * self._patience)
            (logs / f"{step.name.replace('/', ' ')}.log").write_text(outcome.output)
            lines = outcome.output.splitlines()
            checks = [json.loads(line.removeprefix(PREFIX)) for line in lines if line.startswith(PREFIX)]
            for check in checks:
                self._note(Result(str(release), **check))
            held = outcome.code == step.code and step.says in outcome.output
            # A step that reports has said what failed; only one that could not go to its end stands for itself, too.
            if not step.reports or not checks or (not held and all(check["held"] for check in checks)):
                self._note(Result(str(release), step.name, held, _figure(step, outcome.code, lines), outcome.seconds))
            if step.listed:
                for line in (line for line in lines if line.startswith(step.listed)):
                    self._note(Result(str(release), f"{step.name}: {line}", True, "not run there, as said", 0))
            if not held:
                _say(f"{step.name}: its last lines (exit code {outcome.code}):")
                print("\n".join(f"    {line}" for line in lines[-_TOLD_LINES:]), flush=True)
                if step.needed:
                    return

    def _note(self, result: Result) -> None:
        self.results.append(result)
        _say(result.line())


def _figure(step: Step, code: int | None, lines: list[str]) -> str:
    if code is None:
        return "did not end in time"
    shown = [line for line in lines if step.figure in line] if step.figure else []
    figure = shown[-1].strip() if shown else f"exit code {code}"
    return "; ".join(part for part in (figure, step.note) if part)


def _short(run: Run) -> None:
    run.guest(BOOKWORM, USER, [*install_steps(USER), *check_steps()], suites=False)


def _long(run: Run, stretch: float) -> None:
    for release in RELEASES:
        run.guest(release, USER, [*install_steps(USER), *check_steps()], suites=False)
        run.guest(release, "root", [*install_steps("root"), *suite_steps(stretch)], suites=True)


def main() -> int:
    """Run a form; the exit code says whether everything held."""
    parser = argparse.ArgumentParser(prog="nox -s vm --", description=__doc__)
    parser.add_argument("--long", action="store_true", help="both guests, both ways to install, all suites")
    parser.add_argument("--write", action="store_true", help=f"put the table into {_EVIDENCE.relative_to(ROOT)}")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="a new folder for all that was printed; kept")
    parser.add_argument(
        "--patience", type=float, default=1, metavar="N", help="multiply the time limits of steps, on a busy machine"
    )
    parser.add_argument(
        "--stretch", type=float, default=10, metavar="N", help="multiply the time limits of the suites' tests"
    )
    told = parser.parse_args()
    _refuse_where_nothing_can_run()
    # Told to end, it goes through its blocks' ends like after an error: the guest is ended, half an image removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("vm: told to end"))
    deadline = Deadline((_LONG_S if told.long else _SHORT_S) * told.patience)
    with contextlib.ExitStack() as stack:
        if told.logs is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandboxrt-vm-")))
        else:
            folder = told.logs
            folder.mkdir(parents=True)
        run = Run(folder, deadline, told.patience)
        began = time.monotonic()
        _long(run, told.stretch) if told.long else _short(run)
    if told.write:
        write_table(_EVIDENCE, table(run.results))
    _say(f"{(time.monotonic() - began) / 60:.1f} minutes")
    print(closing_line(run.results))
    return 0 if run.results and all(result.held for result in run.results) else 1


if __name__ == "__main__":
    sys.exit(main())
