"""What a run of guests says: nothing that failed or did not run looks like what held."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vm.guest.report import PREFIX, Report, expect
from tests.vm.summary import Result, closing_line, table, write_table

RESULTS = [
    Result("Debian 12", "memory limit", True, "exit 137: out of memory | a pipe", 2.0),
    Result("Debian 12", "tunnel", False, "AssertionError: fetched\nnothing", 9.0),
    Result("Debian 13", "memory limit", True, "", 1.0),
]


def test_the_table_says_what_failed_and_what_did_not_run() -> None:
    assert table(RESULTS).splitlines() == [
        "| check | Debian 12 | Debian 13 |",
        "| --- | --- | --- |",
        "| memory limit | exit 137: out of memory \\| a pipe | as expected |",
        "| tunnel | **FAILED**: AssertionError: fetched nothing | not run |",
    ]


def test_the_closing_line_counts() -> None:
    assert closing_line(RESULTS) == "2 passed, 1 failed"
    assert RESULTS[1].line().startswith("FAIL Debian 12: tunnel")


def test_the_table_replaces_the_last_one(tmp_path: Path) -> None:
    document = tmp_path / "evidence.md"
    document.write_text("before\n<!-- vm: begin -->\nold\n<!-- vm: end -->\nafter\n")
    for text in ("new\n", "newer\n"):
        write_table(document, text)
        assert document.read_text() == f"before\n<!-- vm: begin -->\n{text}<!-- vm: end -->\nafter\n"


def test_a_report_tells_what_held_and_what_did_not(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report("here")
    assert report.check("good", lambda: "42")
    assert not report.check("bad", lambda: str(expect(1 + 1 == 3, "1 + 1 is 2")))
    assert report.failed == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(PREFIX)]
    assert '"name": "here: good", "held": true, "figure": "42"' in lines[0]
    assert '"name": "here: bad", "held": false, "figure": "AssertionError: 1 + 1 is 2"' in lines[1]
