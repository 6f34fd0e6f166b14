"""Neither end of the container's socket believes the other: garbage into the init, and out of it."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxrt.engine.base import FileError, Identity, SpawnFailedError
from sandboxrt.engine.init import IdMap, InitChannel
from sandboxrt.engine.init.wire import (
    RECORD_BYTES,
    REQUEST_BYTES,
    InitProtocolError,
    Record,
    RecordKind,
    Request,
    RequestKind,
    pack_strings,
)
from tests.engine.init_kit import USER, children, launch, no_leaks, shell, wait_for


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_leaks():
        yield


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


# -- into the init -----------------------------------------------------------------------------------------------------


@attrs.define
class RawInit:
    """An init and the bare host end of its socket."""

    control: socket.socket
    launcher: subprocess.Popen[bytes]

    def send(self, data: bytes, fds: list[int]) -> bool:
        anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.control.sendmsg([data], anc, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def is_serving(self) -> bool:
        ours, theirs = pair()
        with ours:
            with theirs:
                request = Request(kind=RequestKind.SOCKET, job_id=1, argument=socket.AF_INET).pack()
                if not self.send(request, [theirs.fileno()]):
                    return False
            ours.settimeout(10)
            data, fds, _, _ = socket.recv_fds(ours, 1000, 10)
            for fd in fds:
                os.close(fd)
            return bool(data) and Record.unpack(data).kind is RecordKind.SOCKET


@contextmanager
def raw_init() -> Iterator[RawInit]:
    ours, theirs = pair()
    with theirs:
        launcher = launch(theirs)
    try:
        with ours:
            ours.settimeout(10)
            assert Record.unpack(ours.recv(1000)).kind is RecordKind.READY
            yield RawInit(ours, launcher)
    finally:
        wait_for(launcher)


numbers = st.one_of(
    st.integers(0, 6), st.sampled_from([64, 65, 2**31 - 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1)
)


@st.composite
def near_requests(draw: st.DrawFn) -> bytes:
    """Requests with a right magic and kind, and anything in the other fields."""
    head = struct.pack("=IIQ", 0x73627801, draw(st.integers(0, 6)), draw(st.integers(0, 2**64 - 1)))
    words = [draw(numbers) for _ in range(12)]
    body = (head + struct.pack("=10I", *words[:10])).ljust(REQUEST_BYTES, b"\x01")
    return body[: draw(st.sampled_from([REQUEST_BYTES, REQUEST_BYTES, REQUEST_BYTES, REQUEST_BYTES - 1, 8, 1]))]


messages = st.lists(
    st.tuples(st.one_of(near_requests(), st.binary(min_size=1, max_size=REQUEST_BYTES + 8)), st.integers(0, 8)),
    min_size=1,
    max_size=8,
)


def test_garbage_from_the_host_is_dropped_and_leaks_nothing() -> None:
    with raw_init() as init:

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(messages, st.binary(max_size=40))
        def fuzz(batch: list[tuple[bytes, int]], strings: bytes) -> None:
            memfd = os.memfd_create("x", os.MFD_CLOEXEC)
            ours, theirs = pair()
            with ours, theirs:
                os.write(memfd, strings)
                for data, count in batch:
                    init.send(data, [theirs.fileno(), memfd, *[memfd] * 6][:count])
            os.close(memfd)
            assert init.is_serving()

        assert init.is_serving()
        (first,) = children(init.launcher.pid)
        before = set(os.listdir(f"/proc/{first}/fd"))
        fuzz()
        # A descriptor that stayed open would be a number that the next one does not get.
        assert set(os.listdir(f"/proc/{first}/fd")) <= before


@pytest.mark.parametrize(
    "strings", [b"", b"/", b"/\0/bin/true", b"/\0/bin/true\0\0", b"\0\0\0\0\0", b"/\0", pack_strings(["/"] * 50)]
)
@pytest.mark.parametrize("sealed", [False, True])
def test_strings_that_do_not_match_their_counts(strings: bytes, sealed: bool) -> None:
    with raw_init() as init:
        memfd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(memfd, strings)
        if sealed:
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
        ours, theirs = pair()
        with ours:
            with theirs:
                request = Request(
                    kind=RequestKind.SPAWN, job_id=1, argument_count=1, strings_bytes=len(strings), argument=1
                )
                init.send(request.pack(), [theirs.fileno(), memfd, memfd, memfd, memfd])
            os.close(memfd)
            ours.settimeout(10)
            assert Record.unpack(ours.recv(100)).kind is RecordKind.HELLO
            ours.send(Record(RecordKind.RELEASE, 1).pack())
            failed = Record.unpack(ours.recv(100))
            assert (failed.kind, failed.a, failed.b) == (RecordKind.FAILED, 2, errno.EINVAL)
        exited = Record.unpack(init.control.recv(100))
        assert (exited.kind, exited.job_id, os.waitstatus_to_exitcode(exited.a)) == (RecordKind.EXITED, 1, 127)
        assert init.is_serving()


def test_an_empty_message_is_the_end() -> None:
    with raw_init() as init:
        init.send(b"", [])
        assert wait_for(init.launcher) == 0


# -- out of it ---------------------------------------------------------------------------------------------------------


@attrs.define
class FakeInit:
    """The container's end of a channel, played by the test."""

    sock: trio.socket.SocketType

    async def take(self) -> socket.socket:
        """Take a request; returns its gate."""
        data, anc, _, _ = await self.sock.recvmsg(REQUEST_BYTES, 1000)
        assert len(data) == REQUEST_BYTES
        fds = array.array("i", anc[0][2])
        for fd in fds[1:]:
            os.close(fd)
        return socket.socket(fileno=fds[0])


