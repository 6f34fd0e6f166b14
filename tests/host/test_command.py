"""What a command's readers see, beyond the conformance suite: bounds, losses, faults."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from sandboxrt.host.blame import blame
from sandboxrt.host.command import CommandSettings
from sandboxrt.host.sessions import SessionLimits
from sandboxrt.host.spill import SpillBudget, SpillFile, SpillQuota, sweep
from sandboxrt.models import DEFAULT_LIMITS, Limits
from sandboxrt.protocol.exec import ErrorFrame, Execute, Exit, Kill, Output, Reconnect, Started
from sandboxrt.protocol.output import LONG_READ_BYTES, MAX_READ_BYTES
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import converse, run
from sandboxrt.testing.fake import FakeEngine, Faults

from .conftest import OpenFake

SMALL = CommandSettings(replay_memory_bytes=100_000, replay_spill_bytes=10_000_000)


async def test_output_beyond_memory_is_replayed_from_disk(fake_host: OpenFake) -> None:
    async with fake_host(command=SMALL) as (host, _):
        first = await run(host, "box", "head -c 2000000 /dev/zero; echo end", command_id="c")
        assert len(first.stdout) == 2_000_004
        async with converse(host, "box", Reconnect("c")) as reader:
            again = await reader.to_end()
        again.check_offsets()
        assert again.stdout == first.stdout
        async with converse(host, "box", Reconnect("c", 1_999_990)) as reader:
            assert (await reader.to_end()).stdout == "\0" * 10 + "end\n"


async def test_frames_are_long_for_who_takes_them(fake_host: OpenFake) -> None:
    async with fake_host(command=SMALL) as (host, _):
        first = await run(host, "box", "head -c 2000000 /dev/zero; echo end", command_id="c")
        longest = {}
        for input_id in (None, "ours"):
            async with converse(host, "box", Reconnect("c", input_id=input_id)) as reader:
                again = await reader.to_end()
            assert again.stdout == first.stdout
            longest[input_id] = max(len(frame.data) for frame in again.frames if isinstance(frame, Output))
        assert longest[None] <= MAX_READ_BYTES < longest["ours"] <= LONG_READ_BYTES


async def test_a_gap_is_an_error_that_says_where_to_go_on(fake_host: OpenFake) -> None:
    settings = attrs.evolve(SMALL, replay_spill_bytes=300_000)
    async with fake_host(command=settings) as (host, _):
        script = "head -c 2000000 /dev/zero; echo end"
        async with converse(host, "box", Execute(command=script, command_id="c")) as slow:
            await trio.sleep(0.5)
            outcome = await slow.to_end()
        assert outcome.error.error_type == "ReadOffsetUnavailable"
        assert outcome.error.stream == "stdout"
        first = outcome.error.first_offset
        assert first is not None
        assert 1_500_000 < first < 2_000_000
        async with converse(host, "box", Reconnect("c", first)) as reader:
            rest = await reader.to_end()
        rest.check_offsets(first)
        assert len(rest.stdout) == 2_000_004 - first
        assert rest.exit_code == 0
        async with converse(host, "box", Reconnect("c")) as reader:
            frames = (await reader.to_end()).frames
        assert not any(isinstance(frame, Output) for frame in frames)


async def test_a_full_disk_loses_output_but_not_the_command(fake_host: OpenFake) -> None:
    async with fake_host(command=SMALL, spill_quota_bytes=150_000) as (host, _):
        script = "head -c 2000000 /dev/zero; echo end"
        async with converse(host, "box", Execute(command=script, command_id="c")) as slow:
            await trio.sleep(0.5)
            assert (await slow.to_end()).error.error_type == "ReadOffsetUnavailable"
        async with converse(host, "box", Reconnect("c", 2_000_000)) as reader:
            outcome = await reader.to_end()
        assert (outcome.stdout, outcome.exit_code) == ("end\n", 0)


async def test_spill_files_go_and_their_quota_comes_back(tmp_path: Path) -> None:
    quota, limiter = SpillQuota(1000), trio.CapacityLimiter(1)
    folder = tmp_path / "sessions"
    one, two = SpillFile(folder, quota, limiter), SpillFile(folder, quota, limiter)
    await one.write([(0, b"a" * 600)])
    (path,) = folder.iterdir()
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    with pytest.raises(OSError, match="quota"):
        await two.write([(0, b"b" * 600)])
    assert await one.read([(590, 10), (0, 5)]) == b"a" * 15
    await one.aclose()
    await one.aclose()
    assert quota.used_bytes == 0
    assert await one.read([(0, 5)]) == b""
    with pytest.raises(OSError, match="closed"):
        await one.write([(0, b"x")])
    await two.write([(0, b"b" * 600)])
    await two.aclose()
    assert list(folder.iterdir()) == []


def test_what_a_dead_host_has_left_is_swept(tmp_path: Path) -> None:
    for name in ("output.1", "output.77", "starts"):
        (tmp_path / name).write_text("left")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["starts"]
    sweep(tmp_path / "missing")


async def test_a_folder_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    file = SpillFile(tmp_path / "missing" / "sessions", SpillQuota(1000), trio.CapacityLimiter(1))
    with pytest.raises(OSError):
        await file.write([(0, b"x")])
    await file.aclose()


async def test_facts_are_separate(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host() as (host, _):
        script = "(sleep 5; echo late; sleep 5) & exit 7"
        async with converse(host, "box", Execute(command=script, command_id="c")) as reader:
            assert (await reader.to_end()).exit_code == 7
        command = (await host.find("box"))._sessions._commands["c"]
        assert command.facts.leader is not None
        assert command.facts.leader.code == 7
        assert not command.facts.stdout_ended
        assert not command.facts.stderr_ended
        assert not command.facts.tree_empty
        await trio.sleep(6)
        assert command.streams["stdout"].end == 5
        await trio.sleep(6)
        facts = command.facts
        assert facts.stdout_ended
        assert facts.stderr_ended
        assert facts.tree_empty


async def test_a_background_child_that_prints_for_ever_does_not_hold_the_exit(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _):
        for pause in ("0.001", "0.01", "0.03"):
            began = trio.current_time()
            outcome = await run(host, "box", f"(while true; do echo x; sleep {pause}; done) & echo leader")
            assert outcome.exit_code == 0
            assert trio.current_time() - began < 0.5
        async with converse(host, "box", Execute(command="(head -c 15000000 /dev/zero) & exit 0")) as reader:
            assert (await reader.to_end()).exit_code == 0


async def test_forgotten_daemons_live_on_and_their_pipes_stay_open(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _):
        await run(host, "box", "(sleep 10; echo into the pipe; echo yes > /tmp/alive) &", command_id="d", ttl_s=1)
        await trio.sleep(5)
        async with converse(host, "box", Reconnect("d")) as reader:
            assert (await reader.to_end()).error.error_type == "SessionExpired"
        await trio.sleep(10)
        assert await host.read_file("box", "/tmp/alive") == b"yes\n"


async def test_a_kill_after_the_exit_takes_the_daemons(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, engine):
        async with converse(host, "box", Execute(command="sleep 1000 & exit 3", command_id="d")) as reader:
            assert (await reader.to_end()).exit_code == 3
            await reader.link.send(Kill())
        await trio.sleep(1)
        (container,) = engine.containers.values()
        assert container.task_count == 0
        async with converse(host, "box", Reconnect("d")) as reader:
            assert (await reader.to_end()).exit_code == 3


async def test_out_of_memory_is_counted_not_guessed(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sandboxrt.host.commands")
    async with fake_host() as (host, _):
        end = (await run(host, "box", "out-of-memory")).end
        assert end == Exit(137, oom_killed=True, reason=blame(137, DEFAULT_LIMITS.mem_bytes))
        assert "1 GiB (mem_bytes=1073741824)" in caplog.text, "the server's log says it, too"
        assert (await run(host, "box", "kill -KILL $$")).end == Exit(137)
        assert (await run(host, "box", "true")).end == Exit(0)


async def test_an_image_without_bash_gets_sh_and_remembers(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(engine=FakeEngine(shells=("/bin/sh",))) as (host, _):
        for _ in range(2):
            assert (await run(host, "box", "echo x")).stdout == "x\n"
        assert "/bin/bash" in (await run(host, "box", "echo x", shell="/bin/bash")).error.error
    async with fake_host(engine=FakeEngine(shells=())) as (host, _):
        assert "neither" in (await run(host, "box", "echo x")).error.error


async def test_spawn_failures_are_explained(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(box=False) as (host, engine):
        await host.create_sandbox(CreateSandbox(name="box", limits=Limits(pids=3)))
        async with converse(host, "box", Execute(command="sleep 9 & sleep 9 & sleep 9")) as reader:
            await reader.started()
            await trio.sleep(1)
            error = (await run(host, "box", "true")).error
            assert "3 on processes is reached" in error.error
        engine.faults.spawn_errno = errno.ENOMEM
        assert "Cannot allocate memory" in (await run(host, "box", "true")).error.error


async def test_a_slow_spawn_may_be_killed_before_it_starts(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(engine=FakeEngine(Faults(spawn_delay_s=5))) as (host, _):
        async with converse(host, "box", Execute(command="sleep 100", command_id="c")) as reader:
            await reader.link.send(Kill())
        async with converse(host, "box", Reconnect("c")) as reader:
            outcome = await reader.to_end()
        assert isinstance(outcome.frames[0], Started)
        assert outcome.exit_code == 137


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(1, 4), (8, 8), (0, 20), (300, 20)])
async def test_a_start_that_does_not_come_about_is_given_up(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock, timeout_s: float, limit_s: float
) -> None:
    bounds = CommandSettings(least_start_s=4, most_start_s=20)
    async with fake_host(engine=FakeEngine(Faults(spawn_delay_s=1000)), command=bounds) as (host, _):
        begun = trio.current_time()
        outcome = await run(host, "box", "true", command_id="c", timeout_s=timeout_s)
        assert outcome.error.error == f"The command did not start within {limit_s} seconds, and was ended"
        assert trio.current_time() - begun == pytest.approx(limit_s, abs=1)
        # It may have run for a moment.
        assert (await run(host, "box", "true", command_id="c")).error.error_type == "SessionExpired"


async def test_finished_sessions_are_bounded_in_number(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(sessions=SessionLimits(finished=5)) as (host, _):
        for number in range(10):
            await run(host, "box", f"echo {number}", command_id=str(number), ttl_s=-1)
        seen = {}
        for number in range(10):
            async with converse(host, "box", Reconnect(str(number))) as reader:
                end = (await reader.to_end()).end
                seen[number] = end.error_type if isinstance(end, ErrorFrame) else "there"
        assert seen == {n: "SessionExpired" if n < 5 else "there" for n in range(10)}


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)


async def test_output_of_finished_commands_moves_to_disk_and_is_there_until_its_time(
    fake_host: OpenFake, tmp_path: Path
) -> None:
    async with fake_host(sessions=SessionLimits(finished_bytes=1_000_000)) as (host, _):
        script = "head -c 600000 /dev/zero; echo end; head -c 300000 /dev/zero >&2"
        for number in range(6):
            await run(host, "box", script, command_id=str(number))
        sessions = (await host.find("box"))._sessions
        await _until(lambda: sum(command.memory_used_bytes for command in sessions._commands.values()) <= 1_000_000)
        assert host.output_bytes()["disk"] >= 5 * 900_000
        for number in range(6):
            async with converse(host, "box", Reconnect(str(number))) as reader:
                outcome = await reader.to_end()
            outcome.check_offsets()
            assert (outcome.stdout, outcome.stderr) == ("\0" * 600_000 + "end\n", "\0" * 300_000)
        assert spill_files(tmp_path)
        await host.delete_sandbox("box")
        assert host.output_bytes()["disk"] == 0
        assert spill_files(tmp_path) == []


def spill_files(state_dir: Path) -> list[Path]:
    return [path for path in state_dir.rglob("output.*") if path.is_file()]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_kept_output_holds_no_descriptor(fake_host: OpenFake, tmp_path: Path) -> None:
    async with fake_host(command=SMALL) as (host, _):
        await run(host, "box", "echo first")
        before = descriptors()
        for number in range(20):
            await run(host, "box", "head -c 500000 /dev/zero", command_id=str(number))
        # Also while a command runs and one is read.
        script = "head -c 500000 /dev/zero; while test ! -e /go; do sleep 0.01; done"
        async with converse(host, "box", Execute(command=script, command_id="runs")) as reader:
            await reader.until("\0" * 450_000)
            assert len(spill_files(tmp_path)) == 21
            assert descriptors() <= before
            await host.write_file("box", "/go", _nothing())
            await reader.to_end()


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


async def test_files_of_forgotten_commands_go_at_once(fake_host: OpenFake, tmp_path: Path) -> None:
    """Also of those that are forgotten while another one's are being removed."""
    async with fake_host(command=SMALL, sessions=SessionLimits(finished=3)) as (host, _):
        before = descriptors()
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for _ in range(30):
                    nursery.start_soon(run, host, "box", "head -c 300000 /dev/zero")
            await _until(lambda: len(spill_files(tmp_path)) == 3 and host.output_bytes()["disk"] <= 3 * 300_000)
            assert host.output_bytes()["disk"] >= 3 * 200_000
            assert descriptors() <= before
        await host.delete_sandbox("box")
        assert spill_files(tmp_path) == []
        assert host.output_bytes()["disk"] == 0


