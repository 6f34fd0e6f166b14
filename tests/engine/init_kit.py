"""What the tests of the container's first process share: containers without an OCI runtime, and leak checks."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import CommandGroup, ExitStatus, Identity, ProcessSpec
from sandboxrt.engine.init import INIT_SOURCE, IdMap, InitChannel, InitProcess
from sandboxrt.engine.init.compile import cache_name, compile_program
from tests.stretch import stretched

BASE = 0x3A000000
ENV = {"PATH": "/usr/bin:/bin", "HOME": "/"}
ROOT = Identity()
USER = Identity(1000, 1000)
_cache = tempfile.TemporaryDirectory(prefix="sandboxrt-init-")


def init_program() -> Path:
    target = Path(_cache.name) / cache_name(INIT_SOURCE)
    if not target.exists():
        compile_program(INIT_SOURCE, target)
    return target


def launch(control: socket.socket, tmp_bytes: int = 1 << 30) -> subprocess.Popen[bytes]:
    """Start the init with ``control`` as its descriptor 3."""
    program = os.open(init_program(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        launcher = Path(__file__).with_name("init_launcher.py")
        fds = (program, control.fileno())
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(launcher), *map(str, fds), str(BASE), str(tmp_bytes)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
        )
    finally:
        os.close(program)


@attrs.define
class Inside:
    """A container made by the launcher, and its channel."""

    channel: InitChannel
    launcher: subprocess.Popen[bytes]

    async def run(
        self,
        script: str,
        *,
        identity: Identity = ROOT,
        cwd: str = "/",
        env: Mapping[str, str] = ENV,
        stdin: bytes | None = None,
        group: CommandGroup | None = None,
    ) -> tuple[ExitStatus, bytes, bytes]:
        """Run a shell script to its end: how it ended, and what it wrote."""
        spec = ProcessSpec(argv=("/bin/sh", "-c", script), env=env, cwd=cwd, identity=identity, stdin=stdin is not None)
        process = await self.channel.spawn(spec, group)
        try:
            output: dict[str, bytes] = {}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_collect, process.stdout, output, "out")
                assert process.stderr is not None
                nursery.start_soon(_collect, process.stderr, output, "err")
                if process.stdin is not None:
                    await process.stdin.send_all(stdin or b"")
                    await process.stdin.aclose()
            return await process.wait(), output["out"], output["err"]
        finally:
            await process.aclose()


async def _collect(stream: trio.abc.ReceiveStream, output: dict[str, bytes], name: str) -> None:
    output[name] = await read_all(stream)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    parts = []
    while part := await stream.receive_some(65536):
        parts.append(bytes(part))
    return b"".join(parts)


async def read_until(stream: trio.abc.ReceiveStream, text: bytes) -> bytes:
    seen = b""
    with trio.fail_after(10):
        while text not in seen:
            part = await stream.receive_some(65536)
            assert part, f"ended before {text!r}: {seen!r}"
            seen += part
    return seen


def shell(script: str, *, pty: tuple[int, int] | None = None, stdin: bool = False, uid: int = 0) -> ProcessSpec:
    identity = Identity(uid, uid)
    return ProcessSpec(argv=("/bin/sh", "-c", script), env=ENV, cwd="/", identity=identity, pty=pty, stdin=stdin)


async def finish(process: InitProcess) -> ExitStatus:
    try:
        with trio.fail_after(20):
            return await process.wait()
    finally:
        await process.aclose()


@asynccontextmanager
async def container(*, oom_score_adj: int = 0, tmp_bytes: int = 1 << 30) -> AsyncIterator[Inside]:
    """A container whose init is ready; gone when the block ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        launcher = launch(theirs, tmp_bytes)
    channel = InitChannel(ours, IdMap.block(BASE), oom_score_adj=oom_score_adj)
    try:
        async with trio.open_nursery() as nursery:
            with trio.fail_after(20):
                await nursery.start(channel.serve)
            try:
                yield Inside(channel, launcher)
            finally:
                channel.close()
    finally:
        channel.close()
        wait_for(launcher)


def wait_for(launcher: subprocess.Popen[bytes]) -> int:
    try:
        return launcher.wait(timeout=10)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait(timeout=10)
        raise


def open_fds() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def children(pid: int | None = None) -> set[int]:
    pid = pid or os.getpid()
    try:
        return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return set()


@contextmanager
def no_leaks() -> Iterator[None]:
    """The descriptors and children of this process are the same before and after."""
    fds, kids = set(open_fds().items()), children()
    yield
    deadline = time.monotonic() + stretched(5)
    while (extra := set(open_fds().items()) - fds) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not extra
    assert children() <= kids