def tell(gate: socket.socket, kind: RecordKind, a: int = 0, b: int = 0, *fds: int) -> None:
    anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    gate.sendmsg([Record(kind, 1, a, b).pack()], anc, socket.MSG_NOSIGNAL)


async def against(
    job: Callable[[InitChannel], object], answer: Callable[[socket.socket], None], ids: IdMap | None = None
) -> str:
    """Let ``job`` meet an init that answers wrongly; returns why the container counts as dead."""
    ours, theirs = pair()
    channel = InitChannel(ours, ids or IdMap.block(0))
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            fake = FakeInit(trio.socket.from_stdlib_socket(theirs))
            with fake.sock:
                await fake.sock.send(Record(RecordKind.READY).pack())
                await nursery.start(channel.serve)

                async def play() -> None:
                    with await fake.take() as gate:
                        answer(gate)
                        # As any process would, it keeps its gate until the host turns away.
                        with trio.move_on_after(2):
                            await trio.lowlevel.wait_readable(gate)

                nursery.start_soon(play)
                with pytest.raises((SpawnFailedError, FileError, OSError)):
                    await job(channel)  # type: ignore[misc]
                return await channel.wait_dead()
    raise AssertionError


def spawn(channel: InitChannel) -> object:
    return channel.spawn(shell("true"), None)


def spawn_pty(channel: InitChannel) -> object:
    return channel.spawn(shell("true", pty=(80, 24)), None)


def open_it(channel: InitChannel) -> object:
    return channel.open_file("/x", USER)


def connect(channel: InitChannel) -> object:
    return channel.connect(80)


@contextmanager
def opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


BROKE = "the container broke the protocol"


async def test_wrong_greetings() -> None:
    assert "without an id" in await against(spawn, lambda gate: tell(gate, RecordKind.HELLO, 0))
    assert "identity of the host" in await against(
        spawn, lambda gate: tell(gate, RecordKind.HELLO, 5), IdMap.block(1000)
    )
    assert "unexpected DONE" in await against(spawn, lambda gate: tell(gate, RecordKind.DONE))
    assert "unknown kind" in await against(spawn, lambda gate: tell(gate, RecordKind.FAILED, 99, 1))
    assert "unknown kind" in await against(spawn, lambda gate: tell(gate, RecordKind.FAILED, 6, -1))
    assert "bytes instead of" in await against(spawn, lambda gate: gate.send(b"x") and None)
    assert "too long" in await against(spawn, lambda gate: gate.send(b"x" * 5000) and None)
    assert "another version" in await against(spawn, lambda gate: gate.send(b"x" * RECORD_BYTES) and None)
    with opened("/dev/null") as fd:
        assert "unexpected HELLO" in await against(spawn, lambda gate: tell(gate, RecordKind.HELLO, 5, 0, fd))
        assert "too many" in await against(spawn, lambda gate: tell(gate, RecordKind.HELLO, 5, 0, *[fd] * 40))


