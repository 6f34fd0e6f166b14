"""Opening a host: what dead ones left is removed or taken over, and a new one runs in a nursery of its own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from sandboxrt.actors import raising_plainly
from sandboxrt.engine.base import Engine
from sandboxrt.engine.oci import OciEngine
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.config import HostConfig
from sandboxrt.host.host import Host
from sandboxrt.host.ports import HostState
from sandboxrt.host.provision import sandbox_dir
from sandboxrt.store import RegistryRecords, SandboxRow, Store, container_id

__all__ = ["clean_leftovers", "default_engine", "open_host"]

_log = logging.getLogger("sandboxrt.host")


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
    adopted: list[SandboxRow] = []
    async with contextlib.AsyncExitStack() as stack:
        if engine is None:
            engine = await stack.enter_async_context(default_engine(config))
        if state is None:
            store = await stack.enter_async_context(Store.open(config.state_dir))
            adopted = await _adopt(store, engine, config.state_dir) if config.keep else []
            await _clean(store, engine, config.state_dir)
            state = await stack.enter_async_context(_default_state(config, store, engine))
        host = await stack.enter_async_context(_running(Host(config, engine, state)))
        host.adopt(adopted)
        yield host


def default_engine(config: HostConfig) -> OciEngine:
    """The engine on an OCI runtime, to be entered before use."""
    return OciEngine(config.state_dir, config.runtime)


@contextlib.asynccontextmanager
async def _default_state(config: HostConfig, store: Store, engine: Engine) -> AsyncIterator[HostState]:
    from sandboxrt.snapshots.library import SnapshotLibrary

    async def reclaim() -> None:
        await _clean(store, engine, config.state_dir)

    async with SnapshotLibrary(store, config.state_dir, config.snapshots) as library:
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
                except (OSError, RuntimeError, SandboxClientError) as error:
                    trouble.append(f"{row.name}: {error}")
                    continue
                await store.remove_sandbox(row.id)
                removed.append(row.name)
            if len(trouble) == failures and not any(row.keep for row in rows):
                await store.forget_owner(owner_id)
    return removed, trouble


async def _adopt(store: Store, engine: Engine, state_dir: Path) -> list[SandboxRow]:
    """Take over what dead hosts have kept: stopped, their files as they were. What is not whole goes."""
    adopted: list[SandboxRow] = []
    for owner_id in await store.dead_owners():
        async with store.claim_owner(owner_id) as claimed:
            for row in await store.sandboxes_of(owner_id) if claimed else ():
                if not row.keep:
                    continue
                folder = sandbox_dir(state_dir, row.engine_id)
                name = container_id(store.identity, row.engine_id)
                try:
                    if row.status in ("provisioning", "deleting"):
                        await engine.discard(folder, name)
                        await store.remove_sandbox(row.id)
                        continue
                    await engine.release(folder, name)
                except (OSError, RuntimeError, SandboxClientError) as error:
                    # Left with its dead owner, for the next start.
                    _log.error("sandbox %s of a dead host could not be taken over: %s", row.id, error)
                    continue
                adopted.append(await store.adopt_sandbox(row.id, "failed" if row.status == "failed" else "stopped"))
    return adopted
