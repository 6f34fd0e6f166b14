"""The exec strategy without an init, in real containers: crun, where the host can group processes, and gVisor."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.base import (
    ExecFailedError,
    ExitStatus,
    Feature,
    FileError,
    FileErrorKind,
    ProcessSpec,
    SpawnFailedError,
)
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.engine.runtime_exec import ExecStrategy
from sandboxrt.models import Isolation, Limits
from tests.engine.oci_kit import ENV, ROOT, USER, Workplace, output, processes_of, run, settled

pytestmark = [pytest.mark.container, pytest.mark.timeout(60)]

RUNTIMES = ("crun", "runsc")
MAX_STEPS = 200
# Debian's gVisor does not know the statx flags that its ls and stat use.
LIST_OPT = "python3 -c \"import os; print(sorted(os.listdir('/opt')))\""


def spec_of(script: str, **changes: object) -> ProcessSpec:
    values = {"argv": ("/bin/sh", "-c", script), "env": ENV, "cwd": "/", "identity": ROOT, **changes}
    return ProcessSpec(**values)  # type: ignore[arg-type]


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """One for all, so that each runtime is tried out once."""
    return Workplace.make(tmp_path_factory.mktemp("runtime_exec"))


@pytest.fixture(params=RUNTIMES)
async def container(request: pytest.FixtureRequest, workplace: Workplace) -> AsyncIterator[OciContainer]:
    """A container of each runtime; afterwards nothing of it, and no process of the runtime's, may be left."""
    before = children()
    async with OciEngine(workplace.folder, request.param, ExecStrategy.RUNTIME) as engine:
        spec = workplace.spec(limits=Limits(disk_bytes=None))
        made = await engine.create(spec)
        try:
            yield made
        finally:
            await made.close()
            await engine.discard(spec.state_dir, spec.id)
    assert await settled(workplace) == []
    assert children() <= before


def is_gvisor(container: OciContainer) -> bool:
    return container.report.has(Isolation.GUEST_KERNEL)


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


# -- programs ----------------------------------------------------------------------------------------------------------


async def test_what_it_declares_is_what_the_runtime_can(container: OciContainer) -> None:
    always = {Feature.OWN_PTY, Feature.PORTS}
    native = {Feature.TERMINAL_EOF, Feature.TREE_KILL, Feature.FREEZE}
    assert container.features == (always if is_gvisor(container) else always | native)
    assert (await output(container, "cat /proc/1/comm")) in (".init", "init")


async def test_streams_exits_and_signals(container: OciContainer) -> None:
    process = await container.spawn(spec_of("cat; echo err >&2; exit 7"))
    assert process.pid > 1
    assert process.stdin is not None
    assert process.stderr is not None
    await process.stdin.send_all(b"hello")
    await process.stdin.aclose()
    assert await read_all(process.stdout) == b"hello"
    assert await read_all(process.stderr) == b"err\n"
    assert await process.wait() == ExitStatus(code=7)
    await process.aclose()
    process = await container.spawn(spec_of("kill -TERM $$", stdin=False))
    assert process.stdin is None
    assert (await process.wait()).exit_code == 143
    await process.aclose()


async def test_identity_environment_and_folder(container: OciContainer) -> None:
    shown = spec_of("id -u; id -G; pwd; echo $A; cat; cd /proc/self/fd; echo * >&2")
    process = await container.spawn(
        ProcessSpec(argv=shown.argv, env={**ENV, "A": "b c"}, cwd="/tmp", identity=USER, stdin=True)
    )
    assert process.stdin is not None
    assert process.stderr is not None
    await process.stdin.send_all(b"typed\n")
    await process.stdin.aclose()
    printed = (await read_all(process.stdout)).decode().split("\n")
    assert printed[:5] == ["1000", "1000", "/tmp", "b c", "typed"]
    descriptors = (await read_all(process.stderr)).split()
    assert len(descriptors) <= 4, "descriptors leaked into the program"
    await process.aclose()


