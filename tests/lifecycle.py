"""The life of a host's sandboxes against a plain model: whatever is asked, in whatever order, both say the same.

A plan is a list of steps; each names an operation, two numbers that choose what it is done to, and is carried out on
the host and on the model at once. The model is a dictionary: it knows nothing of actors, engines and stores.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import attrs
import trio

from sandboxrt.errors import (
    ResourceAlreadyExistsError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    SandboxNotReadyError,
)
from sandboxrt.host.host import Host
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox, UpdateSandbox
from sandboxrt.testing.conformance import run

__all__ = ["NAMES", "TIMELESS", "Life", "Plan"]

NAMES: Final = ("a", "b", "c", "d")
STEP_S: Final = 40.0
"""Operations happen at multiples of it; lifetimes end well in between."""
TTLS: Final = (0, 60, 180)

Plan: TypeAlias = list[tuple[str, int, int]]


@attrs.define
class Box:
    """What is to be true of one sandbox."""

    created_at: float
    status: str = "ready"
    content: str = ""
    ttl: int = 0
    after_stop: int = 0
    stopped_at: float = 0.0
    source: str = ""
    """The capture that it was made from."""

    @property
    def ends_at(self) -> float:
        ends = self.created_at + self.ttl if self.ttl else math.inf
        if self.status == "stopped" and self.after_stop:
            ends = min(ends, self.stopped_at + self.after_stop)
        return ends


@attrs.frozen
class Capture:
    """What is to be true of one capture: what it holds, and on which one it lies."""

    content: str
    base: str


class Life:
    """A host and the model of it, moved together. Times are counted from when it is made."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.boxes: dict[str, Box] = {}
        self.captures: dict[str, Capture] = {}
        self.began = trio.current_time()
        self.now = 0.0
        self.operations: dict[str, Callable[[str, int], Awaitable[None]]] = {
            "create": self.create,
            "write": self.write,
            "read": self.read,
            "stop": self.stop,
            "start": self.start,
            "delete": self.delete,
            "rename": self.rename,
            "capture": self.capture,
            "create from": self.create_from,
            "forget": self.forget,
            "limit": self.limit,
            "pass time": self.pass_time,
        }

    async def follow(self, plan: Plan) -> None:
        """Carry a plan out; after each step both sides know the same sandboxes."""
        for operation, which, how in plan:
            await self.operations[operation](NAMES[which % len(NAMES)], how)
            await self.compare()

    async def compare(self) -> None:
        listed = {info.name: info for info in await self.host.list_sandboxes()}
        assert {name: info.status for name, info in listed.items()} == {
            name: box.status for name, box in self.boxes.items()
        }

    async def create(self, name: str, how: int) -> None:
        ttl, after_stop = TTLS[how % 3], TTLS[how // 3 % 3]
        request = CreateSandbox(
            name=name, ttl_seconds=ttl, idle_ttl_seconds=0, delete_after_stop_seconds=after_stop, exclusive=True
        )
        if name in self.boxes:
            await refused(ResourceAlreadyExistsError, self.host.create_sandbox(request))
        else:
            assert (await self.host.create_sandbox(request)).status == "ready"
            self.boxes[name] = Box(self.now, ttl=ttl, after_stop=after_stop)

    async def write(self, name: str, how: int) -> None:
        box = self.boxes.get(name)
        writing = run(self.host, name, f"echo {how} >> /root/file; cat /root/file")
        if box is None:
            await refused(ResourceNotFoundError, writing)
        elif box.status != "ready":
            await refused(SandboxNotReadyError, writing)
        else:
            box.content += f"{how}\n"
            assert (await writing).stdout == box.content

    async def read(self, name: str, how: int) -> None:
        box = self.boxes.get(name)
        reading = self.host.read_file(name, "/root/file")
        if box is None or (box.status == "ready" and not box.content):
            await refused(ResourceNotFoundError, reading)
        elif box.status != "ready":
            await refused(SandboxNotReadyError, reading)
        else:
            assert (await reading).decode() == box.content

    async def stop(self, name: str, how: int) -> None:
        box = self.boxes.get(name)
        if box is None:
            await refused(ResourceNotFoundError, self.host.stop_sandbox(name))
            return
        assert (await self.host.stop_sandbox(name)).status == "stopped"
        if box.status == "ready":
            box.status, box.stopped_at = "stopped", self.now

    async def start(self, name: str, how: int) -> None:
        box = self.boxes.get(name)
        if box is None:
            await refused(ResourceNotFoundError, self.host.start_sandbox(name))
            return
        assert (await self.host.start_sandbox(name)).status == "ready"
        box.status = "ready"

    async def delete(self, name: str, how: int) -> None:
        if self.boxes.pop(name, None) is None:
            await refused(ResourceNotFoundError, self.host.delete_sandbox(name))
        else:
            await self.host.delete_sandbox(name)

    async def rename(self, name: str, how: int) -> None:
        new_name = NAMES[how % len(NAMES)]
        renaming = self.host.update_sandbox(name, UpdateSandbox(new_name=new_name))
        if name not in self.boxes:
            await refused(ResourceNotFoundError, renaming)
        elif new_name in self.boxes and new_name != name:
            await refused(ResourceNameConflictError, renaming)
        else:
            assert (await renaming).name == new_name
            self.boxes[new_name] = self.boxes.pop(name)

    async def capture(self, name: str, how: int) -> None:
        box = self.boxes.get(name)
        capturing = self.host.capture_snapshot(name, CaptureSnapshot(name=f"of-{name}", tag=f"v{how}"))
        if box is None:
            await refused(ResourceNotFoundError, capturing)
            return
        snapshot = await self.host.wait_for_snapshot((await capturing).id, STEP_S)
        assert (await self.host.get_snapshot(f"of-{name}:v{how}")).id == snapshot.id
        self.captures[snapshot.id] = Capture(box.content, box.source)

    async def create_from(self, name: str, how: int) -> None:
        if not self.captures:
            return
        snapshot_id = tuple(self.captures)[how % len(self.captures)]
        request = CreateSandbox(name=name, snapshot_id=snapshot_id, idle_ttl_seconds=0, exclusive=True)
        if name in self.boxes:
            await refused(ResourceAlreadyExistsError, self.host.create_sandbox(request))
            return
        assert (await self.host.create_sandbox(request)).status == "ready"
        self.boxes[name] = Box(self.now, content=self.captures[snapshot_id].content, source=snapshot_id)

    async def forget(self, name: str, how: int) -> None:
        if not self.captures:
            return
        snapshot_id = tuple(self.captures)[how % len(self.captures)]
        users = (*self.boxes.values(), *self.captures.values())
        if any(snapshot_id == (user.source if isinstance(user, Box) else user.base) for user in users):
            await refused(ResourceInUseError, self.host.delete_snapshot(snapshot_id))
            return
        await self.host.delete_snapshot(snapshot_id)
        del self.captures[snapshot_id]
        await refused(ResourceNotFoundError, self.host.get_snapshot(snapshot_id))

    async def end(self) -> None:
        """Delete all that there is, what lies on others first."""
        for name in tuple(self.boxes):
            await self.delete(name, 0)
        for snapshot_id in reversed(tuple(self.captures)):
            await self.host.delete_snapshot(snapshot_id)
        assert await self.host.list_snapshots("of-") == []

    async def limit(self, name: str, how: int) -> None:
        ttl = TTLS[how % 3]
        changing = self.host.update_sandbox(name, UpdateSandbox(ttl_seconds=ttl))
        if name not in self.boxes:
            await refused(ResourceNotFoundError, changing)
        else:
            await changing
            self.boxes[name].ttl = ttl
            await self._expire()

    async def pass_time(self, name: str, how: int) -> None:
        self.now += STEP_S
        await trio.sleep_until(self.began + self.now)
        await self._expire()

    async def _expire(self) -> None:
        for name in [name for name, box in self.boxes.items() if box.ends_at <= self.now]:
            del self.boxes[name]
        await trio.testing.wait_all_tasks_blocked()


TIMELESS: Final = (
    "create",
    "write",
    "read",
    "stop",
    "start",
    "delete",
    "rename",
    "capture",
    "create from",
    "forget",
)
"""Operations that need no virtual time."""


async def refused(error: type[Exception], doing: Awaitable[object]) -> None:
    try:
        await doing
    except error:
        return
    raise AssertionError(f"expected {error.__name__}")
