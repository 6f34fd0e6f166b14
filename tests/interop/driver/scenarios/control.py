"""Rows 1 to 5, 14 and 38: credentials, snapshots, creation, names, clean-up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import langsmith.sandbox as ls
from context import Context, check, raises, same
from langsmith.utils import get_env_var

MIB = 1024**2


async def environment(context: Context) -> None:
    """Row 1: endpoint and key from the environment."""
    context.faults(forget=True)
    async with context.client(from_environment=True) as client:
        await client.list_sandboxes()
    paths = context.faults(seen=True)["paths"]
    prefix = "/api/v2/sandboxes/" if context.newest else "/v2/sandboxes/"
    check(any(path.startswith(prefix + "boxes") for path in paths), f"{prefix}boxes among {paths}")


async def credentials(context: Context) -> None:
    """Row 2: a wrong key, or none."""
    for key in ("wrong", None):
        with _no_key_in_the_environment():
            async with context.client(api_key=key) as client:
                await raises(ls.SandboxAuthenticationError, client.list_sandboxes())
                await raises(ls.SandboxAuthenticationError, client.create_sandbox(context.options["snapshot_id"]))
                await raises(ls.SandboxAuthenticationError, client.list_snapshots())


@contextlib.contextmanager
def _no_key_in_the_environment() -> Iterator[None]:
    """The clients remember what they once read from it."""
    key = os.environ.pop("LANGSMITH_API_KEY")
    get_env_var.cache_clear()
    try:
        yield
    finally:
        os.environ["LANGSMITH_API_KEY"] = key
        get_env_var.cache_clear()


async def snapshots(context: Context) -> None:
    """Row 3: a snapshot from an image, and from one that is not there."""
    async with context.client() as client:
        name = f"tiny-{context.form}-{context.generation[1]}"
        snapshot = await client.create_snapshot(name, context.options["image"], 64 * MIB)
        try:
            same((snapshot.status, snapshot.name), ("ready", name), "the new snapshot")
            got = await client.get_snapshot(snapshot.id)
            same(got.fs_capacity_bytes, 64 * MIB, "its capacity")
            check(got.docker_image, "it names its image")
            found = await client.list_snapshots(name_contains=name.upper())
            same([each.id for each in found], [snapshot.id], "the list by name")
            async with await client.sandbox(snapshot_name=name) as sandbox:
                same((await sandbox.run("echo $0", shell="/bin/sh")).stdout, "/bin/sh\n", "a command in it")
        finally:
            await client.delete_snapshot(snapshot.id)
        await raises(ls.ResourceNotFoundError, client.get_snapshot(snapshot.id))
        error = await raises(
            ls.ResourceCreationError, client.create_snapshot("broken", context.options["missing_image"], 64 * MIB)
        )
        same(error.resource_type, "snapshot", "resource_type")
        for left in await client.list_snapshots(name_contains="broken"):
            await client.delete_snapshot(left.id)


async def creation(context: Context) -> None:
    """Row 4: by id, by name, by neither, by both."""
    snapshot_id, name = context.options["snapshot_id"], context.options["snapshot_name"]
    async with context.client() as client:
        async with await client.sandbox(snapshot_id) as sandbox:
            same((sandbox.status, sandbox.snapshot_id), ("ready", snapshot_id), "by id")
            check(sandbox.dataplane_url and not sandbox.dataplane_url.endswith("/"), "a data-plane URL without a slash")
        async with await client.sandbox(snapshot_name=name) as sandbox:
            same(sandbox.status, "ready", "by name")
        await raises(ValueError, client.create_sandbox(snapshot_id, snapshot_name=name))
        if context.seed:
            await raises(ValueError, client.create_sandbox())
        else:
            async with await client.sandbox() as sandbox:
                same((await sandbox.run("echo default")).stdout, "default\n", "the server's default snapshot")


async def unknown_snapshot(context: Context) -> None:
    """Row 5: a snapshot that is not there."""
    async with context.client() as client:
        for options in ({"snapshot_id": "00000000-0000-4000-8000-000000000000"}, {"snapshot_name": "nobody-made-it"}):
            error = await raises(ls.SandboxClientError, client.create_sandbox(**options))
            check(not isinstance(error, ls.SandboxAPIError), f"no server error: {error!r}")


async def names(context: Context) -> None:
    """Row 14: list, get, delete, and what is not there."""
    async with context.client() as client:
        name = f"box-{context.form}-{context.generation[1]}"
        sandbox = await client.create_sandbox(context.options["snapshot_id"], name=name)
        try:
            same(sandbox.name, name, "its name")
            check(name in [each.name for each in await client.list_sandboxes()], "it is in the list")
            same((await client.get_sandbox(name)).id, sandbox.id, "found by its name")
            status = await client.get_sandbox_status(name)
            same(status.status, "ready", "its status")
            await raises(ls.SandboxClientError, client.create_sandbox(context.options["snapshot_id"], name=name))
        finally:
            await client.delete_sandbox(name)
        check(name not in [each.name for each in await client.list_sandboxes()], "it is gone from the list")
        for doing in (client.get_sandbox(name), client.delete_sandbox(name), client.get_sandbox_status(name)):
            error = await raises(ls.ResourceNotFoundError, doing)
            same((error.resource_type, str(error)), ("sandbox", f"Sandbox '{name}' not found"), "not found")
        missing = "00000000-0000-4000-8000-000000000000"
        error = await raises(ls.ResourceNotFoundError, client.delete_snapshot(missing))
        same((error.resource_type, str(error)), ("snapshot", f"Snapshot '{missing}' not found"), "not found")


async def clean_up(context: Context) -> None:
    """Row 38: the context manager deletes, whatever happened; a delete that fails is swallowed."""
    async with context.client() as client:
        async with await client.sandbox(context.options["snapshot_id"]) as sandbox:
            first = sandbox.name
        await raises(ls.ResourceNotFoundError, client.get_sandbox(first))

        async def failing() -> None:
            async with await client.sandbox(context.options["snapshot_id"], name=first):
                raise KeyError("mine")

        await raises(KeyError, failing())
        await raises(ls.ResourceNotFoundError, client.get_sandbox(first))
        async with await client.sandbox(context.options["snapshot_id"]) as sandbox:
            await client.delete_sandbox(sandbox.name)


SCENARIOS = {
    "1": environment,
    "2": credentials,
    "3": snapshots,
    "4": creation,
    "5": unknown_snapshot,
    "14": names,
    "38": clean_up,
}
