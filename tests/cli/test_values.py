from __future__ import annotations

import click
import pytest

from sandboxrt.cli.values import ASSIGNMENT, DURATION, SIZE


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("30", 30), ("30s", 30), ("500ms", 0.5), ("1.5m", 90), ("1h", 3600)]
)
def test_duration(text: str, seconds: float) -> None:
    assert DURATION.convert(text, None, None) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-1", "5 m", "1d", "1h30m", "nan"])
def test_duration_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write it like 30s"):
        DURATION.convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("1024", 1024), ("1k", 1024), ("512m", 512 << 20), ("4GiB", 4 << 30), ("0.5g", 1 << 29)]
)
def test_size(text: str, size_bytes: int) -> None:
    assert SIZE.convert(text, None, None) == size_bytes


@pytest.mark.parametrize("text", ["", "g", "-1", "5x", "1 gb more"])
def test_size_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write it like 512m"):
        SIZE.convert(text, None, None)


def test_assignment() -> None:
    assert ASSIGNMENT.convert("A=b=c", None, None) == ("A", "b=c")
    assert ASSIGNMENT.convert("A=", None, None) == ("A", "")


@pytest.mark.parametrize("text", ["A", "=b", ""])
def test_assignment_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="KEY=VALUE"):
        ASSIGNMENT.convert(text, None, None)
