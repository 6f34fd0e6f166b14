"""Conformance of files: protocol.md §3.2-3.4, the README's "File Operations"."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable

from sandboxrt.errors import ResourceNotFoundError, SandboxOperationError, ValidationError
from sandboxrt.testing.conformance.driver import Case, Driver, by_name, run, sandbox

__all__ = ["FILE_CASES"]

_CASES: list[Case] = []


def _case(function: Case) -> Case:
    _CASES.append(function)
    return function


async def _pieces(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def _refused(doing: Awaitable[object], operation: str, error_type: str, words: str = "") -> None:
    try:
        await doing
    except SandboxOperationError as error:
        assert (error.operation, error.error_type) == (operation, error_type), error
        assert words in str(error), error
    else:
        raise AssertionError(f"no {error_type}")


@_case
async def written_files_are_there(driver: Driver) -> None:
    """Parents made, old content replaced, readable by commands and back."""
    async with sandbox(driver) as name:
        await driver.write_file(name, "/app/sub/script.txt", _pieces(b"one ", b"two\n"))
        assert (await run(driver, name, "cat /app/sub/script.txt")).stdout == "one two\n"
        await driver.write_file(name, "/app/sub/script.txt", _pieces(b"three"))
        assert await driver.read_file(name, "/app/sub/script.txt") == b"three"
        await driver.write_file(name, "/app/empty", _pieces())
        assert await driver.read_file(name, "/app/empty") == b""


@_case
async def any_bytes_survive(driver: Driver) -> None:
    """Binary content, more than fits one piece."""
    async with sandbox(driver) as name:
        piece = bytes(range(256)) * 4096
        await driver.write_file(name, "/app/data.bin", _pieces(piece, piece, piece))
        assert await driver.read_file(name, "/app/data.bin") == piece * 3


@_case
async def files_of_commands_can_be_read(driver: Driver) -> None:
    """The other way round."""
    async with sandbox(driver) as name:
        await run(driver, name, "echo hello > /tmp/made")
        assert await driver.read_file(name, "/tmp/made") == b"hello\n"  # noqa: S108  inside the sandbox


@_case
async def relative_paths_are_relative_to_home(driver: Driver) -> None:
    """``/home/user``, whoever the user is."""
    async with sandbox(driver) as name:
        await driver.write_file(name, "notes/a.txt", _pieces(b"x"))
        assert await driver.read_file(name, "/home/user/notes/a.txt") == b"x"
        assert await driver.read_file(name, "./notes/../notes/a.txt") == b"x"


@_case
async def missing_files_are_not_found(driver: Driver) -> None:
    """With the words of the protocol."""
    async with sandbox(driver) as name:
        for path in ("/no/such/file", "nothing.txt"):
            try:
                await driver.read_file(name, path)
            except ResourceNotFoundError as error:
                assert error.resource_type == "file"
                assert str(error) == f"File '{path}' not found in sandbox '{name}' (No such file or directory)"
            else:
                raise AssertionError("found")


@_case
async def what_is_no_file_is_refused(driver: Driver) -> None:
    """Folders, devices, and paths through files."""
    async with sandbox(driver) as name:
        await _refused(driver.read_file(name, "/etc"), "read", "IsDirectory", "(Is a directory)")
        await _refused(driver.write_file(name, "/etc", _pieces(b"x")), "write", "IsDirectory", "(Is a directory)")
        await _refused(driver.read_file(name, "/dev/null"), "read", "NotRegular")
        await _refused(driver.read_file(name, "/etc/passwd/x"), "read", "NotADirectory", "(Not a directory)")
        await _refused(
            driver.write_file(name, "/etc/passwd/x", _pieces(b"x")), "write", "NotADirectory", "(Not a directory)"
        )
        await _refused(driver.read_file(name, "/" + "n" * 300), "read", "NameTooLong", "(File name too long)")


@_case
async def impossible_paths_are_refused(driver: Driver) -> None:
    """Before anything is asked of the sandbox."""
    async with sandbox(driver) as name:
        for path in ("", "/a\0b"):
            for doing in (driver.read_file(name, path), driver.write_file(name, path, _pieces(b"x"))):
                try:
                    await doing
                except ValidationError as error:
                    assert error.field == "path"
                else:
                    raise AssertionError("accepted")


FILE_CASES = by_name(_CASES)
