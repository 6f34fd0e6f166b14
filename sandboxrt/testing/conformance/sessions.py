"""Conformance of command sessions: design.md §5, protocol.md §4."""

from __future__ import annotations

import uuid

import trio

from sandboxrt.protocol.exec import (
    CloseStdin,
    ErrorFrame,
    Execute,
    Exit,
    Input,
    Kill,
    Output,
    Reconnect,
    Resize,
    Signal,
    Started,
)
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance.driver import Case, Driver, by_name, converse, eventually, run, sandbox

__all__ = ["SESSION_CASES"]

_CASES: list[Case] = []
_LIMIT_S = 30.0


def _case(function: Case) -> Case:
    _CASES.append(function)
    return function


async def _exists(driver: Driver, name: str, path: str) -> bool:
    return (await run(driver, name, f"cat {path} > /dev/null 2>&1")).exit_code == 0


@_case
async def output_and_exit_code(driver: Driver) -> None:
    """``Started`` first, each stream apart, the exit code last."""
    async with sandbox(driver) as name:
        outcome = await run(driver, name, "echo out; echo err >&2; exit 3", command_id="c1")
        assert isinstance(outcome.frames[0], Started)
        assert outcome.frames[0].command_id == "c1"
        assert outcome.frames[0].pid > 0
        assert (outcome.stdout, outcome.stderr, outcome.exit_code) == ("out\n", "err\n", 3)
        assert (await run(driver, name, "true")).exit_code == 0
        assert (await run(driver, name, "no-such-program")).exit_code == 127


@_case
async def death_by_signal_is_128_plus_its_number(driver: Driver) -> None:
    """The shell's own convention."""
    async with sandbox(driver) as name:
        assert (await run(driver, name, "kill -KILL $$")).exit_code == 137
        assert (await run(driver, name, "kill -TERM $$")).exit_code == 143


@_case
async def offsets_count_the_text_that_is_sent(driver: Driver) -> None:
    """A character cut in the middle is sent whole, an invalid byte as U+FFFD, three bytes."""
    async with sandbox(driver) as name:
        script = r"printf 'a\303'; sleep 0.1; printf '\251\377b'; sleep 0.1; printf '\342\202'"
        outcome = await run(driver, name, script)
        assert outcome.stdout == "aé\ufffdb\ufffd"
        last = [frame for frame in outcome.frames if isinstance(frame, Output)][-1]
        assert last.offset + len(last.data.encode()) == len(outcome.stdout.encode())


@_case
async def a_background_child_does_not_delay_the_exit(driver: Driver) -> None:
    """It holds the pipes; the leader's exit is reported all the same."""
    async with sandbox(driver) as name:
        began = trio.current_time()
        outcome = await run(driver, name, "sleep 25 & echo done")
        assert (outcome.stdout, outcome.exit_code) == ("done\n", 0)
        assert trio.current_time() - began < 5


@_case
async def late_output_is_there_for_later_readers(driver: Driver) -> None:
    """A background child's output goes on being kept."""
    async with sandbox(driver) as name:
        script = "(sleep 0.6; echo late) & echo early"
        assert (await run(driver, name, script, command_id="late")).stdout == "early\n"

        async def both() -> bool:
            async with converse(driver, name, Reconnect("late")) as reader:
                outcome = await reader.to_end()
            outcome.check_offsets()
            assert outcome.exit_code == 0
            return outcome.stdout == "early\nlate\n"

        await eventually(both)


@_case
async def a_daemon_survives_its_command(driver: Driver) -> None:
    """A plain exit ends the leader only."""
    async with sandbox(driver) as name:
        await run(driver, name, "(sleep 0.6; echo yes > /tmp/alive) > /dev/null 2>&1 &")
        await eventually(lambda: _exists(driver, name, "/tmp/alive"))  # noqa: S108  inside the sandbox


@_case
async def kill_takes_the_whole_tree(driver: Driver) -> None:
    """Also what ignores polite signals and runs in the background."""
    async with sandbox(driver) as name:
        script = "trap '' TERM; (sleep 0.7; echo alive > /tmp/tree) & echo go; sleep 25"
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, Execute(command=script)) as reader:
                await reader.until("go")
                await reader.link.send(Kill())
                assert (await reader.to_end()).exit_code == 137
        await trio.sleep(1.0)
        assert not await _exists(driver, name, "/tmp/tree")  # noqa: S108


@_case
async def kill_counts_even_when_the_link_closes_behind_it(driver: Driver) -> None:
    """As the official clients do it."""
    async with sandbox(driver) as name:
        async with converse(driver, name, Execute(command="echo go; sleep 25", command_id="k")) as reader:
            await reader.until("go")
            await reader.link.send(Kill())
        with trio.fail_after(10):
            async with converse(driver, name, Reconnect("k")) as reader:
                assert (await reader.to_end()).exit_code == 137


