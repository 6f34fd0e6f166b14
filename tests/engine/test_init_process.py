"""Programs started through a container's first process."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from sandboxrt.engine.base import ExecFailedError, ExitStatus, Identity, ProcessSpec, SpawnFailedError
from tests.engine.init_kit import (
    ENV,
    USER,
    Inside,
    children,
    container,
    finish,
    no_leaks,
    read_all,
    read_until,
    shell,
    wait_for,
)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_leaks():
        yield


def init_pid(inside: Inside) -> int:
    (pid,) = children(inside.launcher.pid)
    return pid


async def test_streams_environment_directory_and_exit_code() -> None:
    async with container() as inside:
        status, out, err = await inside.run(
            'cat; echo "$GREETING"; pwd; echo oops >&2; exit 7',
            stdin=b"typed\n",
            cwd="/usr/bin",
            env={**ENV, "GREETING": "grüß\ndich", "EMPTY": ""},
        )
        assert (status, out, err) == (ExitStatus(code=7), "typed\ngrüß\ndich\n/usr/bin\n".encode(), b"oops\n")
        assert (await inside.run("env | sort", env={"A": "1", "PATH": "/bin"}))[1] == b"A=1\nPATH=/bin\nPWD=/\n"
        assert (await inside.run("cat; readlink /proc/self/fd/0"))[1] == b"/dev/null\n"


async def test_exit_by_signal() -> None:
    async with container() as inside:
        for signum in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
            assert (await inside.run(f"kill -{int(signum)} $$"))[0] == ExitStatus(signal=signum)


async def test_signals_have_their_defaults_and_nothing_is_blocked_inside() -> None:
    async with container() as inside:
        _, out, _ = await inside.run("grep -E '^Sig(Blk|Ign)|^ShdPnd' /proc/self/status")
        assert [line.split()[1] for line in out.splitlines()] == [b"0" * 16] * 3


async def test_only_the_standard_streams_are_open_and_they_can_be_reopened() -> None:
    async with container() as inside:
        for who in (Identity(), USER):
            _, out, err = await inside.run("ls /proc/self/fd; echo to-err >/dev/stderr", identity=who)
            assert (out, err) == (b"0\n1\n2\n3\n", b"to-err\n")  # 3 is ls reading the folder


async def test_identity() -> None:
    async with container() as inside:
        script = "id -u; id -g; id -G; grep CapEff /proc/self/status"
        _, out, _ = await inside.run(script, identity=Identity(1000, 1001, (5, 44, 65000)))
        assert out.split() == [b"1000", b"1001", b"1001", b"5", b"44", b"65000", b"CapEff:", b"0" * 16]
        assert (await inside.run("id -G", identity=USER))[1] == b"1000\n"


async def test_what_cannot_be_started_says_where_and_why() -> None:
    async with container() as inside:

        async def refusal(**changes: object) -> tuple[str, int, str]:
            plain = ProcessSpec(argv=("/bin/true",), env=ENV, cwd="/", identity=USER)
            with pytest.raises(ExecFailedError) as caught:
                await inside.channel.spawn(attrs.evolve(plain, **changes), None)
            return caught.value.stage, caught.value.errno, caught.value.subject

        assert await refusal(cwd="/nowhere") == ("chdir", errno.ENOENT, "/nowhere")
        assert await refusal(cwd="/etc/passwd") == ("chdir", errno.ENOTDIR, "/etc/passwd")
        assert await refusal(argv=("no-such-program",)) == ("exec", errno.ENOENT, "no-such-program")
        assert await refusal(argv=("/bin/no-such",)) == ("exec", errno.ENOENT, "/bin/no-such")
        assert await refusal(argv=("",)) == ("exec", errno.ENOENT, "")
        assert await refusal(argv=("/etc",)) == ("exec", errno.EACCES, "/etc")
        assert await refusal(argv=("passwd",), env={"PATH": "/nope:/etc:/also-nope"}) == (
            "exec",
            errno.EACCES,
            "passwd",
        )
        assert await refusal(argv=("/bin/true", "x" * 200_000)) == ("exec", errno.E2BIG, "/bin/true")
        assert await refusal(identity=Identity(70000, 0)) == ("identity", errno.EINVAL, "70000:0")
        await inside.run("printf '\\001\\002\\003 no program' >/tmp/junk; chmod +x /tmp/junk")
        assert await refusal(argv=("/tmp/junk",)) == ("exec", errno.ENOEXEC, "/tmp/junk")


async def test_path_lookup_uses_the_given_environment() -> None:
    async with container() as inside:
        await inside.run("mkdir /tmp/a; printf '#!/bin/sh\\necho found $1' >/tmp/a/tool; chmod +x /tmp/a/tool")
        for path, cwd in (("/nope:/tmp/a", "/"), (":/nope", "/tmp/a"), ("a", "/tmp")):
            spec = ProcessSpec(argv=("tool", "it"), env={"PATH": path}, cwd=cwd, identity=USER)
            process = await inside.channel.spawn(spec, None)
            assert await read_all(process.stdout) == b"found it\n"
            assert await finish(process) == ExitStatus(code=0)
        spec = ProcessSpec(argv=("true",), env={}, cwd="/", identity=USER)
        assert await finish(await inside.channel.spawn(spec, None)) == ExitStatus(code=0)


async def test_bad_arguments_are_refused_before_anything_starts() -> None:
    plain = ProcessSpec(argv=("/bin/true",), env=ENV, cwd="/", identity=USER)
    async with container() as inside:
        for bad in (
            attrs.evolve(plain, argv=()),
            attrs.evolve(plain, argv=("a\0b",)),
            attrs.evolve(plain, env={"A=B": "c"}),
            attrs.evolve(plain, cwd="relative"),
            attrs.evolve(plain, pty=(80, 70000)),
            attrs.evolve(plain, identity=Identity(0, 0, tuple(range(65)))),
            attrs.evolve(plain, argv=("/bin/true", *["y" * 100_000] * 100)),
        ):
            with pytest.raises(ValueError, match=r"."):
                await inside.channel.spawn(bad, None)


async def test_signals_reach_the_process_group_and_never_another_command() -> None:
    async with container() as inside:
        other = await inside.channel.spawn(shell("sleep 100"), None)
        process = await inside.channel.spawn(
            shell("trap 'echo got; exit 5' USR1; echo up; while :; do sleep 0.05; done"), None
        )
        await read_until(process.stdout, b"up")
        await process.signal(signal.SIGUSR1)
        assert await read_all(process.stdout) == b"got\n"
        assert await finish(process) == ExitStatus(code=5)
        await process.signal(signal.SIGKILL)  # of a leader that was reaped: nothing
        process = await inside.channel.spawn(shell("sleep 100 & sleep 100 & wait"), None)
        await process.kill_tree()
        assert await read_all(process.stdout) == b""
        assert await finish(process) == ExitStatus(signal=9)
        with trio.move_on_after(0.05):
            await other.wait()
            raise AssertionError("the other command was hit")
        await other.aclose()


async def test_daemons_outlive_their_command_and_are_reaped_silently() -> None:
    async with container() as inside:
        status, out, _ = await inside.run(
            "setsid sh -c 'sleep 0.3; echo done >/tmp/mark' >/dev/null 2>&1 & echo started"
        )
        assert (status, out) == (ExitStatus(code=0), b"started\n")
        with trio.fail_after(10):
            while (await inside.run("cat /tmp/mark"))[1] != b"done\n":
                await trio.sleep(0.02)
            while children(init_pid(inside)):
                await trio.sleep(0.02)


async def test_an_exit_does_not_wait_for_pipes_that_others_hold() -> None:
    async with container() as inside:
        process = await inside.channel.spawn(shell("sleep 1000 & exit 4"), None)
        with trio.fail_after(5):
            assert await process.wait() == ExitStatus(code=4)
        await process.aclose()


async def test_three_hundred_at_once() -> None:
    results: list[tuple[ExitStatus, bytes, bytes]] = []

    async def one(inside: Inside, number: int) -> None:
        results.append(await inside.run(f"cat; exit {number % 7}", stdin=b"%d" % number))

    async with container() as inside:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(one, inside, number)
        assert sorted((int(out), status.code) for status, out, _ in results) == [(n, n % 7) for n in range(300)]


async def test_more_leaders_than_the_table_has_room_for() -> None:
    spec = ProcessSpec(argv=("/bin/sleep", "1000"), env=ENV, cwd="/", identity=USER, stdin=False)
    async with container() as inside:
        running = [await inside.channel.spawn(spec, None) for _ in range(1024)]
        with pytest.raises(SpawnFailedError) as caught:
            await inside.channel.spawn(spec, None)
        assert caught.value.errno == errno.EAGAIN
        await running.pop().aclose()
        running.append(await inside.channel.spawn(spec, None))
        for process in running:
            await process.aclose()
        assert (await inside.run("echo fine"))[1] == b"fine\n"


async def test_a_failing_fork_is_an_error_with_its_reason() -> None:
    async with container() as inside:
        pid = init_pid(inside)
        before = resource.prlimit(pid, resource.RLIMIT_NPROC)
        resource.prlimit(pid, resource.RLIMIT_NPROC, (1, before[1]))
        with pytest.raises(SpawnFailedError) as caught:
            await inside.channel.spawn(shell("true"), None)
        assert caught.value.errno == errno.EAGAIN
        resource.prlimit(pid, resource.RLIMIT_NPROC, before)
        assert (await inside.run("echo fine"))[1] == b"fine\n"


async def test_commands_have_a_raised_oom_score_and_the_first_process_has_not() -> None:
    async with container(oom_score_adj=400) as inside:
        assert (await inside.run("cat /proc/self/oom_score_adj /proc/1/oom_score_adj"))[1] == b"400\n0\n"


async def test_the_first_process_cannot_be_looked_into_traced_or_killed() -> None:
    async with container() as inside:
        look = (
            "for name in mem environ maps fd/0 exe root cwd; do "
            "(ls /proc/PID/$name/ || readlink /proc/PID/$name || head -c 1 /proc/PID/$name) >/dev/null 2>&1 "
            "&& echo open: $name; done; "
        )
        assert b"open: maps" in (await inside.run(look.replace("PID", "self")))[1]
        _, out, _ = await inside.run(look.replace("PID", "1") + "kill -9 1; kill -TERM 1; echo alive")
        assert out == b"alive\n"
        assert (await inside.run("echo fine"))[1] == b"fine\n"


async def test_the_end_of_the_host_ends_everything() -> None:
    async with container() as inside:
        process = await inside.channel.spawn(shell("trap '' TERM; setsid sleep 1000 & sleep 1000"), None)
        inside.channel.close()
        with trio.fail_after(5):
            assert await process.wait() == ExitStatus(signal=9)
            assert await inside.channel.wait_dead() == "closed by its owner"
        await process.aclose()
        assert await trio.to_thread.run_sync(wait_for, inside.launcher) == 0
        with pytest.raises(SpawnFailedError, match="dead"):
            await inside.channel.spawn(shell("true"), None)


async def test_the_death_of_the_first_process_is_noticed() -> None:
    async with container() as inside:
        process = await inside.channel.spawn(shell("sleep 1000"), None)
        os.kill(init_pid(inside), signal.SIGKILL)
        with trio.fail_after(5):
            assert await process.wait() == ExitStatus(signal=9)
            assert await inside.channel.wait_dead() == "the container's first process ended"
        await process.aclose()


@attrs.define
class HostGroup:
    """Holds a command together by the session of its leader: enough to see that the seam is used rightly."""

    pids: list[int] = attrs.field(factory=list)
    calls: list[str] = attrs.field(factory=list)
    seen_program: str = ""
    fail: OSError | None = None
    kill_first: bool = False

    async def add(self, host_pid: int) -> None:
        if self.fail:
            raise self.fail
        self.pids.append(host_pid)
        self.seen_program = Path(f"/proc/{host_pid}/cmdline").read_text()
        if self.kill_first:
            os.kill(host_pid, signal.SIGKILL)
        await trio.sleep(0.05)

    async def signal(self, signum: int) -> None:
        self.calls.append(f"signal {signum}")
        await trio.lowlevel.checkpoint()

    async def kill(self) -> None:
        self.calls.append("kill")
        for pid in self.pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
        await trio.lowlevel.checkpoint()

    async def wait_empty(self) -> None:
        self.calls.append("wait_empty")
        await trio.lowlevel.checkpoint()

    async def remove(self) -> None:
        self.calls.append("remove")
        await trio.lowlevel.checkpoint()


async def test_a_command_is_in_its_group_before_it_runs() -> None:
    async with container() as inside:
        group = HostGroup()
        process = await inside.channel.spawn(shell("sleep 1000"), group)
        assert group.seen_program == "init\0"  # still the waiting child
        assert "sleep" in Path(f"/proc/{group.pids[0]}/cmdline").read_text()
        line = next(x for x in Path(f"/proc/{group.pids[0]}/status").read_text().splitlines() if x.startswith("NSpid"))
        assert line.split()[-1] == str(process.pid)
        await process.signal(signal.SIGHUP)
        await process.aclose()
        await process.aclose()
        assert group.calls == ["signal 1", "kill", "wait_empty", "remove"]


async def test_a_group_that_cannot_be_joined_leaves_nothing() -> None:
    async with container() as inside:
        for group in (HostGroup(fail=OSError(errno.EBUSY, "busy")), HostGroup(kill_first=True)):
            with pytest.raises(SpawnFailedError):
                await inside.channel.spawn(shell("sleep 1000"), group)
            assert group.calls == ["remove"]
            assert not children(init_pid(inside))
        group = HostGroup()
        with pytest.raises(ExecFailedError):
            await inside.channel.spawn(ProcessSpec(argv=("/no",), env=ENV, cwd="/", identity=USER), group)
        assert group.calls == ["kill", "wait_empty", "remove"]
