"""A fake engine: containers without containers, for tests that need neither root nor real time.

Commands are scripts of the small vocabulary in :mod:`sandboxrt.testing.programs`; they run as tasks of the engine's
own nursery, under whatever clock trio has. Under ``trio.testing.MockClock`` an hour passes at once and every run is the
same. Faults are drawn from a seeded generator or set at will. The real host and client run above it unchanged.

    async with FakeEngine() as engine, open_host(config, engine=engine, state=memory_state()) as host:
        ...
"""

from __future__ import annotations

import contextlib
import errno
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType

import attrs
import trio

from sandboxrt.engine.base import (
    Captured,
    ContainerSpec,
    ExecFailedError,
    ExitStatus,
    Feature,
    FileError,
    FileErrorKind,
    FileStat,
    Identity,
    ProcessSpec,
    SpawnFailedError,
    upper_name,
)
from sandboxrt.errors import ResourceCreationError
from sandboxrt.models import Isolation, IsolationFinding, IsolationReport
from sandboxrt.testing.filesystem import Device, File, Folder, MemoryFileSystem
from sandboxrt.testing.pipes import Pipe, PipeReader, PipeWriter, Terminal
from sandboxrt.testing.ports import Ports
from sandboxrt.testing.programs import Shell, Sink, Task, shell_body

__all__ = ["FakeContainer", "FakeEngine", "FakeProcess", "Faults"]

_ERRNO = {FileErrorKind.PERMISSION: errno.EACCES, FileErrorKind.NOT_A_DIRECTORY: errno.ENOTDIR}
_PASSWD = b"root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:user:/home/user:/bin/bash\n"
_GROUP = b"root:x:0:\nstaff:x:50:user\nuser:x:1000:\n"


@attrs.define(kw_only=True)
class Faults:
    """What goes wrong. Probabilities are drawn anew for each event from the engine's seeded generator.

    Attributes:
        create_delay_s: How long every create takes.
        create_error: Every create fails with this.
        create_failure: Probability that a create fails.
        spawn_delay_s: How long every spawn takes.
        spawn_errno: Every spawn fails with this errno.
        slow_spawn: Probability that a spawn takes ``slow_spawn_s`` longer.
        slow_spawn_s: By how much.
        spawn_failure: Probability that a spawn fails with ``EAGAIN``.
        container_death: Probability that a container dies at a spawn.
        connect_delay_s: How long every connection to a port takes.
        close_error: Every close of a container ends with this error, after everything was freed.
        capture_delay_s: How long every capture takes, while nothing moves.
        capture_error: Every capture fails with this.
    """

    create_delay_s: float = 0.0
    create_error: Exception | None = None
    create_failure: float = 0.0
    spawn_delay_s: float = 0.0
    spawn_errno: int | None = None
    slow_spawn: float = 0.0
    slow_spawn_s: float = 1.0
    spawn_failure: float = 0.0
    container_death: float = 0.0
    connect_delay_s: float = 0.0
    close_error: Exception | None = None
    capture_delay_s: float = 0.0
    capture_error: Exception | None = None


