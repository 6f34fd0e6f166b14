"""What takes long to make, kept between runs: one folder an entry, named after all that it was made from."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

__all__ = ["Cache", "digest_of_data", "key_of"]

_MANIFEST = "manifest.json"
_BLOCK = 1 << 20


def key_of(*parts: object) -> str:
    """A short name for what is made from ``parts``: the same for the same parts, whenever it is asked."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest_of_data(path: Path) -> str:
    """A digest of a file's size and content, which reads no more of its holes than it must.

    What counts as a hole may change by itself (room that is reserved and was never written is one until somebody reads
    it), so blocks of zeros are left out wherever they come from.
    """
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(b"%d:" % size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA) // _BLOCK * _BLOCK
            except OSError:  # ENXIO: nothing but a hole up to the end
                break
            block = os.pread(file.fileno(), _BLOCK, offset)
            if block.count(0) != len(block):
                digest.update(b"%d:" % offset)
                digest.update(block)
            offset += _BLOCK
    return digest.hexdigest()


def _bytes_of(folder: Path) -> int:
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))


@attrs.frozen
class Cache:
    """Entries below one folder.

    An entry is built in a folder of its own and appears under its name when it is whole. Whoever uses one holds a lock
    on it, which ends with the process; entries that nobody uses go, the longest unused first, when all together take
    more than ``max_bytes``.
    """

    folder: Path
    max_bytes: int
    say: Callable[[str], None] = print

    @contextmanager
    def entry(self, name: str, key: str, build: Callable[[Path], None]) -> Iterator[Path]:
        """The folder of ``NAME-KEY``, from the cache or from ``build``, for the time of the block.

        ``build`` fills the empty folder that it gets. What was cached and is damaged is built again.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = self.folder / f"{name}-{key}"
        # Any number may use an entry; who builds it is alone with it, and looks again when the others are gone.
        with _locked(place, fcntl.LOCK_SH) as lock:
            while not _is_sound(place):
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_sound(place):
                    self._build(place, build)
                fcntl.flock(lock, fcntl.LOCK_SH)
            os.utime(place)
            self.trim()
            yield place

    def _build(self, place: Path, build: Callable[[Path], None]) -> None:
        if place.exists():
            self.say(f"{place.name} in the cache is damaged")
            shutil.rmtree(place)
        self.say(f"making {place.name} for the cache")
        building = place.with_suffix(".building")
        if building.exists():  # of a run that was killed: we have the lock, so nobody is at it
            shutil.rmtree(building)
        building.mkdir(mode=0o700)
        try:
            build(building)
            (building / _MANIFEST).write_text(json.dumps(_digests(building)))
            building.rename(place)
            if not _is_sound(place):
                raise RuntimeError(
                    f"{place} does not hold what was written to it a moment ago: is its disk full or damaged?"
                )
        finally:
            shutil.rmtree(building, ignore_errors=True)

    def trim(self) -> None:
        """Remove what killed builds left, and the entries that were not used for longest, until the rest fits."""
        for building in self.folder.glob("*.building"):
            with suppress(BlockingIOError), _locked(building.with_suffix(""), fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(building, ignore_errors=True)
        entries = sorted((path for path in self.folder.iterdir() if (path / _MANIFEST).exists()), key=_last_use)
        total = sum(map(_bytes_of, entries))
        for place in entries:
            if total <= self.max_bytes:
                return
            with suppress(BlockingIOError), _locked(place, fcntl.LOCK_EX | fcntl.LOCK_NB):
                total -= _bytes_of(place)
                self.say(f"removing {place.name} from the cache, which is full")
                shutil.rmtree(place)


def _is_sound(place: Path) -> bool:
    try:
        return bool(json.loads((place / _MANIFEST).read_text()) == _digests(place))
    except (OSError, ValueError):
        return False


def _last_use(place: Path) -> float:
    return place.stat().st_mtime


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return {str(path.relative_to(folder)): digest_of_data(path) for path in files}


@contextmanager
def _locked(place: Path, how: int) -> Iterator[int]:
    """A lock for the entry at ``place``; its file stays, so that everybody locks the same one."""
    descriptor = os.open(place.with_name(f"{place.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)
