"""This project, embedded: the trio client as its users write it, in a run that goes on for the whole benchmark."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from benchmarks.contenders.base import Idle, Living
from sandboxrt import AsyncSandbox, AsyncSandboxClient

__all__ = ["Ours"]

T = TypeVar("T")


@attrs.define
class _Sandbox:
    """One running sandbox, asked from the benchmark's thread; every clock is read on trio's."""

    ours: Ours
    sandbox: AsyncSandbox

    def round_trip(self) -> float:
        async def measure() -> float:
            began = time.perf_counter()
            result = await self.sandbox.run("echo ok", shell="/bin/sh")
            taken = time.perf_counter() - began
            assert (result.stdout, result.exit_code) == ("ok\n", 0), result
            return taken

        return self.ours.on_trio(measure)

    def stream(self, command: str, expected_bytes: int) -> float:
        async def measure() -> float:
            began = time.perf_counter()
            handle = await self.sandbox.run(command, shell="/bin/sh", wait=False, timeout=0)
            length = 0
            async for chunk in handle:
                length += len(chunk.data)
            taken = time.perf_counter() - began
            assert length == expected_bytes, length
            return taken

        return self.ours.on_trio(measure)


@attrs.define
class Ours:
    """An open client. Made on trio's thread, used from another."""

    client: AsyncSandboxClient
    state_dir: Path
    token: trio.lowlevel.TrioToken
    name: str = "sandboxrt"

    def on_trio(self, work: Callable[[], Awaitable[T]]) -> T:
        return trio.from_thread.run(work, trio_token=self.token)

    def first_output(self) -> float:
        async def measure() -> float:
            began = time.perf_counter()
            sandbox = await self.client.create_sandbox()
            try:
                handle = await sandbox.run("echo ok", shell="/bin/sh", wait=False)
                async for chunk in handle:
                    taken = time.perf_counter() - began
                    assert chunk.data == "ok\n", chunk
                    break
                await handle.result
                return taken
            finally:
                await sandbox.delete()

        return self.on_trio(measure)

    @contextmanager
    def living(self) -> Iterator[Living]:
        sandbox = self.on_trio(self.client.create_sandbox)
        try:
            yield _Sandbox(self, sandbox)
        finally:
            self.on_trio(sandbox.delete)

    def burst(self, count: int, concurrency: int) -> float:
        """As a user would: all at once; the host bounds itself. ``concurrency`` is the rivals'."""

        async def one() -> None:
            async with self.client.sandbox(timeout=300) as sandbox:
                assert (await sandbox.run("echo ok", shell="/bin/sh")).stdout == "ok\n"

        async def all_at_once() -> float:
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(one)
            return time.perf_counter() - began

        return self.on_trio(all_at_once)

    @contextmanager
    def idle(self, count: int) -> Iterator[Idle]:
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                sandbox: Any = self.on_trio(self.client.create_sandbox)
                stack.callback(self.on_trio, sandbox.delete)
            pids = [int(path.read_text()) for path in self.state_dir.glob("sandboxes/*/run.*/pid")]
            assert len(pids) == count, pids
            yield Idle(count, pids)