@_case
async def timeout_ends_the_tree_after_the_partial_output(driver: Driver) -> None:
    """SIGTERM, a grace, SIGKILL; what was printed came before the error."""
    async with sandbox(driver) as name:
        script = "trap '' TERM; (sleep 2.5; echo alive > /tmp/tree) & echo partial; sleep 25"
        outcome = await run(driver, name, script, timeout_s=0.5)
        assert outcome.stdout == "partial\n"
        assert outcome.error.error_type == "CommandTimeout"
        await trio.sleep(2.5)
        assert not await _exists(driver, name, "/tmp/tree")  # noqa: S108


@_case
async def timeout_lets_a_command_end_by_itself_first(driver: Driver) -> None:
    """SIGTERM alone ends what does not ignore it."""
    async with sandbox(driver) as name:
        began = trio.current_time()
        outcome = await run(driver, name, "echo partial; sleep 25", timeout_s=0.4)
        assert outcome.error.error_type == "CommandTimeout"
        assert "0.4" in outcome.error.error
        assert trio.current_time() - began < 10


@_case
async def input_reaches_the_command(driver: Driver) -> None:
    """In order, in its encoding, until its end."""
    async with sandbox(driver) as name:
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, Execute(command="echo ready; cat; echo end")) as reader:
                await reader.until("ready")
                await reader.link.send(Input("héllo\n"))
                await reader.until("héllo\n")
                await reader.link.send(Input("again\n"))
                await reader.link.send(CloseStdin())
                await reader.link.send(Input("too late\n"))
                outcome = await reader.to_end()
        outcome.check_offsets()
        assert (outcome.stdout, outcome.exit_code) == ("ready\nhéllo\nagain\nend\n", 0)


@_case
async def input_may_come_before_the_start(driver: Driver) -> None:
    """A client need not wait for ``Started``."""
    async with sandbox(driver) as name:
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, Execute(command="read A; read B; echo $B$A")) as reader:
                await reader.link.send(Input("1\n"))
                await reader.link.send(Input("2\n"))
                assert (await reader.to_end()).stdout == "21\n"


@_case
async def closed_stdin_is_the_end_of_input(driver: Driver) -> None:
    """From the beginning, if wished."""
    async with sandbox(driver) as name:
        outcome = await run(driver, name, "cat; echo end", close_stdin=True)
        assert outcome.stdout == "end\n"


@_case
async def much_input_is_not_lost(driver: Driver) -> None:
    """Back-pressure holds the sender, and nothing is dropped."""
    async with sandbox(driver) as name:
        text = "0123456789abcdef" * 4096
        with trio.fail_after(_LIMIT_S):
            async with (
                converse(driver, name, Execute(command="cat")) as reader,
                trio.open_nursery() as nursery,
            ):

                async def send() -> None:
                    for _ in range(16):
                        await reader.link.send(Input(text))
                    await reader.link.send(CloseStdin())

                nursery.start_soon(send)
                outcome = await reader.to_end()
        assert outcome.stdout == text * 16


@_case
async def several_readers_each_see_everything(driver: Driver) -> None:
    """Each at its own pace: one that does not read at all delays nobody."""
    async with sandbox(driver) as name:
        size = 3_000_000
        first = Execute(command=f"head -c {size} /dev/zero; echo end >&2", command_id="many")
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, first) as slow, converse(driver, name, Reconnect("many")) as quick:
                outcome = await quick.to_end()
                outcome.check_offsets()
                assert len(outcome.stdout) == size
                outcome = await slow.to_end()
                outcome.check_offsets()
                assert (len(outcome.stdout), outcome.stderr) == (size, "end\n")


@_case
async def a_known_command_id_attaches_and_never_starts_twice(driver: Driver) -> None:
    """Also when two starts arrive at once."""
    async with sandbox(driver) as name:
        first = Execute(command="echo x >> /tmp/starts; cat /tmp/starts; sleep 0.3", command_id=uuid.uuid4().hex)
        seen: list[str] = []

        async def start() -> None:
            async with converse(driver, name, first) as reader:
                seen.append((await reader.to_end()).stdout)

        with trio.fail_after(_LIMIT_S):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(start)
            await start()
        assert seen == ["x\n"] * 4


@_case
async def a_known_command_id_with_another_command_is_refused(driver: Driver) -> None:
    """Two commands cannot have one id."""
    async with sandbox(driver) as name:
        await run(driver, name, "true", command_id="taken")
        assert (await run(driver, name, "false", command_id="taken")).error.error_type == "CommandIdConflict"


