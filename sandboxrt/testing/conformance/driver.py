"""What a conformance case needs of an implementation, and how it talks to a command."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import attrs
import trio

from sandboxrt.models import Limits, Registry, RegistryPage, ResourceStatus, Snapshot
from sandboxrt.protocol.exec import (
    ClientFrame,
    ErrorFrame,
    Execute,
    Exit,
    Output,
    Reconnect,
    ServerFrame,
    Started,
    StreamName,
)
from sandboxrt.protocol.output import LONG_READ_BYTES
from sandboxrt.protocol.registries import CreateRegistry, ListRegistries, UpdateRegistry
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox, CreateSnapshot, SandboxInfo, UpdateSandbox

__all__ = [
    "Case",
    "Driver",
    "Link",
    "Outcome",
    "Reader",
    "by_name",
    "converse",
    "eventually",
    "new_name",
    "run",
    "sandbox",
]

_CASE_LIMIT_S = 60.0


class Link(Protocol):
    """One attachment."""

    async def send(self, frame: ClientFrame) -> None:
        """Send a frame after the first one."""
        ...

    async def receive(self) -> ServerFrame:
        """The next frame."""
        ...

    async def aclose(self) -> None:
        """Detach."""
        ...


class Registries(Protocol):
    """The named registries of an implementation."""

    async def create(self, request: CreateRegistry) -> Registry:
        """As the host's."""
        ...

    async def get(self, name_or_id: str) -> Registry:
        """As the host's."""
        ...

    async def list(self, request: ListRegistries) -> RegistryPage:
        """As the host's."""
        ...

    async def update(self, name_or_id: str, change: UpdateRegistry) -> Registry:
        """As the host's."""
        ...

    async def delete(self, name_or_id: str) -> None:
        """As the host's."""
        ...


class Driver(Protocol):
    """An implementation under test."""

    @property
    def registries(self) -> Registries:
        """As the host's."""
        ...

    async def create_snapshot(self, request: CreateSnapshot) -> Snapshot:
        """As the host's."""
        ...

    async def create_sandbox(self, request: CreateSandbox) -> SandboxInfo:
        """As the host's."""
        ...

    async def get_sandbox(self, name: str) -> SandboxInfo:
        """As the host's."""
        ...

    async def list_sandboxes(self) -> list[SandboxInfo]:
        """As the host's."""
        ...

    async def update_sandbox(self, name: str, request: UpdateSandbox) -> SandboxInfo:
        """As the host's."""
        ...

    async def delete_sandbox(self, name: str) -> None:
        """As the host's."""
        ...

    async def start_sandbox(self, name: str, timeout_s: float) -> SandboxInfo:
        """As the host's."""
        ...

    async def stop_sandbox(self, name: str) -> object:
        """As the host's."""
        ...

    async def capture_snapshot(self, name: str, request: CaptureSnapshot) -> Snapshot:
        """As the host's."""
        ...

    async def wait_for_snapshot(self, snapshot_id: str, timeout_s: float, poll_interval_s: float) -> Snapshot:
        """As the host's."""
        ...

    async def get_snapshot(self, reference: str) -> Snapshot:
        """As the host's."""
        ...

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """As the host's."""
        ...

    async def sandbox_status(self, name: str) -> ResourceStatus:
        """As the host's."""
        ...

    async def wait_for_sandbox(self, name: str, timeout_s: float, poll_interval_s: float) -> SandboxInfo:
        """As the host's."""
        ...

    async def attach(self, name: str, first: Execute | Reconnect) -> Link:
        """As the host's."""
        ...

    async def read_file(self, name: str, path: str) -> bytes:
        """As the host's."""
        ...

    async def write_file(self, name: str, path: str, content: AsyncIterator[bytes]) -> None:
        """As the host's."""
        ...


Case: TypeAlias = Callable[[Driver], Awaitable[None]]