async def test_wrong_terminals() -> None:
    def answer(*fds: int, number: int = 0) -> Callable[[socket.socket], None]:
        def play(gate: socket.socket) -> None:
            tell(gate, RecordKind.HELLO, 5)
            tell(gate, RecordKind.TERMINAL, number, 0, *fds)

        return play

    assert "unexpected TERMINAL" in await against(spawn_pty, answer())
    for path in ("/dev/null", "/etc/passwd", "/"):
        with opened(path) as fd:
            assert "no terminal master" in await against(spawn_pty, answer(fd))
    master, slave = os.openpty()
    assert "no terminal master" in await against(spawn_pty, answer(slave))
    assert "another terminal" in await against(spawn_pty, answer(master, number=12345))
    assert "unexpected TERMINAL" in await against(spawn, answer(master))
    os.close(master)
    os.close(slave)


async def test_wrong_files() -> None:
    def answer(*fds: int) -> Callable[[socket.socket], None]:
        return lambda gate: tell(gate, RecordKind.FILE, 0, 0, *fds)

    assert "unexpected FILE" in await against(open_it, answer())
    for path, flags, reason in (
        ("/dev/zero", os.O_RDONLY, "no regular file"),
        ("/", os.O_RDONLY, "no regular file"),
        ("/proc/self/status", os.O_RDONLY, "file of proc"),
        ("/etc/passwd", os.O_PATH, "another way"),
        ("/etc/passwd", os.O_RDWR, "another way"),
    ):
        with opened(path, flags) as fd:
            assert reason in await against(open_it, answer(fd)), path
    read_end, write_end = os.pipe()
    assert "no regular file" in await against(open_it, answer(read_end))
    assert "too many" in await against(open_it, answer(read_end, write_end))
    os.close(read_end)
    os.close(write_end)


async def test_wrong_sockets() -> None:
    def answer(fd: int) -> Callable[[socket.socket], None]:
        return lambda gate: tell(gate, RecordKind.SOCKET, 0, 0, fd)

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
        assert "own network" in await against(connect, answer(own.fileno()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert "another kind" in await against(connect, answer(udp.fileno()))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert "another kind" in await against(connect, answer(listening.fileno()))
    with opened("/dev/null") as fd:
        assert "on non-socket" in await against(connect, answer(fd))


async def control_says(*records: bytes, fd: int | None = None) -> str:
    ours, theirs = pair()
    channel = InitChannel(ours, IdMap.block(0))
    with theirs, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.serve)
            for record in records:
                anc = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
                theirs.sendmsg([record], anc)
            return await channel.wait_dead()
    raise AssertionError


async def test_wrong_reports() -> None:
    ready = Record(RecordKind.READY).pack()
    assert "unexpected READY" in await control_says(ready, ready)
    assert "unexpected EXITED" in await control_says(ready, Record(RecordKind.EXITED, 7, 0).pack())
    assert "unexpected HELLO" in await control_says(Record(RecordKind.HELLO).pack())
    assert BROKE in await control_says(ready[:-1])
    with opened("/dev/null") as fd:
        assert "descriptor on the control" in await control_says(ready, fd=fd)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=40))
def test_any_bytes_on_the_control_socket_end_the_channel_and_nothing_else(data: bytes) -> None:
    assert BROKE in trio.run(control_says, data)


@given(st.binary(max_size=40))
def test_unpacking_gives_a_record_or_the_typed_error(data: bytes) -> None:
    try:
        record = Record.unpack(data)
    except InitProtocolError:
        return
    assert record.pack() == data


def test_requests_have_one_size_whatever_they_hold() -> None:
    request = Request(kind=RequestKind.SPAWN, job_id=2**64 - 1, identity=Identity(1, 2, tuple(range(64))))
    assert len(request.pack()) == REQUEST_BYTES == 312
