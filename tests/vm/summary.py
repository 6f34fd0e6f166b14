"""What a run of the guests found: a line for each check while it goes on, and a table for docs/evidence.md."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import attrs

__all__ = ["Result", "closing_line", "table", "write_table"]

_BEGIN, _END = "<!-- vm: begin -->\n", "<!-- vm: end -->\n"


@attrs.frozen
class Result:
    """One check in one guest."""

    guest: str
    name: str
    held: bool
    figure: str
    seconds: float

    def line(self) -> str:
        """For a terminal."""
        return f"{'ok  ' if self.held else 'FAIL'} {self.guest}: {self.name} ({self.seconds:.0f} s): {self.figure}"


def closing_line(results: Iterable[Result]) -> str:
    """How many held and how many did not."""
    held = [result.held for result in results]
    return f"{sum(held)} passed, {len(held) - sum(held)} failed"


def table(results: Iterable[Result]) -> str:
    """The checks as rows, the guests as columns; a check that did not run somewhere says so."""
    found = list(results)
    guests = list(dict.fromkeys(result.guest for result in found))
    names = list(dict.fromkeys(result.name for result in found))
    cells = {(result.name, result.guest): result for result in found}
    lines = ["| check | " + " | ".join(guests) + " |", "| --- |" + " --- |" * len(guests)]
    for name in names:
        row = [_cell(cells.get((name, guest))) for guest in guests]
        lines.append(f"| {_escaped(name)} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _cell(result: Result | None) -> str:
    if result is None:
        return "not run"
    text = _escaped(result.figure) or "as expected"
    return text if result.held else f"**FAILED**: {text}"


def _escaped(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;").strip()


def write_table(document: Path, text: str) -> None:
    """Replace what stands between the two marks of ``document``."""
    before, rest = document.read_text(encoding="utf-8").split(_BEGIN)
    _, after = rest.split(_END)
    document.write_text(f"{before}{_BEGIN}{text}{_END}{after}", encoding="utf-8")
