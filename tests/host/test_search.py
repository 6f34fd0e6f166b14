"""Lines found in pieces of a text, against splitting the whole."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.host.search import LineScan

texts = st.lists(st.sampled_from([b"a", b"b", b"ab", b"\n", b"aaaa", b"xyz"]), max_size=60).map(b"".join)


@given(
    texts, st.sampled_from([b"a", b"ab", b"aab", b"b"]), st.lists(st.integers(1, 20), min_size=1), st.integers(1, 60)
)
def test_any_cutting_finds_the_lines_of_the_whole(text: bytes, needle: bytes, sizes: list[int], long: int) -> None:
    scan = LineScan(needle, 1000, long)
    found, position, turn = [], 0, 0
    while position < len(text):
        piece = text[position : position + sizes[turn % len(sizes)]]
        position, turn = position + len(piece), turn + 1
        found += scan.feed(piece, 1000)
    found += scan.finish()
    expected = [(number, line) for number, line in enumerate(text.split(b"\n"), 1) if needle in line]
    assert [number for number, _ in found] == [number for number, _ in expected]
    for (_, shown), (_, line) in zip(found, expected, strict=True):
        assert line.startswith(shown)
        assert shown == line or len(line) > long


@given(texts, st.integers(1, 3))
def test_no_more_lines_than_asked_for(text: bytes, most: int) -> None:
    expected = [(number, line) for number, line in enumerate(text.split(b"\n")[:-1], 1) if b"a" in line]
    assert LineScan(b"a", 1000).feed(text, most) == expected[:most]


def test_many_short_lines_take_no_time() -> None:
    begun = time.perf_counter()
    scan = LineScan(b"needle", 100)
    for _ in range(20):
        assert scan.feed(b"\n" * 2**20, 10) == []
    assert scan.feed(b"needle\n", 10) == [(20 * 2**20 + 1, b"needle")]
    assert time.perf_counter() - begun < 2
