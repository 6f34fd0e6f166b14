"""Searches in the files of a sandbox: names by pattern, contents by text.

The walking is done by the sandbox's own ``find`` and ``grep``, as its default user, inside its limits: what they can
see is what there is to find, and no path is resolved anywhere else. What they print is believed as little as any
output of a sandbox; time, entries and results are bounded here, and the tools end with the search.

Source: protocol.md §3.3.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shlex
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NoReturn, TypeAlias

import attrs
import trio

from sandboxrt.engine.base import Container, ExecFailedError, FileError, Identity, ProcessSpec, SpawnFailedError
from sandboxrt.errors import ResourceNotFoundError, SandboxOperationError, ValidationError
from sandboxrt.protocol.globs import Glob, GlobError, name_filter, parse_glob

__all__ = ["FoundFile", "FoundFiles", "FoundLine", "FoundLines", "SearchSettings", "Searcher"]

_READ_BYTES = 64 * 1024
_CHUNK_BYTES = 1024**2
_LONG_LINE_BYTES = 4 * 1024**2
_BINARY_BYTES = 8192
_NO_TOOL = 127
_Pieces: TypeAlias = AsyncGenerator[bytes, None]


@attrs.frozen(kw_only=True)
class SearchSettings:
    """The bounds of one search.

    Attributes:
        default_limit: Results when the caller names no number.
        max_limit: The most that a caller may ask for.
        time_s: How long it may take; what was found until then is the answer.
        entries: How many files and folders are looked at.
        line_characters: How much of a found line is shown.
    """

    default_limit: int = 1000
    max_limit: int = 10_000
    time_s: float = 15.0
    entries: int = 1_000_000
    line_characters: int = 1000


@attrs.frozen
class FoundFile:
    """A file, folder or anything else with a name; ``modified_at`` is an ISO-8601 time, UTC."""

    path: str
    is_dir: bool
    size_bytes: int
    modified_at: str


@attrs.frozen
class FoundFiles:
    """What a search for names has found; ``truncated`` = there may be more."""

    matches: tuple[FoundFile, ...]
    truncated: bool


@attrs.frozen
class FoundLine:
    """A line, counted from 1, without its end."""

    path: str
    line: int
    text: str


@attrs.frozen
class FoundLines:
    """What a search for text has found; ``truncated`` = there may be more."""

    matches: tuple[FoundLine, ...]
    truncated: bool


class LineScan:
    """Finds the lines of a text that contain some bytes, in time that does not depend on how many lines there are.

    Args:
        needle: What to look for; has no line break.
        shown_bytes: How much of a found line is kept.
        long_bytes: A line longer than this is not held whole.
    """

    def __init__(self, needle: bytes, shown_bytes: int, long_bytes: int = _LONG_LINE_BYTES) -> None:
        self._needle = needle
        self._shown_bytes = shown_bytes
        self._long_bytes = long_bytes
        self._number = 1
        self._rest = b""
        self._beginning = b""
        self._hit = False

    def feed(self, data: bytes, at_most: int) -> list[tuple[int, bytes]]:
        """(number, beginning) of the lines that are complete now and contain it, ``at_most`` so many."""
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        found = self._scan(data[:end], at_most) if end else []
        self._rest = data[end:]
        if len(self._rest) > self._long_bytes:
            self._hit = self._hit or self._needle in self._rest
            self._beginning = self._beginning or self._rest[: self._shown_bytes]
            overlap = len(self._needle) - 1
            self._rest = self._rest[-overlap:] if overlap else b""
        return found

    def finish(self) -> list[tuple[int, bytes]]:
        """The last line, if it has no end and contains it."""
        return self._scan(self._rest + b"\n", 1) if self._rest or self._hit else []

    def _scan(self, block: bytes, at_most: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        counted = 0
        hit = 0 if self._hit else block.find(self._needle)
        while hit >= 0 and len(found) < at_most:
            start, end = block.rfind(b"\n", 0, hit) + 1, block.find(b"\n", hit)
            self._number += block.count(b"\n", counted, start)
            line = self._beginning if not start and self._beginning else block[start:end]
            found.append((self._number, line[: self._shown_bytes]))
            counted = start
            hit = block.find(self._needle, end)
        self._number += block.count(b"\n", counted)
        self._hit, self._beginning = False, b""
        return found


@attrs.frozen
class Searcher:
    """Searches in one container.

    Args:
        container: Where.
        sandbox_name: For the words of errors.
        identity: Who searches.
        env: With the ``PATH`` to find the tools on.
        settings: The bounds.
    """

    container: Container
    sandbox_name: str
    identity: Identity
    env: dict[str, str]
    settings: SearchSettings = attrs.field(factory=SearchSettings)

    async def glob(self, pattern: str, path: str, limit: int | None = None) -> FoundFiles:
        """The entries below the folder ``path`` whose relative path matches, sorted.

        Raises:
            ValidationError: Pattern, path or limit cannot be.
            ResourceNotFoundError: There is no such folder.
            SandboxOperationError: It cannot be searched (``operation="search"``).

        Cancellation: The tools are ended.
        """
        glob, most = _parse(parse_glob, pattern, "pattern"), self._limit(limit)
        _check_path(path)
        found: list[FoundFile] = []
        truncated = True
        with trio.move_on_after(self.settings.time_s):
            async with aclosing(self._entries(glob, path)) as entries:
                seen = 0
                async for entry in entries:
                    seen += 1
                    if glob.matches(entry.path):
                        if len(found) == most:
                            break
                        found.append(attrs.evolve(entry, path=posixpath.join(path, entry.path)))
                    if seen >= self.settings.entries:
                        break
                else:
                    truncated = False
        return FoundFiles(tuple(sorted(found, key=lambda file: file.path)), truncated)

    async def grep(self, text: str, path: str, glob: str | None = None, limit: int | None = None) -> FoundLines:
        """The lines with ``text`` in the regular files below ``path`` (or in that file), sorted; binary files left out.

        Args:
            text: What to look for, taken literally.
            path: An absolute path.
            glob: Which files: ``*.py`` by name at any depth; with a ``/``, by path relative to ``path``.
            limit: How many lines at most.

        Raises:
            ValidationError: Text, path, glob or limit cannot be.
            ResourceNotFoundError: There is no such folder or file.
            SandboxOperationError: It cannot be searched (``operation="search"``).

        Cancellation: The tools are ended.
        """
        if not text or "\n" in text or "\0" in text:
            raise ValidationError("The text to look for must be one line, and not empty", "pattern")
        wanted, most = None if glob is None else _parse(name_filter, glob, "glob"), self._limit(limit)
        _check_path(path)
        found: list[FoundLine] = []
        truncated = True
        with trio.move_on_after(self.settings.time_s):
            async with aclosing(self._files_with(text, path)) as names:
                async for name, full in names:
                    if wanted is None or wanted.matches(name):
                        await self._add_lines(found, full, text.encode(), most + 1)
                    if len(found) > most:
                        break
                else:
                    truncated = False
        return FoundLines(tuple(sorted(found[:most], key=lambda line: (line.path, line.line))), truncated)

    def _limit(self, limit: int | None) -> int:
        if limit is None:
            return self.settings.default_limit
        if not 1 <= limit <= self.settings.max_limit:
            raise ValidationError(f"limit must be from 1 to {self.settings.max_limit}", "limit")
        return limit

    # -- names -------------------------------------------------------------------------------------------------------

    async def _entries(self, glob: Glob, path: str) -> AsyncGenerator[FoundFile, None]:
        start = shlex.quote(f"./{glob.prefix}" if glob.prefix else ".")
        depth = f"-mindepth {0 if glob.prefix else 1}"
        if glob.max_depth is not None:
            depth += f" -maxdepth {glob.max_depth - (glob.prefix.count('/') + 1 if glob.prefix else 0)}"
        # The second form is for a find that cannot print by itself, as BusyBox's.
        script = (
            "find -H . -maxdepth 0 -printf '' 2>/dev/null && echo zero && "
            f"exec find -H {start} {depth} -printf '%y/%s/%T@/%p\\0' 2>/dev/null\n"
            f"echo line; exec find -H {start} {depth} -exec stat -c '%F/%s/%Y/%n' {{}} + 2>/dev/null"
        )
        async with aclosing(self._run(script, path)) as output, aclosing(_records(output)) as records:
            async for record in records:
                entry = _entry(record)
                if entry is not None:
                    yield entry

    # -- contents ----------------------------------------------------------------------------------------------------

    async def _files_with(self, text: str, path: str) -> AsyncGenerator[tuple[str, str], None]:
        """(relative path, absolute path) of each regular file with ``text`` somewhere in it."""
        options = f"-type f -exec grep -lsF -e {shlex.quote(text)} {{}} +"
        probe = "command -v find >/dev/null && command -v grep >/dev/null || exit 127; "
        folder, start = path, "."
        try:
            process = self._run(f"{probe}exec find -H . {options} 2>/dev/null", folder)
            async with aclosing(process):
                async for name in _lines(process):
                    yield name, posixpath.join(path, name)
            return
        except SandboxOperationError as error:
            if error.error_type != "NotADirectory":
                raise
        folder, start = posixpath.dirname(path), shlex.quote(f"./{posixpath.basename(path)}")
        process = self._run(f"{probe}exec find -H {start} {options} 2>/dev/null", folder)
        async with aclosing(process):
            async for name in _lines(process):
                yield name, path

    async def _add_lines(self, found: list[FoundLine], path: str, needle: bytes, most: int) -> None:
        try:
            file = await self.container.open_file(path, self.identity)
        except FileError:
            return  # gone since, or a name that was cut in two by a line break inside of it
        scan = LineScan(needle, 4 * self.settings.line_characters)
        try:
            offset = 0
            while len(found) < most:
                data = await file.read(offset, _CHUNK_BYTES)
                if offset == 0 and b"\0" in data[:_BINARY_BYTES]:
                    return
                offset += len(data)
                lines = scan.feed(data, most - len(found)) if data else scan.finish()
                found += [self._found(path, number, line) for number, line in lines]
                if not data:
                    return
        except FileError:
            return
        finally:
            with trio.CancelScope(shield=True):
                await file.aclose()

    def _found(self, path: str, number: int, line: bytes) -> FoundLine:
        text = line.decode("utf-8", "replace").rstrip("\r")
        return FoundLine(path, number, text[: self.settings.line_characters])

    # -- the tools ---------------------------------------------------------------------------------------------------

    async def _run(self, script: str, folder: str) -> _Pieces:
        """What a script prints, run in ``folder``; its end ends with the generator."""
        spec = ProcessSpec(
            argv=("/bin/sh", "-c", script),
            env={**self.env, "LC_ALL": "C"},
            cwd=folder,
            identity=self.identity,
            stdin=False,
        )
        try:
            process = await self.container.spawn(spec)
        except ExecFailedError as error:
            self._explain(error, folder)
        except SpawnFailedError as error:
            raise _failure(f"The search could not be started: {os.strerror(error.errno)}", "SpawnFailed") from error
        try:
            while data := await process.stdout.receive_some(_READ_BYTES):
                yield bytes(data)
            if (await process.wait()).exit_code == _NO_TOOL:
                raise _failure("The sandbox has no 'find' or 'grep' to search with; add them to its image", "NoTool")
        finally:
            await process.aclose()

    def _explain(self, error: ExecFailedError, folder: str) -> NoReturn:
        if error.stage != "chdir":
            raise _failure("The sandbox has no '/bin/sh' to search with; add one to its image", "NoTool") from error
        if error.errno == errno.ENOENT:
            raise ResourceNotFoundError(
                f"Folder '{folder}' not found in sandbox '{self.sandbox_name}'", "file"
            ) from error
        words = {errno.ENOTDIR: "NotADirectory", errno.EACCES: "PermissionDenied"}
        raise _failure(
            f"Folder '{folder}' cannot be searched: {os.strerror(error.errno)}", words.get(error.errno, "OSError")
        ) from error


def _failure(message: str, error_type: str) -> SandboxOperationError:
    return SandboxOperationError(message, "search", error_type)


def _parse(parser: Callable[[str], Glob], pattern: str, field: str) -> Glob:
    try:
        return parser(pattern)
    except GlobError as error:
        raise ValidationError(str(error), field) from error


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise ValidationError("The path must be absolute, without a NUL character", "path")


async def _records(output: _Pieces) -> _Pieces:
    """The records of a listing, whose first line says what ends each of them."""
    rest = b""
    separator = b""
    async for piece in output:
        rest += piece
        if not separator:
            head, found, after = rest.partition(b"\n")
            if not found:
                continue
            separator, rest = (b"\0" if head == b"zero" else b"\n"), after
        *records, rest = rest.split(separator)
        for record in records:
            yield record
        if len(rest) > _READ_BYTES:
            return  # no path is that long


def _entry(record: bytes) -> FoundFile | None:
    """TYPE/SIZE/TIME/./PATH as an entry; ``None`` for what is none (a name with a line break in it, cut in two)."""
    kind, _, rest = record.partition(b"/")
    size, _, rest = rest.partition(b"/")
    time, _, name = rest.partition(b"/")
    if not name.startswith(b"./"):
        return None
    try:
        modified = datetime.fromtimestamp(int(time.partition(b".")[0]), UTC)
        return FoundFile(
            name[2:].decode("utf-8", "replace"),
            kind in (b"d", b"directory"),
            int(size),
            modified.isoformat().replace("+00:00", "Z"),
        )
    except (ValueError, OverflowError, OSError):
        return None


async def _lines(output: _Pieces) -> AsyncGenerator[str, None]:
    rest = b""
    async for piece in output:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"./"):
                yield line[2:].decode("utf-8", "replace")
        if len(rest) > _READ_BYTES:
            return