class FakeEngine:
    """Implements :class:`sandboxrt.engine.base.Engine`. An async context manager: it owns all that runs in it.

    Args:
        faults: What goes wrong; may be changed at any time.
        seed: Of the generator that probabilities are drawn from.
        shells: The shells that its containers have.

    Attributes:
        containers: Those that live, by id.
        kept: The files of containers, by state folder.
        captured: What was captured, by the layers' paths.
    """

    def __init__(
        self,
        faults: Faults | None = None,
        *,
        seed: int = 0,
        shells: tuple[str, ...] = ("/bin/bash", "/bin/sh"),
    ) -> None:
        self.faults: Faults = faults or Faults()
        self.random: random.Random = random.Random(seed)  # noqa: S311  reproducible faults, no secrets
        self.shells = shells
        self.containers: dict[str, FakeContainer] = {}
        self.kept: dict[Path, MemoryFileSystem] = {}
        self.captured: dict[Path, MemoryFileSystem] = {}
        self._scope = contextlib.AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> FakeEngine:
        self._nursery = await self._scope.enter_async_context(trio.open_nursery())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None
        self._nursery.cancel_scope.cancel()
        await self._scope.aclose()

    @property
    def nursery(self) -> trio.Nursery:
        """Owns the tasks of everything that runs in its containers."""
        if self._nursery is None:
            raise RuntimeError("FakeEngine is used outside of its async with")
        return self._nursery

    def happens(self, probability: float) -> bool:
        """Draw one fault."""
        return probability > 0 and self.random.random() < probability

    async def report(self) -> IsolationReport:
        """Claims everything: nothing real runs in it."""
        await trio.lowlevel.checkpoint()
        return _REPORT

    async def create(self, spec: ContainerSpec) -> FakeContainer:
        """Make a container, or fail as :class:`Faults` say."""
        await trio.sleep(self.faults.create_delay_s)
        if self.faults.create_error is not None:
            raise self.faults.create_error
        if self.happens(self.faults.create_failure):
            raise ResourceCreationError("the fake engine was told to fail", "sandbox", "Fault")
        files = self.kept.get(spec.state_dir)
        if files is None:
            files = self.kept[spec.state_dir] = self._new_files(spec)
        container = FakeContainer(self, spec, files)
        self.containers[spec.id] = container
        return container

    def _new_files(self, spec: ContainerSpec) -> MemoryFileSystem:
        for layer in spec.layers:
            if (captured := self.captured.get(layer.path)) is not None:
                return captured.copy(spec.limits.disk_bytes)
        return _new_files(spec, self.shells)

    async def capture(self, state_dir: Path, uid_base: int, target: Path, *, reserve_bytes: int = 0) -> Captured:
        """Keep a copy of the files of a closed container as the layer ``target/tree/@``."""
        files = self.kept[state_dir].copy(without="/tmp")  # noqa: S108  inside the fake container
        await trio.sleep(self.faults.capture_delay_s)
        if self.faults.capture_error is not None:
            raise self.faults.capture_error
        self.captured[target / "tree" / upper_name("/")] = files
        return Captured(files.count_files(), files.used_bytes)

    async def move_owners(self, state_dir: Path, old_base: int, new_base: int) -> None:
        """Owners are those seen inside here."""
        await trio.lowlevel.checkpoint()

    async def release(self, state_dir: Path, container_id: str) -> None:
        """Nothing outlives a fake container."""
        await trio.lowlevel.checkpoint()

    async def discard(self, state_dir: Path, container_id: str) -> None:
        """Forget the files of its container."""
        await trio.lowlevel.checkpoint()
        self.kept.pop(state_dir, None)