async def test_what_cannot_start_says_at_which_stage(container: OciContainer) -> None:
    for changes, stage in (
        ({"cwd": "/nowhere"}, "chdir"),
        ({"argv": ("/no/such/program",)}, "exec"),
        ({"argv": ("no-such-program",)}, "exec"),
        ({"argv": ("/etc/hostname",)}, "exec"),
        ({"cwd": "/root/private", "identity": USER}, "chdir"),
    ):
        with pytest.raises(ExecFailedError) as caught:
            await container.spawn(spec_of("", **changes))
        assert caught.value.stage == stage
    with pytest.raises(ValueError, match="NUL"):
        await container.spawn(spec_of("echo \0"))


async def test_a_slow_reader_holds_a_bounded_amount_and_loses_nothing(container: OciContainer) -> None:
    size = 6 << 20
    process = await container.spawn(spec_of(f"head -c {size} /dev/zero | tr '\\0' x; echo late >&2; exec cat"))
    await trio.sleep(0.5)
    held = process.stdout._data  # type: ignore[attr-defined]
    assert 0 < len(held) <= 1 << 20
    found = hashlib.sha256()
    count = 0
    while count < size:
        chunk = await process.stdout.receive_some(100_000)
        found.update(chunk)
        count += len(chunk)
    assert found.digest() == hashlib.sha256(b"x" * size).digest()
    await process.aclose()


async def test_an_exit_comes_behind_what_its_leader_wrote(container: OciContainer) -> None:
    """Also where the relay may not send it all at once, and another process keeps the pipes open."""
    size = (1 << 20) + 40_000
    process = await container.spawn(spec_of(f"sleep 100 & head -c {size} /dev/zero; echo err >&2; exit 7", stdin=False))
    assert process.stderr is not None
    try:
        with trio.move_on_after(1):
            await process.wait()
        got = len(await process.stdout.receive_some(500_000))
        with trio.fail_after(20):
            assert (await process.wait()).code == 7
        assert got + len(process.stdout._data) == size  # type: ignore[attr-defined]
        assert await process.stderr.receive_some() == b"err\n"
    finally:
        await process.aclose()


async def test_input_waits_for_the_reader_and_orders_do_not(container: OciContainer) -> None:
    process = await container.spawn(spec_of("exec sleep 100"))
    assert process.stdin is not None
    sent = 0
    with trio.move_on_after(0.5):
        while True:
            await process.stdin.send_all(bytes(1 << 16))
            sent += 1 << 16
    assert 0 < sent < 1 << 20
    with trio.fail_after(5):
        await process.signal(signal.SIGTERM)
        assert await process.wait() == ExitStatus(signal=15)
    await process.aclose()
    process = await container.spawn(spec_of("exec <&-; echo closed; sleep 100"))
    assert await process.stdout.receive_some() == b"closed\n"
    assert process.stdin is not None
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        for _ in range(100):
            await process.stdin.send_all(bytes(1 << 16))
    await process.aclose()


async def test_a_closed_output_ends_who_writes_to_it(container: OciContainer) -> None:
    process = await container.spawn(spec_of("exec yes"))
    assert await process.stdout.receive_some(10)
    await process.stdout.aclose()
    with trio.fail_after(5):
        assert await process.wait() == ExitStatus(signal=signal.SIGPIPE)
    with pytest.raises(trio.ClosedResourceError):
        await process.stdout.receive_some()
    await process.aclose()


async def test_a_kill_takes_what_was_declared(container: OciContainer) -> None:
    script = "sleep 1000 & setsid sh -c 'echo $$; exec sleep 1001' & wait"
    process = await container.spawn(spec_of(script))
    hidden = int((await process.stdout.receive_some()).split()[0])
    with trio.fail_after(5):
        await process.kill_tree()
        assert await process.wait() == ExitStatus(signal=9)
        await process.wait_tree()
    await process.kill_tree()
    await process.aclose()
    left = await output(container, "grep -l 'sleep' /proc/[0-9]*/comm 2>/dev/null | cut -d/ -f3; true")
    assert left.split() == ([] if Feature.TREE_KILL in container.features else [str(hidden)])


