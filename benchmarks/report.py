"""The benchmark table and what goes with it: ``docs/benchmarks.md`` and the raw samples beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import attrs

from benchmarks.samples import ratio_interval, summarize

__all__ = ["Measurement", "Report"]


@attrs.frozen
class Measurement:
    """One quantity of every contender.

    Attributes:
        title: What it is.
        unit: Of the samples.
        samples: By contender.
        target: What was to be reached, in words.
        higher_is_better: For throughputs.
        note: What a reader should know.
    """

    title: str
    unit: str
    samples: Mapping[str, Sequence[float]]
    target: str = ""
    higher_is_better: bool = False
    note: str = ""

    def rows(self, ours: str) -> list[str]:
        """Table rows, ours first."""
        names = sorted(self.samples, key=lambda name: name != ours)
        rows = []
        for name in names:
            found = summarize(self.samples[name])
            against = "" if name == ours else self._against(ours, name)
            title, target = (self.title, self.target) if name == ours else ("", "")
            rows.append(
                f"| {title} | {name} | {found.median:.3g} {self.unit} | {found.minimum:.3g} | {found.p95:.3g} "
                f"| {found.count} | {against} | {target} |"
            )
        return rows

    def _against(self, ours: str, rival: str) -> str:
        over, under = self.samples[ours], self.samples[rival]
        ratio = statistics.median(over) / statistics.median(under)
        if len(over) < 3 or len(under) < 3:
            return f"{ratio:.3g}"
        low, high = ratio_interval(over, under)
        return f"{ratio:.3g} ({low:.3g} to {high:.3g})"


@attrs.define
class Report:
    """What one run found."""

    measurements: list[Measurement] = attrs.field(factory=list)
    versions: dict[str, str] = attrs.field(factory=dict)
    load_before: float = attrs.field(factory=lambda: os.getloadavg()[0])

    def table(self) -> str:
        lines = [
            "| what | contender | median | minimum | p95 | samples | ours / theirs (95 % interval) | target |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for each in self.measurements:
            lines += each.rows("sandboxrt")
        return "\n".join(lines)

    def machine(self) -> str:
        uname = platform.uname()
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return (
            f"{os.cpu_count()} CPUs, {memory:.0f} GiB, Linux {uname.release}, Python {platform.python_version()}, "
            f"{versions}; load average before the run {self.load_before:.2f}; "
            f"{datetime.now(UTC).date().isoformat()}"
        )

    def document(self) -> str:
        notes = "\n".join(f"* **{each.title}.** {each.note}" for each in self.measurements if each.note)
        return _DOCUMENT.format(table=self.table(), machine=self.machine(), notes=notes)

    def write(self, folder: Path) -> None:
        """Write ``benchmarks.md`` and ``benchmarks.json``."""
        (folder / "benchmarks.md").write_text(self.document())
        raw = {
            "machine": self.machine(),
            "measurements": [
                {
                    "title": each.title,
                    "unit": each.unit,
                    "samples": {name: [round(s, 6) for s in samples] for name, samples in each.samples.items()},
                }
                for each in self.measurements
            ],
        }
        (folder / "benchmarks.json").write_text(json.dumps(raw, indent=1) + "\n")


_DOCUMENT = """# Benchmarks

Written by `nox -s bench` (`python -m benchmarks --write`, as root); do not edit. Every contender is measured in the
same run, samples in turn, because machines are noisy: read the ratios first. The raw samples are in
[benchmarks.json](benchmarks.json).

{machine}

{table}

## What is compared

{notes}

*Bare* is the OCI runtime driven by hand with the very configuration that sandboxes get: namespaces, id block, overlay
of idmapped layers, disk image, control groups, seccomp filter. Its mounts are made by the same launcher. `podman` has
the same limits, no network, an id map of its own and an image of a few programs; it has no disk limit. *langsmith*
is the official client, asyncio form, in an environment of its own, on the same `sandboxrt serve` with real containers.
"""
