"""No start is ever run twice, however late it is repeated and whatever has become of its session."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import trio
import trio.testing

from sandboxrt.host.host import Host
from sandboxrt.host.sessions import SessionLimits
from sandboxrt.host.starts import REMEMBERED_STARTS, Begun, StartLog
from sandboxrt.protocol.exec import ErrorFrame, Reconnect
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import converse, run
from sandboxrt.testing.fake import FakeEngine, Faults

from .conftest import OpenFake


async def reopened(folder: Path) -> StartLog:
    log = StartLog(folder, is_new=False)
    await log.load()
    await log.load()
    return log


async def test_a_log_remembers_over_the_end_of_its_host(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    log = StartLog(folder, is_new=True)
    assert log.when("one") is None
    log.note("one")
    log.note("zwei \ud800 ✓")
    log.note("never ran")
    log.forget("never ran")
    log.forget("never noted")
    assert [log.when(name) for name in ("one", "zwei \ud800 ✓", "never ran")] == [Begun.NOW, Begun.NOW, None]
    log.end_run()
    log.note("three")
    assert [log.when(name) for name in ("one", "three")] == [Begun.BEFORE_STOP, Begun.NOW]
    (path,) = folder.iterdir()
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)

    second = await reopened(folder)
    assert {second.when(name) for name in ("one", "zwei \ud800 ✓", "three")} == {Begun.BEFORE_HOST}
    assert second.when("never ran") is None
    second.note("four")
    second.note("one")  # as a command that is a new one: nothing of it is left
    assert (second.when("four"), second.when("one")) == (Begun.NOW, Begun.NOW)
    third = await reopened(folder)
    assert [third.when(name) for name in ("one", "three", "four")] == [Begun.BEFORE_HOST] * 3


async def test_a_log_has_a_bound_and_keeps_the_newest(tmp_path: Path) -> None:
    log = StartLog(tmp_path, is_new=True)
    for number in range(REMEMBERED_STARTS + 100):
        log.note(str(number))
    again = await reopened(tmp_path)
    for each in (log, again):
        assert len(each) == REMEMBERED_STARTS
        assert each.when("99") is None
        assert each.when("100") is not None
    assert (tmp_path / "starts").stat().st_size == REMEMBERED_STARTS * 16
    for number in range(50):
        again.note(f"new {number}")
    third = await reopened(tmp_path)
    assert third.when("149") is None
    assert third.when("150") is third.when("new 49") is Begun.BEFORE_HOST


async def test_numbers_that_begin_anew(tmp_path: Path) -> None:
    log = StartLog(tmp_path, is_new=True)
    log._number = 2**32 - 3
    for number in range(10):
        log.note(str(number))
    again = await reopened(tmp_path)
    assert list(again._begun) == list(log._begun)
    assert again._number == log._number


async def test_what_cannot_be_read_whole_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    log = StartLog(tmp_path, is_new=True)
    log.note("one")
    log.note("two")
    path = tmp_path / "starts"
    path.write_bytes(path.read_bytes() + b"half")
    assert (await reopened(tmp_path)).when("two") is Begun.BEFORE_HOST
    path.write_bytes(b"")
    assert (await reopened(tmp_path)).when("two") is None
    path.write_bytes(bytes(16) + struct.pack("=12sI", b"x" * 12, 2**32 - 1))
    assert len(await reopened(tmp_path)) == 1


async def test_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x" * 32)
    (tmp_path / "starts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        StartLog(tmp_path, is_new=True).note("one")
    assert (tmp_path / "elsewhere").read_bytes() == b"x" * 32


async def runs(host: Host, path: str = "/runs") -> bytes:
    return await host.read_file("box", path)


COUNTED = "echo once >> /runs"


async def error_of(host: Host, command: str, command_id: str) -> ErrorFrame:
    outcome = await run(host, "box", command, command_id=command_id, user="root")
    assert isinstance(outcome.end, ErrorFrame), outcome.end
    return outcome.end


async def test_a_start_that_comes_again_after_a_stop(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _):
        assert (await run(host, "box", COUNTED, command_id="c", user="root")).exit_code == 0
        await host.stop_sandbox("box")
        async with converse(host, "box", Reconnect("c")) as reader:
            gone = (await reader.to_end()).error
        assert gone.error_type == "CommandInterrupted"
        assert gone.error == "Command c ended, at the latest, when the sandbox was stopped; its output is gone"
        await host.start_sandbox("box")
        error = await error_of(host, COUNTED, "c")
        assert error.error_type == "CommandInterrupted"
        assert "was begun before the sandbox was stopped, and is not run again" in error.error
        assert await runs(host) == b"once\n"
        assert (await run(host, "box", COUNTED, command_id="d", user="root")).exit_code == 0
        assert await runs(host) == b"once\nonce\n"


async def test_a_start_that_comes_again_after_its_session_expired(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _):
        await run(host, "box", COUNTED, command_id="c", user="root", ttl_s=1)
        await trio.sleep(2)
        assert (await error_of(host, COUNTED, "c")).error_type == "SessionExpired"
        assert await runs(host) == b"once\n"


async def test_a_start_that_comes_again_after_thousands_of_others(fake_host: OpenFake) -> None:
    async with fake_host(sessions=SessionLimits(finished=2)) as (host, _):
        await run(host, "box", COUNTED, command_id="c", user="root")
        for number in range(1500):
            await run(host, "box", "true", command_id=str(number))
        assert (await error_of(host, COUNTED, "c")).error_type == "SessionExpired"
        assert await runs(host) == b"once\n"


async def test_what_never_ran_may_come_again(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _):
        outcome = await run(host, "box", "pwd", command_id="c", cwd="/missing")
        assert isinstance(outcome.end, ErrorFrame)
        await run(host, "box", "mkdir /missing", user="root")
        assert (await run(host, "box", "pwd", command_id="c", cwd="/missing")).stdout == "/missing\n"


async def test_what_may_have_run_when_its_start_was_broken_off_may_not(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(engine=FakeEngine(Faults(spawn_delay_s=5))) as (host, _):
        async with trio.open_nursery() as nursery:

            async def start() -> None:
                await run(host, "box", "true", command_id="c")

            nursery.start_soon(start)
            await trio.sleep(1)
            await host.stop_sandbox("box")
        await host.start_sandbox("box")
        assert (await error_of(host, "true", "c")).error_type == "CommandInterrupted"


async def test_without_a_record_nothing_is_started(fake_host: OpenFake, tmp_path: Path) -> None:
    async with fake_host(keep=True, box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box"))
        assert (await run(host, "box", "true")).exit_code == 0
        (path,) = tmp_path.rglob("starts")
        path.unlink()
        path.mkdir()
        error = await error_of(host, COUNTED, "c")
        assert error.error_type == "StartNotRecorded"
        path.rmdir()
        assert (await run(host, "box", COUNTED, command_id="c", user="root")).exit_code == 0
        assert os.stat(path).st_size
        await host.delete_sandbox("box")
