"""Captures: what they hold, what they are made of, and what they keep from being deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from sandboxrt.errors import ResourceNotFoundError, SandboxClientError, ValidationError
from sandboxrt.models import Snapshot
from sandboxrt.protocol.exec import Execute
from sandboxrt.protocol.rest import CaptureSnapshot
from sandboxrt.testing.conformance.driver import Case, Driver, by_name, converse, new_name, run, sandbox

__all__ = ["CAPTURE_CASES"]

_E = TypeVar("_E", bound=Exception)
_CASES: list[Case] = []
_LIMIT_S = 60.0


def _case(case: Case) -> Case:
    _CASES.append(case)
    return case


async def _raises(kind: type[_E], awaitable: Awaitable[object]) -> _E:
    try:
        await awaitable
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


@asynccontextmanager
async def captured(driver: Driver, name: str, **options: object) -> AsyncIterator[Snapshot]:
    """A snapshot of a sandbox for the length of a block."""
    request = CaptureSnapshot(name=new_name(), **options)  # type: ignore[arg-type]
    begun = await driver.capture_snapshot(name, request)
    snapshot = await driver.wait_for_snapshot(begun.id, _LIMIT_S, 0.1)
    try:
        yield snapshot
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _LIMIT_S):
            await driver.delete_snapshot(snapshot.id)


@_case
async def a_capture_has_files_and_nothing_else(driver: Driver) -> None:
    """Neither ``/tmp`` nor what runs; and what runs goes on."""
    async with sandbox(driver) as name:
        await run(driver, name, "echo root > /root/file; echo opt > /home/user/file; echo tmp > /tmp/file")
        async with converse(driver, name, Execute(command="echo up; sleep 1; echo still here")) as reader:
            await reader.until("up")
            async with captured(driver, name) as snapshot:
                await reader.until("still here")
                assert (await reader.to_end()).exit_code == 0
                source = await driver.get_sandbox(name)
                assert (snapshot.status, snapshot.source_sandbox_id) == ("ready", source.id)
                assert snapshot.fs_used_bytes
                assert snapshot.fs_capacity_bytes == source.fs_capacity_bytes
                async with sandbox(driver, snapshot_id=snapshot.id) as copy:
                    assert (await run(driver, copy, "cat /root/file /home/user/file")).stdout == "root\nopt\n"
                    assert (await run(driver, copy, "cat /tmp/file")).exit_code != 0
                    await run(driver, copy, "echo changed > /root/file")
                    assert (await run(driver, name, "cat /root/file")).stdout == "root\n"


@_case
async def a_stopped_sandbox_can_be_captured(driver: Driver) -> None:
    """And started again afterwards."""
    async with sandbox(driver) as name:
        await run(driver, name, "echo one > /root/file; echo tmp > /tmp/file")
        await driver.stop_sandbox(name)
        async with captured(driver, name) as snapshot:
            await driver.start_sandbox(name, 30)
            assert (await run(driver, name, "cat /root/file /tmp/file")).stdout == "one\ntmp\n"
            async with sandbox(driver, snapshot_id=snapshot.id) as copy:
                assert (await run(driver, copy, "cat /root/file")).stdout == "one\n"
                assert (await run(driver, copy, "cat /tmp/file")).exit_code != 0


@_case
async def captures_of_captures(driver: Driver) -> None:
    """Each has what those before it had, but what was changed or removed since."""
    async with sandbox(driver) as first:
        await run(driver, first, "echo 1 > /root/kept; echo 1 > /root/changed; echo 1 > /root/removed")
        async with captured(driver, first) as one, sandbox(driver, snapshot_id=one.id) as second:
            await run(driver, second, "echo 2 > /root/changed; rm /root/removed; echo 2 > /root/new")
            async with captured(driver, second, tag="two") as two, sandbox(driver, snapshot_id=two.id) as third:
                assert (await run(driver, third, "cat /root/kept /root/changed /root/new")).stdout == "1\n2\n2\n"
                assert (await run(driver, third, "cat /root/removed")).exit_code != 0
                assert (await driver.get_snapshot(f"{two.name}:two")).id == two.id


@_case
async def what_others_lie_on_is_not_deleted(driver: Driver) -> None:
    """Whoever asks is told by whom it is used."""
    async with sandbox(driver) as first, captured(driver, first) as one:
        async with sandbox(driver, snapshot_id=one.id) as second:
            error = await _raises(SandboxClientError, driver.delete_snapshot(one.id))
            assert second in str(error), error
            begun = await driver.capture_snapshot(second, CaptureSnapshot(name=new_name()))
            two = await driver.wait_for_snapshot(begun.id, _LIMIT_S, 0.1)
        error = await _raises(SandboxClientError, driver.delete_snapshot(one.id))
        assert two.name in str(error), error
        async with sandbox(driver, snapshot_id=two.id) as third:
            assert (await run(driver, third, "echo up")).stdout == "up\n"
        await driver.delete_snapshot(two.id)
        await _raises(ResourceNotFoundError, driver.get_snapshot(two.id))


@_case
async def captures_that_cannot_be_are_refused(driver: Driver) -> None:
    """With the error that says what was wrong."""
    async with sandbox(driver) as name:
        await driver.stop_sandbox(name)
        refused = await _raises(ValidationError, driver.capture_snapshot(name, CaptureSnapshot(name="")))
        assert refused.field == "name"
        refused = await _raises(ValidationError, driver.capture_snapshot(name, CaptureSnapshot(name="host")))
        assert refused.field == "name"
    error = await _raises(ResourceNotFoundError, driver.capture_snapshot(name, CaptureSnapshot(name="x")))
    assert error.resource_type == "sandbox"


CAPTURE_CASES = by_name(_CASES)
