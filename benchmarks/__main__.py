"""``python -m benchmarks``: everything side by side in one run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from benchmarks.contenders.bare import Bare
from benchmarks.contenders.base import Contender
from benchmarks.contenders.ours import Ours
from benchmarks.contenders.podman import Podman, podman
from benchmarks.keeping import captures, stop_and_start
from benchmarks.memory import idle_footprint
from benchmarks.neighbours import beside_neighbours
from benchmarks.report import Measurement, Report
from benchmarks.samples import Case, interleave
from benchmarks.served import SERVED, served
from sandboxrt import AsyncSandboxClient
from sandboxrt.engine.init import INIT_SOURCE, build_tool
from sandboxrt.engine.probe import LAUNCH_SOURCE, HostProbe, probe_host
from sandboxrt.snapshots.library import SnapshotLibrary
from sandboxrt.store import Store

EMBEDDED = ("create", "round_trip", "stream", "burst", "memory", "neighbours", "captures", "stop_start")
STREAM_BYTES = 100_000_000
STREAM = f"head -c {STREAM_BYTES} /dev/zero"
DOCS = Path(__file__).parents[1] / "docs"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _milliseconds(samples: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {name: [1000 * sample for sample in taken] for name, taken in samples.items()}


class Benchmarks:
    """The measurements, one method each."""

    def __init__(self, contenders: Mapping[str, Contender], *, quick: bool) -> None:
        self.contenders = contenders
        self.quick = quick

    def rounds(self, full: int) -> int:
        return 3 if self.quick else full

    def create(self) -> list[Measurement]:
        cases = {name: Case(each.first_output) for name, each in self.contenders.items()}
        samples = interleave(cases, rounds=self.rounds(30), warmup=2)
        return [
            Measurement(
                "create to first output",
                "ms",
                _milliseconds(samples),
                "at most 1.3x bare, 12x faster than podman",
                note="From nothing to the first byte of `echo ok`, the disk included. The removal is not timed.",
            )
        ]

    def round_trip(self) -> list[Measurement]:
        with contextlib.ExitStack() as stack:
            living = {name: stack.enter_context(each.living()) for name, each in self.contenders.items()}
            cases = {
                name: Case(each.round_trip, per_round=10 if name == "sandboxrt" else 2) for name, each in living.items()
            }
            samples = interleave(cases, rounds=self.rounds(20), warmup=2)
        return [
            Measurement(
                "run round trip",
                "ms",
                _milliseconds(samples),
                "at most 3 ms, a third of bare",
                note="`/bin/sh -c 'echo ok'` in a sandbox that is there already: output and exit code. "
                "The rivals' own `exec` programs, started with `posix_spawn`.",
            )
        ]

    def stream(self) -> list[Measurement]:
        with contextlib.ExitStack() as stack:
            living = {name: stack.enter_context(each.living()) for name, each in self.contenders.items()}
            cases = {name: Case(functools.partial(each.stream, STREAM, STREAM_BYTES)) for name, each in living.items()}
            seconds = interleave(cases, rounds=self.rounds(7), warmup=1)
        return [
            Measurement(
                "streaming 100 MB",
                "MB/s",
                {name: [STREAM_BYTES / 1e6 / sample for sample in taken] for name, taken in seconds.items()},
                "at least 300 MB/s",
                higher_is_better=True,
                note="One command's output to the reader of its chunks, as text with offsets and replay. The rivals "
                "only copy bytes to a pipe, which is read and dropped.",
            )
        ]

    def burst(self) -> list[Measurement]:
        count = 20 if self.quick else 200
        cases = {
            name: Case(functools.partial(each.burst, count, 8))
            for name, each in self.contenders.items()
            if name != "podman"
        }
        seconds = interleave(cases, rounds=1 if self.quick else 3, warmup=0)
        samples = {name: [count / sample for sample in taken] for name, taken in seconds.items()}
        few = 5 if self.quick else 20
        samples["podman"] = [few / self.contenders["podman"].burst(few, 8)]
        return [
            Measurement(
                f"burst of {count}",
                "/s",
                samples,
                "at least 40/s",
                higher_is_better=True,
                note=f"{count} sandboxes wanted at once; each runs `echo ok` and is removed, all of it timed. Bare: 8 "
                f"at a time, without the removal. podman: {few}, 8 at a time.",
            )
        ]

    def memory(self) -> list[Measurement]:
        samples: dict[str, list[float]] = {}
        for name, each in self.contenders.items():
            count = 5 if self.quick else (10 if name == "podman" else 50)
            found = idle_footprint(each, count)
            _say(f"  {name}: {found}")
            samples[name] = [found.total / 1024]
        return [
            Measurement(
                "memory of an idle sandbox",
                "MiB",
                samples,
                "at most 1.5 MiB",
                note="Proportional set size of its processes, growth of the driving process, and what the kernel keeps "
                "(slab, page tables, stacks), divided by the number of sandboxes.",
            )
        ]

    def neighbours(self) -> list[Measurement]:
        ours = self.contenders["sandboxrt"]
        assert isinstance(ours, Ours)
        return ours.on_trio(functools.partial(beside_neighbours, ours.client, self.rounds(5)))

    def captures(self) -> list[Measurement]:
        return captures(*self._keepers(), self.rounds(10))

    def stop_start(self) -> list[Measurement]:
        return stop_and_start(*self._keepers(), self.rounds(20))

    def _keepers(self) -> tuple[Ours, Podman]:
        ours, rival = self.contenders["sandboxrt"], self.contenders["podman"]
        assert isinstance(ours, Ours)
        assert isinstance(rival, Podman)
        return ours, rival


def _version(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split("\n")[0].rpartition(" ")[2]


def _measure(ours: Ours, bare: Bare, folder: Path, options: argparse.Namespace) -> Report:
    """The whole run; on a thread of its own, so that trio's is free for what it owns."""
    report = Report(versions={"crun": bare.probe.facts.runtime.version, "podman": _version("podman", "--version")})
    (folder / "podman").mkdir()
    with podman(folder / "podman", bare.probe.facts.runtime.path or "crun") as rival:
        benchmarks = Benchmarks({"sandboxrt": ours, bare.name: bare, "podman": rival}, quick=options.quick)
        for name in [each for each in EMBEDDED if not options.only or each in options.only]:
            _say(f"{name} ...")
            _add(report, getattr(benchmarks, name)())
    return report


