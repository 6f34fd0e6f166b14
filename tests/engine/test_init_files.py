"""Files read and replaced through a container's first process, and sockets made there."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from sandboxrt.engine.base import FileError, FileErrorKind, Identity
from tests.engine.init_kit import ROOT, USER, Inside, container, no_leaks, read_until, shell


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_leaks():
        yield


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(inside: Inside, path: str, identity: Identity = ROOT) -> bytes:
    file = await inside.channel.open_file(path, identity)
    try:
        parts, offset = [], 0
        while part := await file.read(offset, 1 << 20):
            parts.append(part)
            offset += len(part)
        assert offset == file.stat.size_bytes
        return b"".join(parts)
    finally:
        await file.aclose()
        await file.aclose()


async def write(inside: Inside, path: str, *parts: bytes, identity: Identity = ROOT) -> None:
    await inside.channel.replace_file(path, pieces(*parts), identity)


async def refusal(inside: Inside, path: str, identity: Identity = ROOT) -> FileErrorKind:
    with pytest.raises(FileError) as caught:
        await inside.channel.open_file(path, identity)
    assert caught.value.path == path
    return caught.value.kind


async def write_refusal(inside: Inside, path: str, identity: Identity = ROOT) -> FileErrorKind:
    with pytest.raises(FileError) as caught:
        await write(inside, path, b"x", identity=identity)
    return caught.value.kind


async def test_reading_what_is_not_a_readable_file() -> None:
    async with container() as inside:
        await inside.run(
            "cd /tmp; mkfifo fifo; mkdir folder; touch secret; chmod 600 secret; ln -s loop loop; ln -s secret link;"
            "ln -s /proc/self/environ env; ln -s /dev/zero zero"
        )
        assert await refusal(inside, "/tmp/missing") is FileErrorKind.NOT_FOUND
        assert await refusal(inside, "/tmp/folder") is FileErrorKind.IS_DIRECTORY
        assert await refusal(inside, "/tmp/secret/x") is FileErrorKind.NOT_A_DIRECTORY
        assert await refusal(inside, "/tmp/" + "x" * 300) is FileErrorKind.NAME_TOO_LONG
        assert await refusal(inside, "/tmp/loop") is FileErrorKind.LOOP
        for path in ("/tmp/fifo", "/dev/zero", "/tmp/zero", "/dev/tty"):
            assert await refusal(inside, path) is FileErrorKind.NOT_REGULAR
        for path in ("/proc/self/environ", "/tmp/env", "/proc/sys/kernel/hostname", "/proc/1/root/etc/passwd"):
            assert await refusal(inside, path) in (FileErrorKind.PERMISSION, FileErrorKind.LOOP), path
        assert await refusal(inside, "/proc/self/root/etc/passwd") is FileErrorKind.LOOP
        for path in ("/tmp/secret", "/tmp/link"):
            assert await refusal(inside, path, USER) is FileErrorKind.PERMISSION
            assert await read(inside, path) == b""


async def test_a_file_is_read_at_any_offset() -> None:
    async with container() as inside:
        await inside.run("printf 0123456789 >/tmp/x")
        file = await inside.channel.open_file("/tmp/x", USER)
        assert (file.stat.size_bytes, await file.read(3, 4), await file.read(10, 4)) == (10, b"3456", b"")
        await file.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await file.read(0, 1)


async def test_a_new_file_its_folders_and_their_owners() -> None:
    async with container() as inside:
        await write(inside, "/tmp/a/b/c.txt", b"one ", b"two", identity=USER)
        script = "cd /tmp; stat -c '%a %u %g' a a/b a/b/c.txt; cat a/b/c.txt; ls -A a/b"
        assert (await inside.run(script))[1] == b"755 1000 1000\n755 1000 1000\n644 1000 1000\none twoc.txt\n"


async def test_an_existing_file_keeps_its_mode_but_no_set_user_id() -> None:
    async with container() as inside:
        await inside.run("cd /tmp; echo old >x; chmod 4751 x; ln x hard")
        await write(inside, "/tmp/x", b"new")
        assert (await inside.run("cd /tmp; stat -c %a x; cat x; cat hard"))[1] == b"751\nnewold\n"


async def test_links_are_followed_and_stay_links() -> None:
    async with container() as inside:
        await inside.run(
            "cd /tmp; mkdir d e; echo old >e/file; ln -s ../e/file d/two; ln -s d/two one; ln -s fresh new;"
            "ln -s me me; ln -s /proc/sys/kernel/hostname host; ln -s nowhere/x dangling; ln -s d folder"
        )
        await write(inside, "/tmp/one", b"through")
        await write(inside, "/tmp/new", b"made")
        script = "cd /tmp; cat e/file fresh; readlink one d/two new; ls -A e"
        assert (await inside.run(script))[1] == b"throughmaded/two\n../e/file\nfresh\nfile\n"
        assert await write_refusal(inside, "/tmp/me") is FileErrorKind.LOOP
        assert await write_refusal(inside, "/tmp/host") is FileErrorKind.PERMISSION
        assert await write_refusal(inside, "/tmp/dangling") is FileErrorKind.NOT_FOUND
        assert await write_refusal(inside, "/tmp/folder") is FileErrorKind.IS_DIRECTORY


async def test_what_cannot_be_replaced() -> None:
    async with container() as inside:
        await inside.run("cd /tmp; mkdir folder; echo x >file; mkfifo fifo; mkdir -m 700 private")
        assert await write_refusal(inside, "/tmp/folder") is FileErrorKind.IS_DIRECTORY
        assert await write_refusal(inside, "/tmp/new/") is FileErrorKind.IS_DIRECTORY
        assert await write_refusal(inside, "/tmp/folder/..") is FileErrorKind.IS_DIRECTORY
        assert await write_refusal(inside, "/tmp/file/x") is FileErrorKind.NOT_A_DIRECTORY
        assert await write_refusal(inside, "/tmp/fifo") is FileErrorKind.NOT_REGULAR
        assert await write_refusal(inside, "/dev/zero") is FileErrorKind.NOT_REGULAR
        assert await write_refusal(inside, "/tmp/private/x", USER) is FileErrorKind.PERMISSION
        assert await write_refusal(inside, "/tmp/file", USER) is FileErrorKind.PERMISSION  # a sticky folder
        assert await write_refusal(inside, "/proc/sys/kernel/hostname") is FileErrorKind.PERMISSION
        assert await write_refusal(inside, "/tmp/" + "x" * 300) is FileErrorKind.NAME_TOO_LONG
        assert await write_refusal(inside, "/tmp/" + "x/" * 3000 + "x") is FileErrorKind.NAME_TOO_LONG
        assert (await inside.run("cat /tmp/file; ls -A /tmp/folder"))[1] == b"x\n"


async def test_a_source_that_fails_or_a_cancel_leaves_the_old_content_and_nothing_else() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise KeyError("source")

    async def endless() -> AsyncIterator[bytes]:
        yield b"half"
        await trio.sleep_forever()

    async with container() as inside:
        await inside.run("echo old >/tmp/file")
        with pytest.raises(KeyError):
            await inside.channel.replace_file("/tmp/file", broken(), ROOT)
        assert (await inside.run("cat /tmp/file; ls -A /tmp"))[1] == b"old\nfile\n"
        with trio.move_on_after(0.2) as scope:
            await inside.channel.replace_file("/tmp/file", endless(), ROOT)
        assert scope.cancelled_caught
        assert (await inside.run("cat /tmp/file; ls -A /tmp"))[1] == b"old\nfile\n"


async def test_a_full_disk() -> None:
    async with container(tmp_bytes=1 << 20) as inside:
        await inside.run("echo old >/tmp/file")
        with pytest.raises(FileError) as caught:
            await write(inside, "/tmp/file", *([bytes(1 << 18)] * 6))
        assert caught.value.kind is FileErrorKind.NO_SPACE
        assert (await inside.run("cat /tmp/file; ls -A /tmp"))[1] == b"old\nfile\n"


async def test_fifty_megabytes_there_and_back() -> None:
    block = hashlib.sha256(b"seed").digest() * 32768
    async with container() as inside:
        await write(inside, "/tmp/big", *([block] * 50))
        assert (await inside.run("sha256sum </tmp/big"))[1].split()[0].decode() == hashlib.sha256(
            block * 50
        ).hexdigest()
        assert await read(inside, "/tmp/big", USER) == block * 50


async def test_a_dead_container_has_no_files() -> None:
    async with container() as inside:
        inside.channel.close()
        assert await refusal(inside, "/etc/passwd") is FileErrorKind.OTHER
        assert await write_refusal(inside, "/tmp/x") is FileErrorKind.OTHER
        with pytest.raises(OSError, match="dead"):
            await inside.channel.connect(80)
        with pytest.raises(ValueError, match="absolute"):
            await inside.channel.open_file("relative", ROOT)


SERVER = """python3 -c '
import socket
s = socket.create_server(("{address}", 0), family=socket.{family})
print(s.getsockname()[1], flush=True)
c, _ = s.accept()
c.sendall(c.recv(100).upper())
'"""


@pytest.mark.parametrize(("family", "address"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
async def test_ports_inside_are_reached_and_only_there(family: str, address: str) -> None:
    async with container() as inside:
        process = await inside.channel.spawn(shell(SERVER.format(family=family, address=address)), None)
        port = int(await read_until(process.stdout, b"\n"))
        with pytest.raises(OSError, match=r"."), socket.create_connection((address, port), timeout=2):
            pass
        async with await inside.channel.connect(port) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some(100) == b"HELLO"
        with pytest.raises(ConnectionRefusedError):
            await inside.channel.connect(1)
        await process.aclose()
