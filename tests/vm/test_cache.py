"""The cache of guests: whole entries only, damage is found, the room is bounded, nobody's entry is taken away."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tests.vm.cache import Cache, digest_of_data, key_of

MIB = 1 << 20


def builder(content: bytes, built: list[bytes] | None = None) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "image").write_bytes(content)
        if built is not None:
            built.append(content)

    return build


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 64 * MIB, lambda text: None)


def names(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.iterdir() if path.is_dir()}


def test_an_entry_is_built_once(cache: Cache) -> None:
    built: list[bytes] = []
    for _ in range(2):
        with cache.entry("system", "a", builder(b"content", built)) as place:
            assert (place / "image").read_bytes() == b"content"
    assert built == [b"content"]


@pytest.mark.parametrize("damage", ["changed", "cut", "missing", "more", "no-manifest", "garbage"])
def test_a_damaged_entry_is_built_again(cache: Cache, damage: str) -> None:
    with cache.entry("system", "a", builder(b"content")) as place:
        pass
    image = place / "image"
    {
        "changed": lambda: image.write_bytes(b"contenT"),
        "cut": lambda: image.write_bytes(b"con"),
        "missing": image.unlink,
        "more": lambda: (place / "other").write_bytes(b""),
        "no-manifest": (place / "manifest.json").unlink,
        "garbage": lambda: (place / "manifest.json").write_text("{"),
    }[damage]()
    built: list[bytes] = []
    with cache.entry("system", "a", builder(b"content", built)) as place:
        assert sorted(path.name for path in place.iterdir()) == ["image", "manifest.json"]
        assert image.read_bytes() == b"content"
    assert built == [b"content"]


def test_a_failed_build_leaves_nothing(cache: Cache) -> None:
    def fail(folder: Path) -> None:
        (folder / "image").write_bytes(b"half")
        raise RuntimeError("the mirror is gone")

    with pytest.raises(RuntimeError, match="the mirror is gone"), cache.entry("system", "a", fail):
        pass
    assert names(cache) == set()
    with cache.entry("system", "a", builder(b"whole")) as place:
        assert (place / "image").read_bytes() == b"whole"


def test_what_a_killed_build_left_goes(cache: Cache) -> None:
    for key in "ab":
        (cache.folder / f"system-{key}.building").mkdir(parents=True)
        (cache.folder / f"system-{key}.building" / "image").write_bytes(b"half")
    with cache.entry("system", "a", builder(b"whole")) as place:
        assert sorted(path.name for path in place.iterdir()) == ["image", "manifest.json"]
    assert names(cache) == {"system-a"}


def test_the_longest_unused_goes_when_the_room_is_used_up(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 5 * MIB, lambda text: None)
    for number, key in enumerate("ab"):
        with cache.entry("system", key, builder(bytes([1]) * 2 * MIB)) as place:
            pass
        os.utime(place, (number, number))
    with cache.entry("system", "a", builder(b"")):  # used again, so that b is the oldest
        pass
    with cache.entry("system", "c", builder(bytes([1]) * 2 * MIB)):
        assert names(cache) == {"system-a", "system-c"}


def hold(folder: Path, held: Event, over: Event) -> None:
    with Cache(folder, MIB, lambda text: None).entry("system", "held", builder(bytes([1]) * 2 * MIB)):
        held.set()
        over.wait(60)


def test_what_another_process_uses_stays(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, over = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, over))
    other.start()
    try:
        assert held.wait(60)
        cache = Cache(tmp_path, MIB, lambda text: None)
        with cache.entry("system", "new", builder(b"small")):
            assert names(cache) == {"system-held", "system-new"}
            with cache.entry("system", "held", builder(b"not built")) as place:
                assert (place / "image").stat().st_size == 2 * MIB
        over.set()
        other.join(60)
        with cache.entry("system", "new", builder(b"small")):
            assert names(cache) == {"system-new"}
    finally:
        over.set()
        other.join()


def test_a_digest_tells_where_data_lies(tmp_path: Path) -> None:
    digests = set()
    for offset in (0, MIB, 2 * MIB):
        file = tmp_path / str(offset)
        with file.open("wb") as stream:
            stream.truncate(3 * MIB)
            stream.seek(offset)
            stream.write(b"x" * 4096)
        digests.add(digest_of_data(file))
        assert digest_of_data(file) in digests
    assert len(digests) == 3


def test_a_digest_is_of_what_is_read_and_not_of_how_it_is_stored(tmp_path: Path) -> None:
    digests = set()
    for how in ("hole", "zeros", "reserved"):
        file = tmp_path / how
        with file.open("wb") as stream:
            stream.write(b"x" * 5000)
            if how == "zeros":
                stream.write(bytes(3 * MIB))
            elif how == "reserved":
                stream.flush()
                os.posix_fallocate(stream.fileno(), 5000, 3 * MIB)
            stream.truncate(5000 + 3 * MIB)
            stream.seek(2 * MIB)
            stream.write(b"y")
        digests.add(digest_of_data(file))
        file.read_bytes()
        digests.add(digest_of_data(file))
    assert len(digests) == 1


def test_a_key_follows_all_that_it_is_made_of() -> None:
    assert key_of("a", {"b": 1, "c": 2}) == key_of("a", {"c": 2, "b": 1})
    assert len({key_of("a"), key_of("b"), key_of("a", ()), key_of("a", ("b",)), key_of(("a", "b"))}) == 5