async def test_no_sandbox_takes_all_of_the_disk_for_output(fake_host: OpenFake, tmp_path: Path) -> None:
    async with fake_host(command=SMALL, spill_budget_bytes=4_000_000) as (host, _):
        await host.create_sandbox(CreateSandbox(name="other"))
        script = "head -c 3000000 /dev/zero; echo end"
        await run(host, "box", script, command_id="c")
        assert host.output_bytes()["disk"] <= 2_000_000
        first = await run(host, "other", "head -c 1000000 /dev/zero; echo end", command_id="c")
        async with converse(host, "other", Reconnect("c")) as reader:
            assert (await reader.to_end()).stdout == first.stdout
        async with converse(host, "box", Reconnect("c")) as reader:
            lost = (await reader.to_end()).error
        assert (lost.error_type, lost.stream) == ("ReadOffsetUnavailable", "stdout")


async def test_output_of_a_sandbox_takes_no_more_than_its_disk_has(fake_host: OpenFake) -> None:
    async with fake_host(box=False) as (host, _):
        for size, quota in ((16 * 1024**2, 64 * 1024**2), (1024**3, 1024**3), (64 * 1024**3, 4 * 1024**3)):
            name = f"box{size}"
            await host.create_sandbox(CreateSandbox(name=name, limits=Limits(disk_bytes=size)))
            assert (await host.find(name))._quota.limit_bytes == quota


