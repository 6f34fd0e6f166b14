"""Files of a sandbox in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from sandboxrt.errors import ResourceNotFoundError, SandboxOperationError, ValidationError

from .conftest import OpenFake


async def content(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await trio.lowlevel.checkpoint()


async def test_a_file_is_read_in_pieces_and_has_a_version(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _):
        await host.write_file("box", "a/b", content(b"hello", b" world"))
        async with host.open_file("box", "/home/user/a/b") as file:
            assert file.stat.size_bytes == 11
            assert await file.read(6, 3) == b"wor"
            assert await file.read(11) == b""
            before = file.etag
            await host.write_file("box", "a/b", content(b"hello", b" there"))
            assert await file.read(6) == b"world"
        async with host.open_file("box", "a/b") as file:
            assert await file.read(6) == b"there"
            assert file.etag != before


async def test_what_cannot_be_opened_says_why(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _):
        with pytest.raises(ResourceNotFoundError):
            async with host.open_file("box", "/nowhere"):
                pytest.fail("it was opened")
        with pytest.raises(SandboxOperationError) as caught:
            async with host.open_file("box", "/etc"):
                pytest.fail("it was opened")
        assert (caught.value.operation, caught.value.error_type) == ("read", "IsDirectory")
        with pytest.raises(ValidationError):
            async with host.open_file("box", "a\0b"):
                pytest.fail("it was opened")


async def test_an_error_of_the_reader_stays_what_it_was(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _):
        with pytest.raises(BrokenPipeError):
            async with host.open_file("box", "/etc/passwd"):
                raise BrokenPipeError
