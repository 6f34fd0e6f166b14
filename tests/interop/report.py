"""The table of ``docs/compatibility.md``, written from what a run found."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import attrs

from tests.interop.clients import GENERATIONS
from tests.interop.rows import ROWS

__all__ = ["Outcome", "render"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"


@attrs.frozen
class Outcome:
    """One scenario with one client in one form."""

    row: str
    generation: str
    form: str
    ok: bool


_HEAD = """# Compatibility with the official clients

What unmodified official `langsmith` clients find on `sandboxrt serve`, with real containers. Written by
`pytest tests/interop --write-compatibility`; do not edit. Each cell is the blocking form, then the asyncio form.

"""

_TAIL = """
## What the official clients themselves get wrong

These are no faults of the server; our own client does better on each.

{quirks}
"""


def render(outcomes: Iterable[Outcome]) -> str:
    """The document for these outcomes."""
    found = {(each.row, each.generation, each.form): each.ok for each in outcomes}
    lines = ["| row | scenario | " + " | ".join(GENERATIONS) + " |", "|---|---|" + "---|" * len(GENERATIONS)]
    for row, facts in ROWS.items():
        cells = [_cell(found, row, generation, facts.generations) for generation in GENERATIONS]
        lines.append(f"| {row} | {facts.title} | " + " | ".join(cells) + " |")
    quirks = "\n".join(f"* {facts.quirk} (row {row})" for row, facts in ROWS.items() if facts.quirk)
    return _HEAD + "\n".join(lines) + "\n" + _TAIL.format(quirks=quirks)


def _cell(
    found: dict[tuple[str, str, str], bool], row: str, generation: str, generations: tuple[str, ...] | None
) -> str:
    if generations is not None and generation not in generations:
        return "not in this client"
    words = {True: "passes", False: "FAILS", None: "not run"}
    return ", ".join(words[found.get((row, generation, form))] for form in ("sync", "async"))
