"""Sandboxes write until the host's file system is full: nothing that was accepted is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fulldisk.kit import run_inside

pytestmark = pytest.mark.container


@pytest.mark.parametrize("scenario", ["more_than_there_is", "holes_and_promises", "many_writers"])
def test_what_was_accepted_is_there(scenario: str, tmp_path: Path) -> None:
    run_inside(scenario, tmp_path)
