"""Conformance of sandboxes' lives: protocol.md §2.3, §2.4."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import attrs
import trio

from sandboxrt.errors import ResourceNameConflictError, ResourceNotFoundError, SandboxClientError, ValidationError
from sandboxrt.protocol.exec import Execute, Exit
from sandboxrt.protocol.rest import CreateSandbox, SandboxInfo, UpdateSandbox
from sandboxrt.testing.conformance.driver import Case, Driver, by_name, converse, new_name, run, sandbox

__all__ = ["LIFECYCLE_CASES"]

_CASES: list[Case] = []
_E = TypeVar("_E", bound=Exception)


def _case(function: Case) -> Case:
    _CASES.append(function)
    return function


async def _raises(kind: type[_E], doing: Awaitable[object]) -> _E:
    try:
        await doing
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


@_case
async def create_find_delete(driver: Driver) -> None:
    """By name and by id, until it is gone."""
    async with sandbox(driver) as name:
        info = await driver.get_sandbox(name)
        assert (info.name, info.status) == (name, "ready")
        assert (await driver.get_sandbox(info.id)).name == name
        assert name in [other.name for other in await driver.list_sandboxes()]
        assert (await driver.sandbox_status(name)).status == "ready"
    error = await _raises(ResourceNotFoundError, driver.get_sandbox(name))
    assert (str(error), error.resource_type) == (f"Sandbox '{name}' not found", "sandbox")
    await _raises(ResourceNotFoundError, driver.delete_sandbox(name))
    assert name not in [other.name for other in await driver.list_sandboxes()]


@_case
async def a_repeated_create_gets_the_first_one(driver: Driver) -> None:
    """By its name; also at once."""
    async with sandbox(driver) as name:
        first = await driver.get_sandbox(name)
        assert (await driver.create_sandbox(CreateSandbox(name=name))).id == first.id
    request = CreateSandbox(name=new_name())
    made: list[SandboxInfo] = []

    async def create() -> None:
        made.append(await driver.create_sandbox(request))

    try:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(create)
    finally:
        await driver.delete_sandbox(request.name)
    assert len({info.id for info in made}) == 1


@_case
async def creates_that_cannot_be_are_refused(driver: Driver) -> None:
    """With the error that says what was wrong, and nothing left."""
    before = {info.name for info in await driver.list_sandboxes()}
    request = CreateSandbox(name=new_name())
    await _raises(ValueError, driver.create_sandbox(attrs.evolve(request, snapshot_id="a", snapshot_name="b")))
    for wrong in (attrs.evolve(request, snapshot_id="no-such"), attrs.evolve(request, snapshot_name="no-such")):
        error = await _raises(ResourceNotFoundError, driver.create_sandbox(wrong))
        assert error.resource_type == "snapshot"
    for bad_name in ("", "-a", "a/b", "a b", "x" * 64, ".."):
        refused = await _raises(ValidationError, driver.create_sandbox(attrs.evolve(request, name=bad_name)))
        assert refused.field == "name"
    for ttl in (-60, 61):
        refused = await _raises(ValidationError, driver.create_sandbox(attrs.evolve(request, ttl_seconds=ttl)))
        assert refused.field == "ttl_seconds"
    assert {info.name for info in await driver.list_sandboxes()} == before


@_case
async def create_without_waiting(driver: Driver) -> None:
    """It is being made; waiting is a call of its own."""
    request = CreateSandbox(name=new_name(), wait_for_ready=False)
    info = await driver.create_sandbox(request)
    try:
        assert info.id
        assert info.status in ("provisioning", "ready")
        ready = await driver.wait_for_sandbox(request.name, 30, 0.1)
        assert (ready.id, ready.status) == (info.id, "ready")
        assert (await run(driver, request.name, "echo x")).stdout == "x\n"
    finally:
        await driver.delete_sandbox(request.name)


@_case
async def a_cancelled_create_leaves_nothing(driver: Driver) -> None:
    """Its name is free at once."""
    request = CreateSandbox(name=new_name())
    for after_s in (0.0, 0.001, 0.01, 0.03):
        with trio.move_on_after(after_s) as scope:
            await driver.create_sandbox(request)
        if scope.cancelled_caught:
            await _raises(ResourceNotFoundError, driver.get_sandbox(request.name))
        else:
            await driver.delete_sandbox(request.name)


@_case
async def names_and_ttls_can_change(driver: Driver) -> None:
    """A name that is taken stays taken."""
    async with sandbox(driver) as name, sandbox(driver) as other:
        info = await driver.update_sandbox(name, UpdateSandbox(ttl_seconds=3600, idle_ttl_seconds=600))
        assert (info.ttl_seconds, info.idle_ttl_seconds) == (3600, 600)
        assert info.expires_at
        assert (await driver.update_sandbox(name, UpdateSandbox(ttl_seconds=0, idle_ttl_seconds=0))).expires_at is None
        await _raises(ResourceNameConflictError, driver.update_sandbox(name, UpdateSandbox(new_name=other)))
        renamed = new_name()
        assert (await driver.update_sandbox(name, UpdateSandbox(new_name=renamed))).name == renamed
        await _raises(ResourceNotFoundError, driver.get_sandbox(name))
        assert (await run(driver, renamed, "echo x")).stdout == "x\n"
        await driver.update_sandbox(renamed, UpdateSandbox(new_name=name))
        await _raises(ValidationError, driver.update_sandbox(name, UpdateSandbox(ttl_seconds=1)))


@_case
async def a_stop_keeps_files_and_nothing_else(driver: Driver) -> None:
    """Both are idempotent; what runs ends with an error that says why; used while stopped, it says so or wakes."""
    async with sandbox(driver) as name:
        await run(driver, name, "echo one > /tmp/file; echo two > /root/file")
        async with converse(driver, name, Execute(command="echo up; sleep 1000")) as reader:
            await reader.until("up")
            await driver.stop_sandbox(name)
            outcome = await reader.to_end()
        assert isinstance(outcome.end, Exit) or outcome.error.error_type == "SandboxStopped"
        await driver.stop_sandbox(name)
        assert (await driver.get_sandbox(name)).status == "stopped"
        assert name in [info.name for info in await driver.list_sandboxes()]
        for _ in range(2):
            info = await driver.start_sandbox(name, 30)
            assert (info.name, info.status) == (name, "ready")
        assert (await run(driver, name, "cat /tmp/file /root/file")).stdout == "one\ntwo\n"
        await driver.stop_sandbox(name)
        await driver.start_sandbox(name, 30)
        assert (await run(driver, name, "cat /tmp/file")).stdout == "one\n"
        await driver.stop_sandbox(name)
    await _raises(ResourceNotFoundError, driver.get_sandbox(name))


@_case
async def sandboxes_share_nothing(driver: Driver) -> None:
    """Not even the names of their files."""
    async with sandbox(driver) as one, sandbox(driver) as two:
        await run(driver, one, "echo mine > /tmp/file")
        assert (await run(driver, two, "cat /tmp/file")).exit_code != 0


@_case
async def deleting_twice_at_once_is_one_deletion(driver: Driver) -> None:
    """Both are told that it is gone, or that it was."""
    request = CreateSandbox(name=new_name())
    await driver.create_sandbox(request)

    async def delete() -> None:
        try:
            await driver.delete_sandbox(request.name)
        except ResourceNotFoundError:
            return
        except SandboxClientError as error:
            raise AssertionError(error) from error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(delete)
        nursery.start_soon(delete)
    await _raises(ResourceNotFoundError, driver.get_sandbox(request.name))


LIFECYCLE_CASES = by_name(_CASES)