async def test_a_daemon_outlives_its_command(container: OciContainer) -> None:
    process = await container.spawn(spec_of("(sleep 0.4; echo late) & echo now"))
    assert await process.stdout.receive_some() == b"now\n"
    with trio.fail_after(0.35):
        assert await process.wait() == ExitStatus(code=0)
    assert await read_all(process.stdout) == b"late\n"
    await process.aclose()


async def test_a_terminal_of_its_own(container: OciContainer) -> None:
    script = "tty; stty size; trap 'stty size' WINCH; read line; echo got $line; read line || true; read line"
    process = await container.spawn(spec_of(script, argv=("/bin/bash", "-c", script), pty=(90, 30), identity=USER))
    assert process.stderr is None
    assert process.stdin is not None
    shown = bytearray()

    async def until(text: bytes) -> None:
        with trio.fail_after(10):
            while text not in shown:
                shown.extend(await process.stdout.receive_some())

    await until(b"30 90\r\n")
    assert shown.startswith(b"/dev/pts/")
    await process.stdin.send_all(b"abc\n")
    await until(b"got abc\r\n")
    await process.resize(100, 40)
    await process.stdin.send_all(b"\n")
    await until(b"40 100\r\n")
    await trio.sleep(0.3)  # a shell that waits for a child would leave the interrupt to the child
    await process.stdin.send_all(b"\x03")
    with trio.fail_after(5):
        assert (await process.wait()).exit_code == 130
        assert await process.stdout.receive_some() in (b"", b"^C")
    await process.aclose()


# -- files -------------------------------------------------------------------------------------------------------------


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await trio.lowlevel.checkpoint()
        yield part


async def test_files_are_replaced_at_once_and_read_in_pieces(container: OciContainer) -> None:
    content = os.urandom(700_000)
    await container.replace_file("/opt/a/b/c", chunks(content[:300_000], b"", content[300_000:]), ROOT)
    file = await container.open_file("/opt/a/b/c", ROOT)
    assert file.stat.size_bytes == len(content)
    assert file.stat.mtime_ns > 10**18
    found = b""
    while piece := await file.read(len(found), 100_000):
        found += piece
    assert found == content
    assert await file.read(699_990, 1000) == content[-10:]
    await file.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await file.read(0, 1)
    await output(container, "chmod 755 /opt/a/b/c; ln -s b/c /opt/a/link")
    await container.replace_file("/opt/a/link", chunks(b"new"), ROOT)
    assert await output(container, "cat /opt/a/b/c") == "new"
    look = "import os; print(oct(os.stat('/opt/a/b/c').st_mode), os.readlink('/opt/a/link'), os.listdir('/opt/a/b'))"
    assert await output(container, f'python3 -c "{look}"') == "0o100755 b/c ['c']"


async def test_file_errors_have_their_kind(container: OciContainer) -> None:
    await output(container, "mkdir -m 700 /opt/secret; echo x > /opt/file; mkfifo /opt/pipe; ln -s loop /opt/loop")
    long = "/opt/" + "n" * 300
    for path, kind in (
        ("/nowhere", FileErrorKind.NOT_FOUND),
        ("/opt", FileErrorKind.IS_DIRECTORY),
        ("/opt/file/below", FileErrorKind.NOT_A_DIRECTORY),
        ("/opt/pipe", FileErrorKind.NOT_REGULAR),
        ("/dev/null", FileErrorKind.NOT_REGULAR),
        ("/opt/secret/x", FileErrorKind.PERMISSION),
        ("/opt/loop", FileErrorKind.LOOP),
        (long, FileErrorKind.NAME_TOO_LONG),
        ("/proc/version", FileErrorKind.PERMISSION),
    ):
        with pytest.raises(FileError) as caught:
            await container.open_file(path, USER)
        assert caught.value.kind is kind, path
    for path, kind in (
        ("/opt", FileErrorKind.IS_DIRECTORY),
        ("/opt/file/below", FileErrorKind.NOT_A_DIRECTORY),
        ("/opt/secret/x", FileErrorKind.PERMISSION),
        ("/opt/pipe", FileErrorKind.NOT_REGULAR),
    ):
        with pytest.raises(FileError) as caught:
            await container.replace_file(path, chunks(b"x"), USER)
        assert caught.value.kind is kind, path