class FakeContainer:
    """Implements :class:`sandboxrt.engine.base.Container`."""

    def __init__(self, engine: FakeEngine, spec: ContainerSpec, files: MemoryFileSystem) -> None:
        self.engine = engine
        self.spec = spec
        self.files = files
        self.processes: set[FakeProcess] = set()
        self.ports: Ports = Ports()
        self._pid = 1
        self._oom_kills = 0
        self._death: str | None = None
        self._dead = trio.Event()

    @property
    def id(self) -> str:
        """The spec's."""
        return self.spec.id

    @property
    def report(self) -> IsolationReport:
        """The engine's."""
        return _REPORT

    @property
    def features(self) -> frozenset[Feature]:
        """All."""
        return frozenset(Feature)

    @property
    def task_count(self) -> int:
        """How many processes live, the first one not counted."""
        return sum(len(process.tasks) for process in self.processes)

    def die(self, reason: str = "the fake engine was told to end it") -> None:
        """The container's first process ends, and with it everything inside."""
        if self._death is None:
            self._death = reason
            self._dead.set()
            for process in tuple(self.processes):
                process.signal_now(signal.SIGKILL)

    async def spawn(self, spec: ProcessSpec) -> FakeProcess:
        """Run a script."""
        engine, faults = self.engine, self.engine.faults
        delay_s = faults.spawn_delay_s + (faults.slow_spawn_s if engine.happens(faults.slow_spawn) else 0.0)
        await trio.sleep(delay_s)
        if engine.happens(faults.container_death):
            self.die()
        if self._death is not None:
            raise SpawnFailedError("the container is dead", errno.ESRCH)
        if faults.spawn_errno is not None or engine.happens(faults.spawn_failure) or not self.has_room():
            raise SpawnFailedError("no process could be made", faults.spawn_errno or errno.EAGAIN)
        self._check(spec)
        process = FakeProcess(self, spec)
        self.processes.add(process)
        return process

    async def open_file(self, path: str, identity: Identity) -> FakeOpenFile:
        """Open a file of the tree in memory."""
        await trio.lowlevel.checkpoint()
        return FakeOpenFile(self.files.read(path, identity))

    async def replace_file(self, path: str, content: AsyncIterator[bytes], identity: Identity) -> None:
        """Replace a file of the tree in memory."""
        data = bytearray()
        async for chunk in content:
            data += chunk
        await trio.lowlevel.checkpoint()
        self.files.write(path, bytes(data), identity, parents=True)

    async def connect(self, port: int) -> trio.SocketStream:
        """Connect to what a ``listen`` command has opened."""
        await trio.sleep(self.engine.faults.connect_delay_s)
        if self._death is not None:
            raise OSError(errno.ESHUTDOWN, "the container is dead")
        return self.ports.connect(port)

    async def capture(self, target: Path, *, reserve_bytes: int = 0) -> Captured:
        """Keep a copy of the files; scripts go on meanwhile, but what they write later is not in it."""
        began = trio.current_time()
        copied = await self.engine.capture(self.spec.state_dir, self.spec.uid_base, target)
        return attrs.evolve(copied, paused_s=trio.current_time() - began)

    async def oom_kills(self) -> int:
        """How often ``out-of-memory`` has run."""
        await trio.lowlevel.checkpoint()
        return self._oom_kills

    async def wait_dead(self) -> str:
        """Wait for :meth:`die` or :meth:`close`."""
        await self._dead.wait()
        assert self._death is not None
        return self._death

    async def close(self) -> None:
        """End everything inside."""
        self.die("it was closed")
        with trio.CancelScope(shield=True):
            for process in tuple(self.processes):
                await process.aclose()
        if self.engine.containers.pop(self.id, None) is not None and self.engine.faults.close_error is not None:
            raise self.engine.faults.close_error

    def has_room(self) -> bool:
        """Whether one more process may be made."""
        return self.spec.limits.pids is None or self.task_count < self.spec.limits.pids

    def next_pid(self) -> int:
        """A process id that no other process has had."""
        self._pid += 1
        return self._pid

    def count_oom_kill(self) -> None:
        """The kernel killed one."""
        self._oom_kills += 1

    def _check(self, spec: ProcessSpec) -> None:
        try:
            self.files.enter(spec.cwd, spec.identity)
        except FileError as error:
            raise ExecFailedError("chdir", _ERRNO.get(error.kind, errno.ENOENT), spec.cwd) from error
        try:
            program = self.files.look_up(spec.argv[0], spec.identity)
        except FileError as error:
            raise ExecFailedError("exec", errno.ENOENT, spec.argv[0]) from error
        if not isinstance(program, File) or not program.mode & 0o111:
            raise ExecFailedError("exec", errno.EACCES, spec.argv[0])


