"""Patterns of file names against a matcher that tries everything, and against those that would take for ever."""

from __future__ import annotations

import fnmatch
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.protocol.globs import GlobError, name_filter, parse_glob

names = st.text(st.sampled_from("ab."), min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
paths = st.lists(names, min_size=1, max_size=5).map("/".join)
parts = st.just("**") | st.text(st.sampled_from("ab.*?"), min_size=1, max_size=4).filter(
    lambda part: part not in (".", "..", "**") and "**" not in part
)
patterns = st.lists(parts, min_size=1, max_size=4)


def slow(pattern: list[str], path: list[str]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(path)
        return any(slow(pattern[1:], path[skip:]) for skip in range(len(path) + 1))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and slow(pattern[1:], path[1:])


@given(patterns, paths)
def test_patterns_mean_what_trying_everything_finds(pattern: list[str], path: str) -> None:
    glob = parse_glob("/".join(pattern))
    matched = glob.matches(path)
    single = [part for index, part in enumerate(pattern) if part != "**" or pattern[index - 1 : index] != ["**"]]
    assert matched == slow(single, path.split("/"))
    if matched:
        assert glob.max_depth is None or path.count("/") < glob.max_depth
        assert path == glob.prefix or not glob.prefix or path.startswith(glob.prefix + "/")


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_a_pattern_or_refused(pattern: str, path: str) -> None:
    for parse in (parse_glob, name_filter):
        try:
            parse(pattern).matches(path)
        except GlobError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.py", "a.py", True),
        ("*.py", ".py", True),
        ("*.py", "b/a.py", False),
        ("**/*.py", "a.py", True),
        ("**/*.py", "b/c/a.py", True),
        ("src/**", "src", False),
        ("src/**", "src/a/b", True),
        ("[a-c]?[!x]", "bzy", True),
        ("[a-c]?[!x]", "bzx", False),
        ("[]]", "]", True),
        ("[^]]", "]", False),
        ("a+b(c)|d", "a+b(c)|d", True),
        ("[\\d]", "d", True),
        ("[\\d]", "5", False),
        ("./a//b/", "a/b", True),
        ("*", "with\nnewline", True),
    ],
)
def test_what_each_wildcard_means(pattern: str, path: str, expected: bool) -> None:
    assert parse_glob(pattern).matches(path) is expected


@pytest.mark.parametrize("pattern", ["", ".", "/etc", "a/../b", "[", "a[b", "[z-a]", "a\0", "x" * 5000, "a/" * 99])
def test_patterns_that_mean_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(GlobError):
        parse_glob(pattern)


def test_a_filter_without_a_slash_is_for_any_depth() -> None:
    assert name_filter("*.py").matches("a/b/c.py")
    assert not name_filter("a/*.py").matches("b/a/c.py")


def test_no_pattern_takes_long() -> None:
    begun = time.perf_counter()
    assert not parse_glob("*a" * 40 + "b").matches("a" * 255)
    assert not parse_glob("**/a/" * 20 + "b").matches("a/" * 2000 + "c")
    assert time.perf_counter() - begun < 5