@_case
async def reconnect_goes_on_at_the_offsets(driver: Driver) -> None:
    """Nothing lost, nothing repeated, the exit again."""
    async with sandbox(driver) as name:
        await run(driver, name, "printf abcdef; printf xyz >&2; exit 4", command_id="r")
        async with converse(driver, name, Reconnect("r", 2, 3)) as reader:
            outcome = await reader.to_end()
        outcome.check_offsets(2, 3)
        assert (outcome.stdout, outcome.stderr, outcome.exit_code) == ("cdef", "", 4)


@_case
async def bad_reconnects_are_typed_errors(driver: Driver) -> None:
    """An unknown command; an offset that does not exist; one inside a character."""
    async with sandbox(driver) as name:
        await run(driver, name, "echo €", command_id="r")
        expected = {
            Reconnect("nobody"): "CommandNotFound",
            Reconnect("r", 6): "InvalidOffset",
            Reconnect("r", 0, 1): "InvalidOffset",
            Reconnect("r", 1): "InvalidOffset",
        }
        for first, error_type in expected.items():
            async with converse(driver, name, first) as reader:
                assert (await reader.to_end()).error.error_type == error_type


@_case
async def detaching_does_not_end_a_command(driver: Driver) -> None:
    """It goes on, and its output waits."""
    async with sandbox(driver) as name:
        script = "echo one; sleep 0.4; echo two"
        async with converse(driver, name, Execute(command=script, command_id="d")) as reader:
            await reader.until("one")
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, Reconnect("d")) as reader:
                outcome = await reader.to_end()
        assert (outcome.stdout, outcome.exit_code) == ("one\ntwo\n", 0)


@_case
async def kill_on_disconnect(driver: Driver) -> None:
    """When the last reader goes, and not before."""
    async with sandbox(driver) as name:
        first = Execute(command="echo go; sleep 25", command_id="d", kill_on_disconnect=True)
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, first) as one:
                await one.until("go")
                async with converse(driver, name, Reconnect("d")) as two:
                    await two.until("go")
                await trio.sleep(0.2)
                with trio.move_on_after(0.1) as scope:
                    await one.link.receive()
                assert scope.cancelled_caught, "killed while a reader was still there"
            async with converse(driver, name, Reconnect("d")) as reader:
                assert (await reader.to_end()).exit_code == 137


@_case
async def idle_commands_are_killed(driver: Driver) -> None:
    """Only while nobody is attached; -1 means never."""
    async with sandbox(driver) as name:
        first = Execute(command="echo go; sleep 25", command_id="idle", idle_timeout_s=0.5)
        never = Execute(command="echo go; sleep 25", command_id="never", idle_timeout_s=-1)
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, first) as reader, converse(driver, name, never) as other:
                await other.until("go")
                await reader.until("go")
                await trio.sleep(0.9)
            await trio.sleep(1.2)
            async with converse(driver, name, Reconnect("idle")) as reader:
                assert (await reader.to_end()).exit_code == 137
            async with converse(driver, name, Reconnect("never")) as reader:
                await reader.until("go")
                await reader.link.send(Kill())
                await reader.to_end()


@_case
async def finished_sessions_expire(driver: Driver) -> None:
    """After their TTL; -1 keeps them."""
    async with sandbox(driver) as name:
        await run(driver, name, "echo x", command_id="kept", ttl_s=-1)
        await run(driver, name, "echo x", command_id="short", ttl_s=1)
        async with converse(driver, name, Reconnect("short")) as reader:
            assert (await reader.to_end()).stdout == "x\n"
        await trio.sleep(1.5)
        async with converse(driver, name, Reconnect("short")) as reader:
            assert (await reader.to_end()).error.error_type == "SessionExpired"
        async with converse(driver, name, Reconnect("kept")) as reader:
            assert (await reader.to_end()).stdout == "x\n"


@_case
async def what_cannot_start_is_explained(driver: Driver) -> None:
    """A sentence that names the value, never a traceback."""
    async with sandbox(driver) as name:
        wrong: list[tuple[dict[str, str], str]] = [
            ({"shell": "/bin/no-shell"}, "/bin/no-shell"),
            ({"cwd": "/no/folder"}, "/no/folder"),
            ({"cwd": "/etc/passwd"}, "/etc/passwd"),
            ({"user": "nobody-of-that-name"}, "nobody-of-that-name"),
            ({"user": "root:no-group"}, "no-group"),
            ({"user": "70000"}, "70000"),
        ]
        for options, word in wrong:
            error = (await run(driver, name, "true", **options)).error
            assert error.error_type == "CommandError"
            assert word in error.error
            assert "Traceback" not in error.error
        assert "NUL" in (await run(driver, name, "echo \0")).error.error


