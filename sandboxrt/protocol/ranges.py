"""What of a file an HTTP request asks for: all of it, a range, or nothing because the client has it already.

Source: RFC 9110 §13, §14.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

import attrs

__all__ = ["FileFacts", "Part", "is_unchanged", "part_of"]

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
_LAST_SECOND = 253_402_300_799


@attrs.frozen
class FileFacts:
    """What the headers of an answer say about a file.

    Attributes:
        size_bytes: Its size.
        etag: Names its content.
        mtime_ns: When that was changed, in nanoseconds since the epoch; any number at all.
    """

    size_bytes: int
    etag: str
    mtime_ns: int

    @property
    def last_modified(self) -> str:
        """The time as HTTP writes it."""
        # A program inside may have set any time at all.
        seconds = min(max(self.mtime_ns // 10**9, 0), _LAST_SECOND)
        return format_datetime(datetime.fromtimestamp(seconds, UTC), usegmt=True)


@attrs.frozen
class Part:
    """What of a file is sent: from ``start`` up to, not including, ``stop``; ``whole`` = it was not asked by range."""

    start: int
    stop: int
    whole: bool


def part_of(method: str, headers: Mapping[str, str], file: FileFacts) -> Part | None:
    """What was asked for; ``None`` when nothing of it exists. A range that is no single one is passed over.

    Args:
        method: The request's.
        headers: Likewise; names in lower case.
        file: The file.
    """
    total = file.size_bytes
    whole = Part(0, total, whole=True)
    asked = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if asked is None or method != "GET" or not _still_the_same(headers, file):
        return whole
    first, last = asked.groups()
    if not first and not last:
        return whole
    if not first:
        length = min(int(last), total)
        return Part(total - length, total, whole=False) if length else None
    start = int(first)
    stop = min(int(last) + 1, total) if last else total
    if last and int(last) < start:
        return whole
    return Part(start, stop, whole=False) if start < total else None


def _still_the_same(headers: Mapping[str, str], file: FileFacts) -> bool:
    condition = headers.get("if-range")
    if condition is None:
        return True
    if condition.startswith('"'):
        return condition == file.etag
    # A date proves nothing about a file that changed within its last second.
    return condition == file.last_modified


def is_unchanged(headers: Mapping[str, str], file: FileFacts) -> bool:
    """Whether the client has said that it has exactly this content."""
    condition = headers.get("if-none-match")
    if condition is not None:
        tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
        return "*" in tags or file.etag in tags
    since = headers.get("if-modified-since")
    if since is None:
        return False
    try:
        return file.mtime_ns // 10**9 <= parsedate_to_datetime(since).timestamp()
    except (ValueError, OverflowError):
        return False