async def test_an_abandoned_replacement_leaves_the_old_content(container: OciContainer) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise LookupError("the caller's own")

    await output(container, "echo old > /opt/file")
    with pytest.raises(LookupError):
        await container.replace_file("/opt/file", failing(), ROOT)
    assert await output(container, f"cat /opt/file; {LIST_OPT}") == "old\n['file']"


async def test_no_space_is_an_error_of_its_own(container: OciContainer) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(1 << 20)

    with pytest.raises(FileError) as caught:
        await container.replace_file("/dev/shm/big", endless(), ROOT)
    assert caught.value.kind is FileErrorKind.NO_SPACE


# -- ports -------------------------------------------------------------------------------------------------------------

SERVER = """
import socket, sys
s = socket.create_server(("127.0.0.1", 8001))
print("listening", flush=True)
while True:
    c, _ = s.accept()
    got = b""
    while piece := c.recv(65536):
        got += piece
    c.sendall(got[::-1])
    c.close()
"""


@pytest.mark.parametrize("container", ["crun", "runc", "runsc"], indirect=True)
async def test_ports_are_reached_and_refused(container: OciContainer) -> None:
    before = children()
    process = await container.spawn(spec_of("", argv=("/usr/bin/python3", "-c", SERVER)))
    assert await process.stdout.receive_some() == b"listening\n"
    data = os.urandom(500_000)
    for _ in range(2):
        stream = await container.connect(8001)
        with trio.fail_after(10):
            await stream.send_all(data)
            await stream.send_eof()
            assert await read_all(stream) == data[::-1]
        await stream.aclose()
    idle = await container.connect(8001)
    await idle.aclose()
    with pytest.raises(ConnectionRefusedError):
        await container.connect(8002)
    await process.aclose()
    with trio.fail_after(5):
        while not children() <= before:
            await trio.sleep(0.02)


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_the_container_ends_its_commands(container: OciContainer) -> None:
    process = await container.spawn(spec_of("setsid sleep 1000 & sleep 1000"))
    file = await container.open_file("/etc/hostname", ROOT)
    await container.close()
    with trio.fail_after(5):
        assert await process.wait() == ExitStatus(signal=9)
        assert "owner" in await container.wait_dead()
    with pytest.raises(SpawnFailedError):
        await container.spawn(spec_of("true"))
    with pytest.raises(FileError):
        await file.read(0, 10)
    await file.aclose()
    await process.aclose()