async def test_a_file_system_keeps_some_room(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path)
    quota = SpillQuota(1000, SpillBudget(1000, least_free_bytes=free.f_blocks * free.f_frsize * 2))
    file = SpillFile(tmp_path, quota, trio.CapacityLimiter(1))
    with pytest.raises(OSError, match="too little room"):
        await file.write([(0, b"x")])
    await file.aclose()
    assert (quota.used_bytes, quota.budget.used_bytes) == (0, 0)


async def test_running_commands_are_bounded(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(sessions=SessionLimits(running=2)) as (host, _):
        async with (
            converse(host, "box", Execute(command="sleep 5")) as one,
            converse(host, "box", Execute(command="sleep 5")) as two,
        ):
            await one.started()
            await two.started()
            assert "limit" in (await run(host, "box", "true")).error.error
        await trio.sleep(6)
        assert (await run(host, "box", "true")).exit_code == 0


async def test_deadlines_of_gone_sessions_do_not_pile_up(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host(sessions=SessionLimits(finished=3)) as (host, _):
        for number in range(40):
            await run(host, "box", "true", command_id=str(number))
        sessions = (await host.find("box"))._sessions
        assert len(sessions._deadlines) <= 8
        assert len(sessions) == 3
        await trio.sleep(700)
        assert len(sessions) == 0


async def test_receive_can_be_cancelled_without_losing_anything(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _):
        script = "for i in a b c d e f; do echo $i; sleep 0.3; done"
        async with converse(host, "box", Execute(command=script)) as reader:
            while not (reader.frames and isinstance(reader.frames[-1], Exit)):
                with trio.move_on_after(0.1):
                    reader.frames.append(await reader.link.receive())
            outcome = await reader.to_end()
        outcome.check_offsets()
        assert outcome.stdout == "a\nb\nc\nd\ne\nf\n"


async def test_one_task_at_a_time_reads_an_attachment(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _):
        attachment = await host.attach("box", Execute(command="sleep 5"))
        await attachment.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(attachment.receive)
            await trio.sleep(1)
            with pytest.raises(trio.BusyResourceError):
                await attachment.receive()
        await attachment.aclose()
        await attachment.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await attachment.receive()
        with pytest.raises(trio.ClosedResourceError):
            await attachment.send(Kill())


async def test_closing_an_attachment_wakes_its_reader(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _):
        attachment = await host.attach("box", Execute(command="sleep 5"))
        await attachment.receive()

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await attachment.receive()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await attachment.aclose()


async def test_a_reader_that_was_there_at_the_end_sees_the_output_up_to_it(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _):
        script = "(sleep 1; echo late) & echo early"
        async with converse(host, "box", Execute(command=script, command_id="c")) as slow:
            await slow.until("early")
            await trio.sleep(3)
            assert (await slow.to_end()).stdout == "early\n"
        async with converse(host, "box", Reconnect("c")) as reader:
            assert (await reader.to_end()).stdout == "early\nlate\n"