class FakeProcess:
    """Implements :class:`sandboxrt.engine.base.Process`: a leader and its background children, each a task."""

    def __init__(self, container: FakeContainer, spec: ProcessSpec) -> None:
        self.container = container
        self.terminal: Terminal | None = Terminal(spec.pty, self._interrupt) if spec.pty is not None else None
        self.tasks: set[Task] = set()
        self._leader = Task(container.next_pid())
        self._exited = trio.Event()
        self._empty = trio.Event()
        self._out = self.terminal.screen if self.terminal else Pipe()
        self._err = self._out if self.terminal else Pipe()
        self._stdout = PipeReader(self._out)
        self._stderr = None if self.terminal else PipeReader(self._err)
        self._stdin: trio.abc.SendStream | None = self.terminal
        source = self.terminal.input if self.terminal else None
        if self.terminal is None and spec.stdin:
            source = Pipe()
            self._stdin = PipeWriter(source)
        self._source = source
        show: Sink = self.terminal.show if self.terminal else self._out.write
        self._start(
            Shell(
                self._leader,
                self,
                dict(spec.env),
                spec.cwd,
                spec.identity,
                source,
                show,
                show if self.terminal else self._err.write,
                shell_body(spec.argv[-1]),
            )
        )

    @property
    def files(self) -> MemoryFileSystem:
        """The container's."""
        return self.container.files

    @property
    def ports(self) -> Ports:
        """The container's."""
        return self.container.ports

    @property
    def pid(self) -> int:
        """The leader's."""
        return self._leader.pid

    @property
    def stdin(self) -> trio.abc.SendStream | None:
        """Standard input, or the terminal."""
        return self._stdin

    @property
    def stdout(self) -> trio.abc.ReceiveStream:
        """Standard output, or what the terminal shows."""
        return self._stdout

    @property
    def stderr(self) -> trio.abc.ReceiveStream | None:
        """Standard error."""
        return self._stderr

    async def wait(self) -> ExitStatus:
        """Wait for the leader."""
        await self._exited.wait()
        assert self._leader.status is not None
        return self._leader.status

    async def wait_tree(self) -> None:
        """Wait for all tasks."""
        await self._empty.wait()

    async def signal(self, signum: int) -> None:
        """Signal all tasks."""
        self.signal_now(signum)
        await trio.lowlevel.checkpoint()

    async def kill_tree(self) -> None:
        """SIGKILL for all tasks."""
        await self.signal(signal.SIGKILL)

    async def resize(self, columns: int, rows: int) -> None:
        """Change the terminal's size."""
        if self.terminal is not None:
            self.terminal.size = (columns, rows)
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End everything and close the pipes."""
        self.signal_now(signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await self._empty.wait()
            await self._stdout.aclose()
            if self._stderr is not None:
                await self._stderr.aclose()
            if self._stdin is not None:
                await self._stdin.aclose()
        self.container.processes.discard(self)

    def signal_now(self, signum: int) -> None:
        """Signal all tasks, those to come of the present ones included."""
        for task in tuple(self.tasks):
            task.signal(signum)

    def fork(self, shell: Shell) -> bool:
        """Run a background child."""
        if not self.container.has_room():
            return False
        shell.task.pid = self.container.next_pid()
        self._start(shell)
        return True

    def out_of_memory(self, task: Task) -> None:
        """Kill a task as the kernel does."""
        self.container.count_oom_kill()
        task.signal(signal.SIGKILL)

    def _start(self, shell: Shell) -> None:
        self.tasks.add(shell.task)
        self._out.hold()
        self._err.hold()
        self.container.engine.nursery.start_soon(self._run, shell)

    async def _run(self, shell: Shell) -> None:
        task = shell.task
        code = 0
        try:
            with task.scope:
                code = await shell.run()
        finally:
            died_by = task.died_by if task.scope.cancelled_caught or task.died_by == signal.SIGPIPE else None
            task.status = ExitStatus(signal=died_by) if died_by is not None else ExitStatus(code=code)
            self.tasks.discard(task)
            self._out.release()
            self._err.release()
            if task is self._leader:
                if self._source is not None and self.terminal is None:
                    self._source.close_reader()
                self._exited.set()
            if not self.tasks:
                self._empty.set()

    def _interrupt(self) -> None:
        self.signal_now(signal.SIGINT)


class FakeOpenFile:
    """Implements :class:`sandboxrt.engine.base.OpenFile`."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._data = bytes(file.data)
        self._mtime_ns = file.mtime_ns

    @property
    def stat(self) -> FileStat:
        """As of when it was opened."""
        return FileStat(len(self._data), self._mtime_ns, self._mtime_ns, id(self._file))

    async def read(self, offset: int, max_bytes: int) -> bytes:
        """A piece of it."""
        await trio.lowlevel.checkpoint()
        return self._data[offset : offset + max_bytes]

    async def aclose(self) -> None:
        """Nothing to close."""
        await trio.lowlevel.checkpoint()


_REPORT = IsolationReport("fake", {prop: IsolationFinding(True, "nothing real runs here") for prop in Isolation})


def _new_files(spec: ContainerSpec, shells: tuple[str, ...]) -> MemoryFileSystem:
    files = MemoryFileSystem(spec.limits.disk_bytes)
    files.place("/etc/passwd", File(bytearray(_PASSWD)))
    files.place("/etc/group", File(bytearray(_GROUP)))
    files.place("/home/user", Folder(owner=Identity(1000, 1000)))
    files.place("/root", Folder(mode=0o700))
    files.place("/tmp", Folder(mode=0o1777))  # noqa: S108  inside the fake container
    files.place("/dev/null", Device())
    files.place("/dev/zero", Device())
    for shell in shells:
        files.place(shell, File(mode=0o755))
    return files