@pytest.mark.parametrize("container", ["crun"], indirect=True)
async def test_a_relay_that_was_stopped_from_inside_is_given_up(container: OciContainer) -> None:
    process = await container.spawn(spec_of("exec sleep 1000"))
    await run(
        container,
        "for p in /proc/[0-9]*; do p=${p#/proc/};"
        " [ $(cat /proc/$p/comm) = .init ] && [ $p != $PPID ] && kill -STOP $p; done; true",
    )
    with trio.fail_after(8):
        await process.aclose()
    assert await process.wait() == ExitStatus(signal=9)


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope when its task begins its n-th step."""

    def __init__(self, scope: trio.CancelScope, task: trio.lowlevel.Task, step: int) -> None:
        self.scope, self.task, self.left = scope, task, step

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()


async def everything(container: OciContainer) -> None:
    process = await container.spawn(spec_of("sleep 1000 & echo in; wait"))
    try:
        assert await process.stdout.receive_some() == b"in\n"
    finally:
        await process.aclose()
    await container.replace_file("/opt/x", chunks(b"1", b"2"), ROOT)
    file = await container.open_file("/opt/x", ROOT)
    try:
        assert await file.read(0, 9) == b"12"
    finally:
        await file.aclose()
    with pytest.raises(ConnectionRefusedError):
        await container.connect(9)


async def test_a_cancel_at_any_step_leaves_nothing(container: OciContainer) -> None:
    await everything(container)
    before, fds = children(), len(os.listdir("/proc/self/fd"))
    # Each step is a few starts of the runtime, and gVisor's are slow.
    stride = 5 if is_gvisor(container) else 2
    for step in range(1, MAX_STEPS, stride):
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, trio.lowlevel.current_task(), step)
            trio.lowlevel.add_instrument(instrument)
            try:
                await everything(container)
            finally:
                trio.lowlevel.remove_instrument(instrument)
        await trio.testing.wait_all_tasks_blocked()
        assert children() <= before, f"cancelled at step {step}"
        assert len(os.listdir("/proc/self/fd")) <= fds, f"cancelled at step {step}"
        if not scope.cancelled_caught:
            break
    else:
        pytest.fail(f"no uncancelled run within {MAX_STEPS} steps")
    assert step > 10
    assert await output(container, LIST_OPT) in ("[]", "['x']")


OWNER = """
    import sys, trio
    from pathlib import Path
    from sandboxrt.engine.base import Identity, ProcessSpec
    from sandboxrt.engine.oci import OciEngine
    from sandboxrt.engine.runtime_exec import ExecStrategy
    from sandboxrt.models import Limits
    from tests.engine.oci_kit import Workplace

    async def main():
        workplace = Workplace(Path(sys.argv[1]))
        async with OciEngine(workplace.folder, sys.argv[2], ExecStrategy.RUNTIME) as engine:
            container = await engine.create(workplace.spec(limits=Limits(disk_bytes=64 * 1024**2)))
            script = "setsid sleep 1000 & echo up; sleep 1000"
            process = await container.spawn(
                ProcessSpec(argv=("/bin/sh", "-c", script), env={"PATH": "/bin"}, cwd="/", identity=Identity())
            )
            await process.stdout.receive_some()
            print(container.id, workplace.blocks().start, flush=True)
            await trio.sleep_forever()

    trio.run(main)
"""


def mentions(name: str) -> list[str]:
    """Processes with a container's name on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if name in line:
                found.append(line)
    return found


@pytest.mark.parametrize("runtime", RUNTIMES)
async def test_kill_9_of_the_owner_ends_everything(workplace: Workplace, runtime: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(OWNER), str(workplace.folder), runtime]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert owner.stdout is not None
        name, block = owner.stdout.readline().split()
        workplace.ids.append(name)
        ids = range(int(block), int(block) + 65_536 * 3)
        assert mentions(name)
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        with trio.fail_after(10):
            while processes_of(ids) or mentions(name):
                await trio.sleep(0.02)
    finally:
        owner.kill()
        owner.wait(10)
        assert owner.stdout is not None
        owner.stdout.close()
    async with OciEngine(workplace.folder, runtime) as engine:
        await engine.discard(workplace.folder / "sandboxes" / name, name)
    assert await settled(workplace) == []
    assert list((workplace.folder / "sandboxes").iterdir()) == []


async def test_gvisor_and_all_in_it_are_under_the_limits(workplace: Workplace) -> None:
    limits = Limits(mem_bytes=256 << 20, pids=200, vcpus=0.5, disk_bytes=None)
    spec = workplace.spec(limits=limits)
    async with OciEngine(workplace.folder, "runsc") as engine:
        container = await engine.create(spec)
        try:
            folders = [Path(folder) for folder, _, _ in os.walk("/sys/fs/cgroup") if spec.id in folder]
            assert str(256 + 4 * 200) in {
                (each / "pids.max").read_text().strip() for each in folders if (each / "pids.max").exists()
            }
            script = "python3 -c \"x = b'x' * (600 << 20); print(len(x))\"; echo over"
            with trio.fail_after(20):
                with contextlib.suppress(SpawnFailedError):
                    _, printed = await run(container, script)
                    assert str(600 << 20) not in printed
                assert await container.oom_kills() >= 1
        finally:
            await container.close()
            await engine.discard(spec.state_dir, spec.id)
    assert await settled(workplace) == []
