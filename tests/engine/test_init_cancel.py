"""A cancel at any step of any job leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import attrs
import pytest
import trio

from sandboxrt.engine.base import ProcessSpec
from tests.engine.init_kit import ENV, ROOT, USER, Inside, children, container, no_leaks, open_fds, shell

MAX_STEPS = 120
MAX_SWEEPS = 20


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_leaks():
        yield


@attrs.define(eq=False)
class CancelAtStep(trio.abc.Instrument):
    """Cancels ``scope`` while one task waits (odd n), or when what it waited for has come but it did not run yet."""

    task: trio.lowlevel.Task
    scope: trio.CancelScope
    step: int
    count: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._pass(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._pass(task)

    def _pass(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.count += 1
            if self.count == self.step:
                self.scope.cancel()


async def at_every_step(
    inside: Inside, job: Callable[[], Awaitable[None]], check: Callable[[], Awaitable[None]]
) -> int:
    """Run ``job`` with a cancel at step 1, 2, ... until one run ends before its step comes.

    Returns how many ended with the cancel; the others had nothing left to wait for, and completed. Which those are is
    up to the first process, whose answer may be there before it is waited for: :func:`sweep` goes on until enough did.
    """
    (first,) = children(inside.launcher.pid)
    caught = 0
    for step in range(1, MAX_STEPS):
        fds = set(open_fds())
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(trio.lowlevel.current_task(), scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await job()
            finally:
                trio.lowlevel.remove_instrument(instrument)
        assert set(open_fds()) == fds, f"step {step}"
        with trio.fail_after(5):
            while children(first):
                await trio.sleep(0.005)
        await check()
        caught += scope.cancelled_caught
        if instrument.count < step:
            return caught
    raise AssertionError(f"still cancelled at step {MAX_STEPS}")


async def sweep(
    inside: Inside, job: Callable[[], Awaitable[None]], check: Callable[[], Awaitable[None]], *, caught: int
) -> None:
    """Go through every step, again where fewer than ``caught`` runs had to be cancelled, twenty times at most."""
    total = 0
    for _ in range(MAX_SWEEPS):
        total += await at_every_step(inside, job, check)
        if total >= caught:
            return
    raise AssertionError(f"{total} of {MAX_SWEEPS} sweeps' runs were cancelled: the steps are not where they were")


@attrs.define
class SlowGroup:
    """A group whose every method takes two steps."""

    added: int = 0
    removed: int = 0

    async def add(self, host_pid: int) -> None:
        self.added = host_pid
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()

    async def signal(self, signum: int) -> None:
        await trio.lowlevel.checkpoint()

    async def kill(self) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_empty(self) -> None:
        await trio.lowlevel.checkpoint()

    async def remove(self) -> None:
        await trio.lowlevel.checkpoint()
        self.removed += 1


@pytest.mark.parametrize("pty", [None, (80, 24)])
@pytest.mark.parametrize("grouped", [False, True])
async def test_spawn(pty: tuple[int, int] | None, grouped: bool) -> None:
    groups: list[SlowGroup] = []
    async with container() as inside:

        async def job() -> None:
            group = SlowGroup() if grouped else None
            if group:
                groups.append(group)
            process = await inside.channel.spawn(shell("exec true", pty=pty, stdin=True), group)
            with trio.CancelScope(shield=True):
                await process.wait()
                await process.aclose()

        async def check() -> None:
            assert repr(inside.channel) == "<InitChannel 0 jobs>"
            assert all(group.removed == 1 for group in groups)

        await sweep(inside, job, check, caught=2)


async def test_a_spawn_cancelled_while_the_program_would_run_forever() -> None:
    async with container() as inside:

        async def job() -> None:
            process = await inside.channel.spawn(shell("trap '' TERM INT HUP; sleep 1000"), None)
            await process.aclose()

        async def check() -> None:
            assert repr(inside.channel) == "<InitChannel 0 jobs>"

        await at_every_step(inside, job, check)


@attrs.define
class TreeGroup(SlowGroup):
    """A group that holds everything the first process has below it, whatever session it is in."""

    init_pid: int = 0

    async def kill(self) -> None:
        # Bounded, and twice over, because what is forked meanwhile moves up to the first process.
        for _ in range(100):
            pids = children(self.init_pid)
            for pid in pids:
                pids = pids | children(pid)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not pids:
                return
            await trio.sleep(0.002)


async def test_a_spawn_cancelled_when_its_program_has_left_the_process_group() -> None:
    async with container() as inside:
        (first,) = children(inside.launcher.pid)

        async def job() -> None:
            group = TreeGroup(init_pid=first)
            process = await inside.channel.spawn(shell("setsid sleep 1000 & sleep 1000"), group)
            await process.aclose()
            assert group.removed == 1

        async def check() -> None:
            assert repr(inside.channel) == "<InitChannel 0 jobs>"

        await sweep(inside, job, check, caught=1)


async def test_a_failing_spawn() -> None:
    async with container() as inside:
        spec = ProcessSpec(argv=("/no",), env=ENV, cwd="/", identity=USER)

        async def job() -> None:
            try:
                await inside.channel.spawn(spec, None)
            except Exception as error:
                assert type(error).__name__ == "ExecFailedError"
                await trio.lowlevel.checkpoint_if_cancelled()

        async def check() -> None:
            assert repr(inside.channel) == "<InitChannel 0 jobs>"

        await at_every_step(inside, job, check)


async def test_open_file() -> None:
    async with container() as inside:

        async def job() -> None:
            file = await inside.channel.open_file("/etc/passwd", USER)
            with trio.CancelScope(shield=True):
                await file.aclose()

        async def check() -> None:
            await trio.lowlevel.checkpoint()

        await sweep(inside, job, check, caught=1)


async def test_replace_file() -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"new "
        yield b"content"

    async with container() as inside:
        await inside.run("echo old >/tmp/file")

        async def job() -> None:
            await inside.channel.replace_file("/tmp/file", content(), ROOT)

        async def check() -> None:
            assert (await inside.run("cat /tmp/file; ls -A /tmp"))[1] in (b"old\nfile\n", b"new contentfile\n")

        await sweep(inside, job, check, caught=3)


async def test_connect() -> None:
    async with container() as inside:

        async def job() -> None:
            try:
                await inside.channel.connect(9)
            except ConnectionRefusedError:
                await trio.lowlevel.checkpoint_if_cancelled()

        async def check() -> None:
            await trio.lowlevel.checkpoint()

        await sweep(inside, job, check, caught=1)


async def test_serving() -> None:
    async with container() as inside, trio.open_nursery() as nursery:
        process = await inside.channel.spawn(shell("sleep 1000"), None)
        nursery.start_soon(process.wait)
        nursery.start_soon(process.wait)
        inside.channel.close()
        inside.channel.close()
        await inside.channel.aclose()
        await process.aclose()
