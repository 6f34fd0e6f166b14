"""One host for all clients of a run that use the same state folder.

A host is tasks, and tasks live in one run of trio: all clients of a run share theirs, and so do all blocking and
asyncio clients of a process, whose run is the bridge's one thread. Clients of another run of the same process have a
host of their own, as other processes have.

The host lives in a system task of its run, because the client that opens it may leave before the others; it ends with
the last client. Each client owns what it created: when it leaves, that is deleted, whoever uses it besides. What two
clients created (a repeated create of one name) is deleted when the second one leaves.

Source: ours.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import attrs
import trio

from sandboxrt.engine.base import Engine
from sandboxrt.errors import ClientClosedError, SandboxClientError
from sandboxrt.gateway.local import LocalServices
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.host.opening import open_host
from sandboxrt.threads import run_blocking

__all__ = ["Member", "join_host"]

_WHY_GONE: Final = "it went with the client that created it, which was closed or no longer referred to"


@attrs.define(eq=False)
class Member:
    """One client's part in a host.

    Attributes:
        host: The host.
        services: What reaches services of its sandboxes.
    """

    host: Host
    services: LocalServices
    _shared: _SharedHost
    _owned: set[str] = attrs.field(factory=set)
    _left: bool = False

    async def own(self, sandbox_id: str) -> None:
        """Note that this client created a sandbox, which goes with it.

        Raises:
            ClientClosedError: The client has left meanwhile; the sandbox is deleted again.
        """
        if not self._left:
            self._owned.add(sandbox_id)
            return
        with trio.CancelScope(shield=True):
            await self._shared.delete([sandbox_id])
        raise ClientClosedError("the client was closed while the sandbox was created")

    def disown(self, sandbox_id: str) -> None:
        """Forget a sandbox that is deleted."""
        self._owned.discard(sandbox_id)

    async def leave(self) -> None:
        """Delete what is nobody else's, or end the host where this was its last client."""
        self._left = True
        self._shared.members.discard(self)
        if self._shared.members or self._shared.waiting:
            others = {owned for member in self._shared.members for owned in member._owned}
            await self._shared.delete(sorted(self._owned - others))
        else:
            await self._shared.close()


@attrs.define(eq=False)
class _SharedHost:
    """The actor: ``run`` is its life."""

    place: Path
    config: HostConfig
    engine: Engine | None
    members: set[Member] = attrs.field(factory=set)
    waiting: int = 0
    """How many clients wait for it to be open."""
    closing: bool = False
    ready: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    error: BaseException | None = None
    """Why it did not open, or ended before its time."""
    last_error: BaseException | None = None
    """What went wrong when it was closed."""
    pid: int = attrs.field(factory=os.getpid)
    open: tuple[Host, LocalServices] | None = None
    _opening: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _leave: trio.Event = attrs.field(factory=trio.Event)

    async def run(self) -> None:
        """Open the host, keep it until ``close``, and say how either failed."""
        try:
            with self._opening:  # cancelled while it opens, never later
                async with open_host(self.config, engine=self.engine) as host, LocalServices.open(host) as services:
                    self.open = host, services
                    self.ready.set()
                    await self._leave.wait()
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001  raised in the clients
            if self._leave.is_set():
                self.last_error = error
            else:
                self.error = error
        finally:
            self.closing, self.open = True, None
            _hosts().pop((self.pid, self.place), None)
            self.ready.set()
            self.ended.set()

    def check(self, config: HostConfig, engine: Engine | None, *, runtime_given: bool) -> None:
        """Refuse a client that wants another host than this one. Raises ``ValueError``."""
        if engine is not self.engine:
            raise ValueError(
                f"another client of this process uses {self.place} with another engine="
                f" ({_engine(self.engine)}, not {_engine(engine)}); give this client a state_dir= of its own"
            )
        if runtime_given and config.runtime != self.config.runtime:
            raise ValueError(
                f"another client of this process uses {self.place} with runtime={self.config.runtime!r}, not"
                f" {config.runtime!r}; leave runtime= out, or give this client a state_dir= of its own"
            )

    async def delete(self, sandbox_ids: list[str]) -> None:
        """Delete sandboxes at once, as far as they are still there; each is bounded by the host's own limit."""

        async def delete(host: Host, sandbox_id: str) -> None:
            with contextlib.suppress(SandboxClientError):  # gone, or reported by the host
                await host.delete_sandbox(sandbox_id, _WHY_GONE)

        if self.open is not None:
            async with trio.open_nursery() as nursery:
                for sandbox_id in sandbox_ids:
                    nursery.start_soon(delete, self.open[0], sandbox_id)

    async def close(self) -> None:
        """End it, and wait for that."""
        self.closing = True
        if self.open is None:
            self._opening.cancel()
        self._leave.set()
        await self.ended.wait()
        if self.last_error is not None:
            raise self.last_error


_HOSTS: Final[trio.lowlevel.RunVar[dict[tuple[int, Path], _SharedHost]]] = trio.lowlevel.RunVar("sandboxrt hosts")


def _hosts() -> dict[tuple[int, Path], _SharedHost]:
    try:
        return _HOSTS.get()
    except LookupError:
        made: dict[tuple[int, Path], _SharedHost] = {}
        _HOSTS.set(made)
        return made


@contextlib.asynccontextmanager
async def join_host(config: HostConfig, engine: Engine | None, *, runtime_given: bool) -> AsyncIterator[Member]:
    """A part in the host of this run for a state folder, opened where there is none.

    Args:
        config: Its settings, of which only the first client's count; what a client may have of its own is in its
            requests.
        engine: What runs sandboxes.
        runtime_given: Whether the caller chose ``config.runtime``, rather than taking what there is.

    Raises:
        ValueError: There is one with another engine or runtime.
        EngineUnavailableError: Sandboxes cannot run here; the message says what to do.
        SandboxClientError: The state folder cannot be used.

    Cancellation: Entering is atomic. Leaving deletes what this client created, shielded and bounded.
    """
    place = await run_blocking(None, lambda: Path(os.path.realpath(config.state_dir)))
    while True:
        # A forked child does not share its parent's host, not even where it goes on with its parent's run.
        shared = _hosts().get((os.getpid(), place))
        if shared is None:
            shared = _SharedHost(place, config, engine)
            _hosts()[shared.pid, place] = shared
            trio.lowlevel.spawn_system_task(shared.run, name=f"sandboxrt host of {place}")
        elif shared.closing:
            await shared.ended.wait()
            continue
        else:
            shared.check(config, engine, runtime_given=runtime_given)
        break
    member = await _member_of(shared)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, shared)
            yield member
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await member.leave()


async def _member_of(shared: _SharedHost) -> Member:
    shared.waiting += 1
    try:
        await shared.ready.wait()
    finally:
        shared.waiting -= 1
        if shared.open is None and not shared.members and not shared.waiting:
            with trio.CancelScope(shield=True):
                await shared.close()  # nobody wants it any more, or it did not open
    if shared.open is None:
        raise shared.error or ClientClosedError("the host was closed while it opened")
    member = Member(*shared.open, shared)
    shared.members.add(member)
    return member


async def _watch(shared: _SharedHost) -> None:
    """End a client's block when its host fails, with what it failed of."""
    await shared.ended.wait()
    raise shared.error or ClientClosedError("the host has ended")


def _engine(engine: Engine | None) -> str:
    return "an OCI runtime" if engine is None else repr(engine)