@attrs.frozen
class Outcome:
    """What one attachment saw until its end."""

    frames: tuple[ServerFrame, ...]

    @property
    def end(self) -> ServerFrame:
        """The last frame."""
        return self.frames[-1]

    @property
    def stdout(self) -> str:
        """The text of standard output."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        """The text of standard error."""
        return self._text("stderr")

    @property
    def exit_code(self) -> int:
        """The exit code; fails where there is none."""
        assert isinstance(self.end, Exit), self.end
        return self.end.exit_code

    @property
    def error(self) -> ErrorFrame:
        """The error; fails where there is none."""
        assert isinstance(self.end, ErrorFrame), self.end
        return self.end

    def check_offsets(self, stdout: int = 0, stderr: int = 0) -> None:
        """No gap, no repetition: every chunk begins where the one before it ended."""
        expected: dict[StreamName, int] = {"stdout": stdout, "stderr": stderr}
        for frame in self.frames:
            if isinstance(frame, Output):
                assert frame.offset == expected[frame.stream], (frame, expected)
                assert frame.data, "an empty chunk"
                assert len(frame.data.encode()) <= LONG_READ_BYTES
                expected[frame.stream] += len(frame.data.encode())

    def _text(self, stream: StreamName) -> str:
        return "".join(f.data for f in self.frames if isinstance(f, Output) and f.stream == stream)


@attrs.define
class Reader:
    """Reads one attachment step by step."""

    link: Link
    frames: list[ServerFrame] = attrs.field(factory=list)

    async def until(self, text: str, stream: StreamName = "stdout") -> None:
        """Read until the output contains ``text``."""
        while text not in Outcome(tuple(self.frames))._text(stream):
            frame = await self.link.receive()
            self.frames.append(frame)
            assert not isinstance(frame, Exit | ErrorFrame), (frame, self.frames)

    async def started(self) -> Started:
        """The first frame."""
        frame = await self.link.receive()
        self.frames.append(frame)
        assert isinstance(frame, Started), frame
        return frame

    async def to_end(self) -> Outcome:
        """Read until the last frame, and find that nothing comes after it."""
        while not self.frames or not isinstance(self.frames[-1], Exit | ErrorFrame):
            self.frames.append(await self.link.receive())
        try:
            extra = await self.link.receive()
        except trio.EndOfChannel:
            pass
        else:
            raise AssertionError(f"{extra} after the last frame")
        outcome = Outcome(tuple(self.frames))
        assert isinstance(outcome.frames[0], Started | ErrorFrame)
        return outcome


@asynccontextmanager
async def converse(driver: Driver, name: str, first: Execute | Reconnect) -> AsyncIterator[Reader]:
    """An attachment for the length of a block."""
    link = await driver.attach(name, first)
    try:
        yield Reader(link)
    finally:
        with trio.CancelScope(shield=True):
            await link.aclose()


async def run(driver: Driver, name: str, command: str, **options: Any) -> Outcome:
    """Run a command to its end; options are those of ``Execute``."""
    with trio.fail_after(_CASE_LIMIT_S):
        async with converse(driver, name, Execute(command=command, **options)) as reader:
            outcome = await reader.to_end()
    outcome.check_offsets()
    return outcome


def new_name() -> str:
    """A name that no other sandbox has."""
    return f"case-{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def sandbox(driver: Driver, **options: Any) -> AsyncIterator[str]:
    """A ready sandbox for the length of a block; yields its name."""
    request = CreateSandbox(name=new_name(), limits=Limits(), **options)
    with trio.fail_after(_CASE_LIMIT_S):
        await driver.create_sandbox(request)
    try:
        yield request.name
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _CASE_LIMIT_S):
            await driver.delete_sandbox(request.name)


async def eventually(check: Callable[[], Awaitable[bool]], limit_s: float = 10.0) -> None:
    """Wait until ``check`` says yes."""
    with trio.fail_after(limit_s):
        while not await check():  # noqa: ASYNC110  what it asks is on the other side of a driver
            await trio.sleep(0.02)


def by_name(cases: Iterable[Case]) -> Mapping[str, Case]:
    """Cases by their functions' names."""
    return MappingProxyType({case.__name__: case for case in cases})