def _measure_served(report: Report, folder: Path, options: argparse.Namespace) -> None:
    names = [each for each in SERVED if not options.only or each in options.only]
    if not names:
        return
    with served(folder, quick=options.quick) as benchmarks:
        for name in names:
            _say(f"{name} ...")
            _add(report, getattr(benchmarks, name)())


def _add(report: Report, measurements: Sequence[Measurement]) -> None:
    report.measurements.extend(measurements)
    for each in measurements:
        for row in each.rows("sandboxrt"):
            _say("  " + row)


async def _run(options: argparse.Namespace, folder: Path) -> Report:
    state_dir = folder / "ours"
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client:
        async with client.sandbox() as sandbox:  # makes the snapshot and the templates
            await sandbox.run("true")
        ours = Ours(client, state_dir, trio.lowlevel.current_trio_token())
        bare = await _bare(folder / "bare", state_dir)
        try:
            return await trio.to_thread.run_sync(_measure, ours, bare, folder, options)
        finally:
            bare.close()


async def _bare(folder: Path, state_dir: Path) -> Bare:
    folder.mkdir()
    probe: HostProbe = await probe_host("crun", state_dir)
    tools = state_dir / "tools"
    async with Store.open(folder / "store") as store, SnapshotLibrary(store, folder / "store") as library:
        host = await library.host_snapshot()
        layers = (await library.use(host.id)).layers
    return Bare(folder, probe, layers, await build_tool(LAUNCH_SOURCE, tools), await build_tool(INIT_SOURCE, tools))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few samples: to see that it works, not how fast it is")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and docs/benchmarks.json")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        choices=[*EMBEDDED, *SERVED],
        help="one measurement (repeatable): %(choices)s",
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the rivals need root: run it with sudo")
    if options.write and (options.quick or options.only):
        parser.error("--write records a whole run; leave out --quick and --only")
    with tempfile.TemporaryDirectory(prefix="sandboxrt-bench-", dir="/var/tmp") as folder:
        report = trio.run(_run, options, Path(folder))
        # The embedded host is gone by now, so that it takes no part in what is measured.
        _measure_served(report, Path(folder), options)
    print(report.table())
    if options.write:
        report.write(DOCS)


if __name__ == "__main__":
    main()