@_case
async def a_failed_start_may_be_tried_again(driver: Driver) -> None:
    """Nothing was started, so the id is free."""
    async with sandbox(driver) as name:
        await run(driver, name, "pwd", command_id="again", cwd="/tmp/made-later")  # noqa: S108
        await run(driver, name, "mkdir -p /tmp/made-later")
        outcome = await run(driver, name, "pwd", command_id="again", cwd="/tmp/made-later")  # noqa: S108
        assert outcome.stdout == "/tmp/made-later\n"  # noqa: S108


@_case
async def environment_folder_and_user(driver: Driver) -> None:
    """The sandbox's, then the caller's."""
    async with sandbox(driver, env={"A": "sandbox", "B": "sandbox"}) as name:
        script = "printenv A; printenv B; printenv HOME; printenv PATH > /dev/null && pwd; id -u"
        outcome = await run(driver, name, script, env={"B": "call"}, cwd="/tmp")  # noqa: S108
        assert outcome.stdout == "sandbox\ncall\n/root\n/tmp\n0\n"
        outcome = await run(driver, name, "id -u; printenv HOME", user="1234:5", cwd="/")
        assert outcome.stdout == "1234\n/\n"
        error = (await run(driver, name, "true", user="1234")).error
        assert "'1234' may not enter" in error.error
        assert "'/root'" in error.error


@_case
async def terminals(driver: Driver) -> None:
    """One stream, a size that can change, and no standard error."""
    async with sandbox(driver) as name:
        script = "stty size; echo err >&2; read X; stty size; tty"
        first = Execute(command=script, pty=True, columns=100, rows=30)
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, first) as reader:
                await reader.until("err")
                await reader.link.send(Resize(120, 40))
                await reader.link.send(Input("\n"))
                outcome = await reader.to_end()
        outcome.check_offsets()
        assert outcome.stderr == ""
        assert [line for line in outcome.stdout.splitlines() if line][:2] == ["30 100", "err"]
        assert "40 120" in outcome.stdout
        assert "/dev/pts/" in outcome.stdout
        assert (await run(driver, name, "tty")).exit_code != 0


@_case
async def a_terminal_knows_end_of_input(driver: Driver) -> None:
    """^D."""
    async with sandbox(driver) as name:
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, Execute(command="echo go; cat; echo end", pty=True)) as reader:
                await reader.until("go")
                await reader.link.send(CloseStdin())
                assert (await reader.to_end()).exit_code == 0


@_case
async def a_terminal_knows_interrupt(driver: Driver) -> None:
    """^C."""
    async with sandbox(driver) as name:
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, Execute(command="echo go; exec sleep 25", pty=True)) as reader:
                await reader.until("go")
                await trio.sleep(0.2)
                await reader.link.send(Input("\x03"))
                assert (await reader.to_end()).exit_code == 130


@_case
async def signals(driver: Driver) -> None:
    """Between our own ends."""
    async with sandbox(driver) as name:
        with trio.fail_after(_LIMIT_S):
            async with converse(driver, name, Execute(command="echo go; exec sleep 25")) as reader:
                await reader.until("go")
                await trio.sleep(0.2)
                await reader.link.send(Signal(15))
                assert (await reader.to_end()).exit_code == 143


@_case
async def deleting_the_sandbox_ends_its_commands(driver: Driver) -> None:
    """With an error that says so."""
    async with sandbox(driver) as survivor:
        with trio.fail_after(_LIMIT_S):
            async with sandbox(driver) as name, converse(driver, name, Execute(command="echo go; sleep 25")) as reader:
                await reader.until("go")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(driver.delete_sandbox, name)
                    end = (await reader.to_end()).end
                assert isinstance(end, ErrorFrame)
                assert end.error_type == "SandboxDeleted"
                await driver.create_sandbox(CreateSandbox(name=name))
        assert isinstance((await run(driver, survivor, "echo still here")).end, Exit)


@_case
async def many_commands_at_once(driver: Driver) -> None:
    """Each has its own streams and end."""
    async with sandbox(driver) as name:
        codes: list[int] = []

        async def one(number: int) -> None:
            outcome = await run(driver, name, f"echo {number}; exit {number}")
            assert outcome.stdout == f"{number}\n", f"command {number}: {outcome}"
            codes.append(outcome.exit_code)

        with trio.fail_after(_LIMIT_S):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(one, number)
        assert sorted(codes) == list(range(20))


SESSION_CASES = by_name(_CASES)
