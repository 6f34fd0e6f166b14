"""Opening a host: what dead ones left is removed or taken over, and a new one runs in a nursery of its own."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import trio

from sandboxrt.actors import raising_plainly, supervise
from sandboxrt.engine.base import Engine
from sandboxrt.engine.oci import OciEngine
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.descriptors import raise_limit
from sandboxrt.host.host import Host
from sandboxrt.host.leftovers import FREEING_FAILS
from sandboxrt.host.ports import HostState
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.room import Room
from sandboxrt.store import RegistryRecords, SandboxRow, Store, container_id

__all__ = ["clean_leftovers", "default_engine", "open_host"]

_log = logging.getLogger("sandboxrt.host")
_adoption = logging.getLogger("sandboxrt.host.adoption")
_ADOPTED_AS: Final = {"failed": "failed", "provisioning": "deleting", "deleting": "deleting"}


@contextlib.asynccontextmanager
async def open_host(
    config: HostConfig | None = None, *, engine: Engine | None = None, state: HostState | None = None
) -> AsyncIterator[Host]:
    """A host with the given settings; what dead owners left in its state folder is removed first.

    Args:
        config: The settings; the defaults and the environment's where left out.
        engine: What runs sandboxes; an OCI runtime's where left out.
        state: What remembers sandboxes and snapshots; the state folder where left out.

    Raises:
        EngineUnavailableError: Sandboxes cannot run here; the message says what to do.
        SandboxClientError: The state folder cannot be used.

    Cancellation: Leaving removes every sandbox; that is shielded, and bounded by ``cleanup_limit_s`` for each.
    """
    config = config or HostConfig()
    raise_limit()
    adopted: list[SandboxRow] = []
    running: frozenset[str] = frozenset()
    room = Room(config.state_dir, config.min_free_bytes)
    async with contextlib.AsyncExitStack() as stack:
        if engine is None:
            engine = await stack.enter_async_context(default_engine(config, room))
        if state is None:
            store = await stack.enter_async_context(Store.open(config.state_dir))
            if config.keep:
                adopted, running = await _adopt(store)
            else:
                await _clean(store, engine, config.state_dir)
            state = await stack.enter_async_context(_default_state(config, store, engine, room))
        host = await stack.enter_async_context(_running(Host(config, engine, state, room)))
        if config.keep:
            # A server answers before that is done; a create that needs a name waits for it.
            assert host.nursery is not None
            host.nursery.start_soon(supervise, state.reclaim, _cleaning_failed)
        host.adopt(adopted, running)
        yield host


def default_engine(config: HostConfig, room: Room | None = None) -> OciEngine:
    """The engine on an OCI runtime, to be entered before use."""
    return OciEngine(config.state_dir, config.runtime, room=room or Room(config.state_dir, config.min_free_bytes))


@contextlib.asynccontextmanager
async def _default_state(config: HostConfig, store: Store, engine: Engine, room: Room) -> AsyncIterator[HostState]:
    from sandboxrt.snapshots.library import SnapshotLibrary

    turn = trio.Lock()

    async def reclaim() -> None:
        # Whoever comes meanwhile needs what the other one frees.
        async with turn:
            await _clean(store, engine, config.state_dir)

    async with SnapshotLibrary(store, config.state_dir, config.snapshots, room) as library:
        yield HostState(store, library, RegistryRecords(store), reclaim)


@contextlib.asynccontextmanager
async def _running(host: Host) -> AsyncIterator[Host]:
    # Sandboxes never raise, so what is alone in a group is the caller's own exception.
    with raising_plainly():
        async with trio.open_nursery() as nursery:
            host.nursery = nursery
            try:
                yield host
            finally:
                with trio.CancelScope(shield=True):
                    await host.shut_down()
                nursery.cancel_scope.cancel()


async def clean_leftovers(state_dir: Path | str, *, engine: Engine | None = None) -> list[str]:
    """Remove the sandboxes that dead owners left in a state folder; living owners' are not touched.

    Returns:
        The names of the sandboxes that were removed.

    Raises:
        SandboxClientError: The folder cannot be used, or something could not be removed; the message names it.
    """
    state_dir = Path(state_dir)
    async with contextlib.AsyncExitStack() as stack:
        if engine is None:
            engine = await stack.enter_async_context(default_engine(HostConfig(state_dir=state_dir)))
        store = await stack.enter_async_context(Store.open(state_dir))
        removed, trouble = await _clean(store, engine, state_dir)
    if trouble:
        raise SandboxClientError("Some leftovers could not be removed: " + "; ".join(trouble))
    return removed


async def _clean(store: Store, engine: Engine, state_dir: Path) -> tuple[list[str], list[str]]:
    removed: list[str] = []
    trouble: list[str] = []
    for owner_id in await store.dead_owners():
        async with store.claim_owner(owner_id) as claimed:
            if not claimed:
                continue
            failures = len(trouble)
            rows = await store.sandboxes_of(owner_id)
            for row in rows:
                if row.keep:
                    continue
                try:
                    await engine.discard(
                        sandbox_dir(state_dir, row.engine_id), container_id(store.identity, row.engine_id)
                    )
                except FREEING_FAILS as error:
                    trouble.append(f"{row.name}: {error}")
                    continue
                await store.remove_sandbox(row.id)
                removed.append(row.name)
            if len(trouble) == failures and not any(row.keep for row in rows):
                await store.forget_owner(owner_id)
    return removed, trouble


async def _adopt(store: Store) -> tuple[list[SandboxRow], frozenset[str]]:
    """Take over what dead hosts have kept: stopped, their files as they were; what is not whole is to be deleted.

    Returns:
        The rows, and the ids of those that were running.
    """
    adopted: list[SandboxRow] = []
    running: set[str] = set()
    began = time.monotonic()
    for owner_id in await store.dead_owners():
        async with store.claim_owner(owner_id) as claimed:
            rows = [row for row in await store.sandboxes_of(owner_id) if row.keep] if claimed else []
            running.update(row.id for row in rows if row.status not in ("stopped", "failed"))
            adopted += await store.adopt_sandboxes({row.id: _ADOPTED_AS.get(row.status, "stopped") for row in rows})
    if adopted:
        spent_s = time.monotonic() - began
        _adoption.info("adopted %d sandboxes, %d of which were running, in %.1f s", len(adopted), len(running), spent_s)
    return adopted, frozenset(running)


def _cleaning_failed(error: Exception) -> None:
    _log.error("what dead owners left could not be removed", exc_info=error)
