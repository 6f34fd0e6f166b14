"""Many jobs at once over the one socket of a container, also when its first process takes none for a while."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from sandboxrt.engine.init.gate import RecordSocket
from sandboxrt.engine.init.wire import Record, RecordKind
from tests.engine.init_kit import ROOT, Inside, children, container, finish, no_leaks, shell
from tests.engine.test_init_files import read, write

COMMANDS, FILES, CONNECTIONS = 250, 100, 50


@pytest.fixture(autouse=True)
def _room_and_no_leaks() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(8192, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        with no_leaks():
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_crowd_waits_for_a_first_process_that_stands_still() -> None:
    codes: list[int] = []
    contents: list[bytes] = []
    refused: list[int] = []

    async with container() as inside:
        (first,) = children(inside.launcher.pid)
        await write(inside, "/tmp/file", b"content")

        async def command(number: int) -> None:
            process = await inside.channel.spawn(shell(f"exit {number % 200}"), None)
            codes.append((await finish(process)).exit_code)

        async def file(number: int) -> None:
            if number % 2:
                await write(inside, f"/tmp/file{number}", b"content")
            contents.append(await read(inside, f"/tmp/file{number if number % 2 else ''}"))

        async def connection(port: int) -> None:
            try:
                await inside.channel.connect(port)
            except ConnectionRefusedError:
                refused.append(port)

        os.kill(first, signal.SIGSTOP)
        with trio.fail_after(50):
            async with trio.open_nursery() as nursery:
                # In turn, so that each kind is among those that find the socket full.
                for number in range(COMMANDS):
                    nursery.start_soon(command, number)
                    if number < FILES:
                        nursery.start_soon(file, number)
                    if number < CONNECTIONS:
                        nursery.start_soon(connection, 1000 + number)
                await trio.sleep(0.5)
                os.kill(first, signal.SIGCONT)
        assert not inside.channel.is_dead
    assert sorted(codes) == sorted(number % 200 for number in range(COMMANDS))
    assert contents == [b"content"] * FILES
    assert sorted(refused) == list(range(1000, 1000 + CONNECTIONS))


async def test_who_waits_for_room_can_be_cancelled_and_learns_of_the_end() -> None:
    closed: list[int] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate = RecordSocket(ours)
    record = Record(RecordKind.RELEASE, 7).pack()

    async def send_all_that_fits() -> None:
        with trio.move_on_after(0.1):
            while True:
                await gate.send(record)

    async def wait(number: int) -> None:
        try:
            await gate.send(record)
        except trio.ClosedResourceError:
            closed.append(number)

    with theirs, trio.fail_after(10):
        await send_all_that_fits()
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as given_up:
                    for number in range(3):
                        given_up.start_soon(wait, number)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            assert scope.cancelled_caught
            for number in range(3, 6):
                nursery.start_soon(wait, number)
            await trio.testing.wait_all_tasks_blocked()
            gate.close()
    assert sorted(closed) == [3, 4, 5]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, who has a bound on descriptors under way")
def test_descriptors_under_way_are_waited_for() -> None:
    # The bound counts what all of the user's sockets hold, so the user is one that nobody else is.
    program = """
import os, resource, socket, sys, trio
from sandboxrt.engine.init.gate import RecordSocket
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.setresgid(*[61234] * 3); os.setgroups([]); os.setresuid(*[61234] * 3)
async def main():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gate = RecordSocket(ours)
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(gate.send, b"record", (0, 1, 2, 0, 1))
        await trio.sleep(0.1)
        for number in range(30):
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(theirs)
            data, fds, _, _ = socket.recv_fds(theirs, 100, 5)
            assert (data, len(fds)) == (b"record", 5), number
            for fd in fds:
                os.close(fd)
trio.run(main)
print("all sent")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "all sent\n", done.stderr


async def test_a_container_is_not_held_up_by_its_crowd() -> None:
    async with container() as inside:
        async with trio.open_nursery() as nursery:
            for _ in range(COMMANDS):
                nursery.start_soon(_run, inside)
        status, out, _ = await inside.run("echo still here", identity=ROOT)
        assert (status.code, out) == (0, b"still here\n")


async def _run(inside: Inside) -> None:
    status, out, _ = await inside.run("echo out; exit 3")
    assert (status.code, out) == (3, b"out\n")
