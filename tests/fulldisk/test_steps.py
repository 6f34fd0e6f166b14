"""The disk fills up at each step of each operation, embedded and served: nothing that was acknowledged is lost."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.fulldisk.kit import run_inside

pytestmark = pytest.mark.container

TYPED = {"done", "HostDiskFullError", "ResourceCreationError"}


@pytest.mark.parametrize("mode", ["embedded", "served"])
def test_at_each_step_of_each_operation(mode: str, tmp_path: Path) -> None:
    said = run_inside("steps", tmp_path, mode)
    print(said)  # what docs/evidence.md has
    printed = said.splitlines()
    found = [
        (row.strip("| ").split(" | ")[1:], answer)
        for row, answer in itertools.pairwise(printed)
        if row.startswith(f"| {mode} |")
    ]
    assert len(found) == 41
    for (operation, step), answer in found:
        if operation == "output":
            # What cannot be kept for a reader who is slower is a loss that is told.
            assert answer in ("done", "OutputLostError")
            continue
        assert answer in TYPED, (operation, step)
        if operation in ("stop", "delete", "write"):
            assert answer == "done", (operation, step)
        elif step == "all the time":
            assert answer == "HostDiskFullError", (operation, step)


@pytest.mark.parametrize("mode", ["embedded", "served"])
def test_with_nothing_left_for_root_either(mode: str, tmp_path: Path) -> None:
    run_inside("nothing_left", tmp_path, mode)
