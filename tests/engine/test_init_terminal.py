"""Terminals of the container's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from sandboxrt.engine.base import ExitStatus
from tests.engine.init_kit import container, finish, no_leaks, read_all, read_until, shell


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_leaks():
        yield


async def test_it_has_a_name_a_size_and_an_owner() -> None:
    async with container() as inside:
        for uid in (0, 1000):
            process = await inside.channel.spawn(
                shell("tty; stty size; stat -c %u $(tty); echo err >&2; echo tty >/dev/tty", pty=(132, 43), uid=uid),
                None,
            )
            assert process.stderr is None
            assert await read_all(process.stdout) == f"/dev/pts/0\r\n43 132\r\n{uid}\r\nerr\r\ntty\r\n".encode()
            assert await finish(process) == ExitStatus(code=0)


async def test_a_resize_reaches_the_program() -> None:
    async with container() as inside:
        process = await inside.channel.spawn(
            shell("trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.05; done", pty=(80, 24)), None
        )
        await read_until(process.stdout, b"up")
        await process.resize(101, 51)
        await read_until(process.stdout, b"51 101")
        assert await finish(process) == ExitStatus(code=0)
        await process.resize(1, 1)


async def test_job_control_and_interrupt() -> None:
    async with container() as inside:
        process = await inside.channel.spawn(
            shell("PS1='> ' exec bash --norc --noediting -i", pty=(80, 24), stdin=True, uid=1000), None
        )
        assert process.stdin is not None
        await process.stdin.send_all(b"sleep 1000\n")
        await read_until(process.stdout, b"sleep 1000")
        await trio.sleep(0.2)
        await process.stdin.send_all(b"\x1a")
        assert b"no job control" not in await read_until(process.stdout, b"Stopped")
        await process.stdin.send_all(b"fg\n")
        await trio.sleep(0.2)
        await process.stdin.send_all(b"\x03")
        await process.stdin.send_all(b"echo code=$?; exit 3\n")
        await read_until(process.stdout, b"code=130")
        assert await finish(process) == ExitStatus(code=3)


async def test_closing_the_input_is_its_end() -> None:
    async with container() as inside:
        process = await inside.channel.spawn(shell("cat; echo over", pty=(80, 24)), None)
        assert process.stdin is not None
        await process.stdin.send_all(b"line\n")
        await read_until(process.stdout, b"line\r\nline\r\n")
        await process.stdin.aclose()
        await read_until(process.stdout, b"over")
        assert await finish(process) == ExitStatus(code=0)


async def test_a_program_that_reads_nothing_blocks_only_its_writer() -> None:
    async with container() as inside:
        process = await inside.channel.spawn(shell("stty raw -echo; echo up; sleep 1000", pty=(80, 24)), None)
        assert process.stdin is not None
        await read_until(process.stdout, b"up")
        with trio.move_on_after(0.3) as scope:
            await process.stdin.send_all(b"x" * 1_000_000)
        assert scope.cancelled_caught
        assert (await inside.run("echo fine"))[1] == b"fine\n"
        await process.aclose()


async def test_the_end_comes_when_the_last_holder_is_gone() -> None:
    async with container() as inside:
        process = await inside.channel.spawn(shell("trap '' HUP; (sleep 0.3; echo late) & exit 0", pty=(80, 24)), None)
        assert await process.wait() == ExitStatus(code=0)
        with trio.fail_after(5):
            assert await read_all(process.stdout) in (b"late\r\n", b"")  # the hang-up may silence it
        await process.aclose()
