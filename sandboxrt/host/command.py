"""The command actor: one started program, its streams, its timers and its readers.

What a command's life consists of is kept apart as separate facts: the leader's exit, the end of each stream, the empty
tree. The end that readers see is reported once the leader was reaped, what the pipes held then has been taken, and a
short grace for the streams' end has passed; a background child that keeps a pipe delays it no longer. The pipes stay
readable while anything of the tree lives, and what comes late still reaches the replay buffer.

Decisions are made by :mod:`sandboxrt.protocol.lifecycle`; this module tells it the facts and does what it orders.

Source: design.md §5, protocol.md §4.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from sandboxrt.engine.base import ExitStatus, Process
from sandboxrt.host.attachment import CommandAttachment
from sandboxrt.host.blame import blame
from sandboxrt.host.stdin import StdinPipe
from sandboxrt.host.stream import OutputStream
from sandboxrt.protocol.exec import ErrorFrame, Execute, Exit, StreamName
from sandboxrt.protocol.lifecycle import Cause, CommandLifecycle, Order

__all__ = ["Command", "CommandFacts", "CommandSettings", "CommandSurroundings", "StartError"]

_PIPE_CAPACITY_BYTES = 1024**2
"""The most that a pipe can hold (fs.pipe-max-size for programs without privilege)."""
_QUIET_TURNS = 5


@attrs.frozen(kw_only=True)
class CommandSettings:
    """The bounds of every command of a host.

    Attributes:
        replay_memory_bytes: How much of each stream is kept in memory.
        replay_spill_bytes: How much more of each stream is kept on disk.
        least_start_s: How long a start may take, however short the command's own timeout is.
        most_start_s: How long it may take, however long that is.
        term_grace_s: Between SIGTERM and SIGKILL after a timeout.
        kill_grace_s: How long SIGKILL may take before the command's end is reported regardless.
        drain_grace_s: How long to wait for the end of the streams once the leader was reaped.
        drain_limit_s: How long to go on taking what the pipes held at that moment.
    """

    replay_memory_bytes: int = 16 * 1024**2
    replay_spill_bytes: int = 1024**3
    least_start_s: float = 10.0
    most_start_s: float = 60.0
    term_grace_s: float = 2.0
    kill_grace_s: float = 10.0
    drain_grace_s: float = 0.05
    drain_limit_s: float = 5.0


class StartError(Exception):
    """The program could not be started; ``frame`` says why in words for the user."""

    def __init__(self, frame: ErrorFrame) -> None:
        super().__init__(frame.error)
        self.frame = frame


class CommandSurroundings(Protocol):
    """What a command needs from the sandbox that it runs in."""

    @property
    def gone(self) -> trio.Event:
        """Set when the sandbox has died or is being deleted."""
        ...

    @property
    def trees_known(self) -> bool:
        """Whether the end of a process's tree can be told from the end of its leader."""
        ...

    @property
    def mem_bytes(self) -> int | None:
        """The sandbox's memory limit."""
        ...

    def end_frame(self) -> ErrorFrame:
        """What readers are told when the sandbox ended the command."""
        ...

    async def start(self, request: Execute) -> Process:
        """Start the program. Raises :class:`StartError`."""
        ...

    async def oom_kills(self) -> int:
        """The sandbox's count of processes killed for lack of memory."""
        ...


@attrs.frozen
class CommandFacts:
    """What is known of a command at one moment, each on its own."""

    leader: ExitStatus | None
    stdout_ended: bool
    stderr_ended: bool
    tree_empty: bool


class Command:
    """One command of a sandbox, from its start until nothing of its tree is left.

    Args:
        command_id: What readers know it by.
        request: What to run and for how long.
        surroundings: The sandbox.
        settings: The host's bounds.
        new_stream: Makes an output stream that calls the given function after each change.
        on_finished: Called once the end is known, started or not.
    """

    def __init__(
        self,
        command_id: str,
        request: Execute,
        surroundings: CommandSurroundings,
        settings: CommandSettings,
        new_stream: Callable[[Callable[[], None]], OutputStream],
        on_finished: Callable[[Command], None],
    ) -> None:
        self.id = command_id
        self.request = request
        self.pid: int | None = None
        self.never_ran: bool = False
        """Whether it is certain that it was not started, and will not be."""
        self.on_detached: Callable[[], None] = _nothing
        """Called after each reader that goes."""
        self.outcome: Exit | ErrorFrame | None = None
        self.ends_at_outcome: dict[StreamName, int] = {"stdout": 0, "stderr": 0}
        self.changed: trio.lowlevel.ParkingLot = trio.lowlevel.ParkingLot()
        self.stdin: StdinPipe = StdinPipe(self._notify)
        self.streams: dict[StreamName, OutputStream] = {
            "stdout": new_stream(self._notify),
            "stderr": new_stream(self._notify),
        }
        self.lifecycle: CommandLifecycle = CommandLifecycle(
            trio.current_time(),
            request.timeout_s,
            request.idle_timeout_s,
            request.ttl_s,
            request.kill_on_disconnect,
            settings.term_grace_s,
            settings.kill_grace_s,
        )
        self._surroundings = surroundings
        self._settings = settings
        self._on_finished = on_finished
        self._process: Process | None = None
        self._leader: ExitStatus | None = None
        self._order: Order | None = None
        self._control = trio.lowlevel.ParkingLot()
        self._oom_before = -1
        self._oom_after = -1
        self._forgotten = False
        self._size: tuple[int, int] | None = None

    def __repr__(self) -> str:
        state = "starting" if self.pid is None else "running" if self.outcome is None else f"{self.outcome}"
        return f"<Command {self.id!r} {state}>"

    @property
    def facts(self) -> CommandFacts:
        """The separate facts of its end."""
        return CommandFacts(
            self._leader, self.streams["stdout"].ended, self.streams["stderr"].ended, self.lifecycle.tree_empty
        )

    @property
    def ends(self) -> dict[StreamName, int]:
        """Where each stream ends at this moment."""
        return {name: stream.end for name, stream in self.streams.items()}

    @property
    def memory_used_bytes(self) -> int:
        """How much memory its replay takes."""
        return sum(stream.memory_used_bytes for stream in self.streams.values())

    def attach(self, stdout_offset: int = 0, stderr_offset: int = 0, input_id: str | None = None) -> CommandAttachment:
        """One more reader, from the given byte offsets on; ``input_id`` as in ``Execute``. Never waits."""
        self.lifecycle.attach()
        self._wake()
        return CommandAttachment(self, stdout_offset, stderr_offset, input_id)

    def detached(self) -> None:
        """One reader less."""
        self._obey_soon(self.lifecycle.detach(trio.current_time()))
        self.on_detached()

    def kill(self) -> None:
        """SIGKILL for the whole tree, as soon as the actor runs. Never waits, cannot be lost."""
        self._obey_soon(self.lifecycle.kill(trio.current_time()))

    async def send_signal(self, signum: int) -> None:
        """Send a signal to what runs of the command; nothing before its start and after its end."""
        if not 0 < signum < signal.NSIG:
            raise ValueError(f"{signum} is no signal number (1..{signal.NSIG - 1})")
        if self._process is not None and not self.lifecycle.tree_empty:
            await self._process.signal(signum)

    async def resize(self, columns: int, rows: int) -> None:
        """Change the terminal's size; nothing without a terminal, or once it is gone."""
        self._size = (max(1, min(columns, 65535)), max(1, min(rows, 65535)))
        if self._process is not None and self.request.pty and not self.lifecycle.tree_empty:
            await self._process.resize(*self._size)

    def forget(self) -> None:
        """Keep no output any more; what lives of the tree lives on."""
        self._forgotten = True
        for stream in self.streams.values():
            stream.forget()

    async def run(self) -> None:
        """Start the program and look after it until its tree is gone and its end is known.

        Cancellation: The tree is killed; readers are told :meth:`CommandSurroundings.end_frame`.
        """
        try:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._note_oom_kills)
                    await self._start()
                    if self._process is not None:
                        await self._live(self._process, nursery)
                    nursery.cancel_scope.cancel()
            finally:
                process, self._process = self._process, None
                if process is not None:
                    await process.aclose()
        finally:
            self.stdin.close()
            for stream in self.streams.values():
                stream.ended = True
            if self.outcome is None and self._surroundings.gone.is_set():
                self._finish(self._surroundings.end_frame())

    async def spill(self) -> None:
        """Move its output from memory to the spill files; what they do not take is a recorded loss."""
        for stream in self.streams.values():
            await stream.spill(0)

    async def aclose(self) -> None:
        """Free the spill files. To be called when nobody can attach any more and nobody is attached."""
        for stream in self.streams.values():
            await stream.aclose()

    def fail(self, frame: ErrorFrame) -> None:
        """End it with an error of the host's own, unless its end is known already."""
        if self.outcome is None:
            self._finish(frame)

    async def _start(self) -> None:
        settings = self._settings
        limit_s = min(max(self.request.timeout_s or math.inf, settings.least_start_s), settings.most_start_s)
        try:
            # A child that waits to be released, or is about to become the program, can be stopped from inside.
            with trio.move_on_after(limit_s) as scope:
                self._process = await self._surroundings.start(self.request)
            if scope.cancelled_caught:
                self._finish(ErrorFrame(f"The command did not start within {limit_s:g} seconds, and was ended"))
                return
        except StartError as error:
            self.never_ran = True
            gone = self._surroundings.gone.is_set()
            self._finish(self._surroundings.end_frame() if gone else error.frame)
            return
        assert self._process is not None
        self.lifecycle.started_at = trio.current_time()
        self.pid = self._process.pid
        self.changed.unpark_all()

    async def _live(self, process: Process, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.streams["stdout"].pump, process.stdout)
        if process.stderr is None:
            self.streams["stderr"].mark_ended()
        else:
            nursery.start_soon(self.streams["stderr"].pump, process.stderr)
        nursery.start_soon(self._watch_leader, process)
        nursery.start_soon(self._watch_tree, process)
        nursery.start_soon(self._feed, process)
        if self._size is not None:
            await self.resize(*self._size)
        while not self.lifecycle.may_report:
            await self._step(process)
        await self._report()
        while not self.lifecycle.tree_empty:
            await self._step(process)
        # Whoever still holds a pipe now got it from outside of the tree; the host does not wait for that. Where trees
        # are not known, the pipes are all that tells of a background child.
        limit_s = self._settings.drain_grace_s if self._surroundings.trees_known else float("inf")
        await self._wait_until(self._streams_ended, limit_s)

    async def _watch_leader(self, process: Process) -> None:
        self._leader = await process.wait()
        self.lifecycle.leader_exited = True
        self._wake()
        # Beside what the report waits for anyway, so that it costs the command no time of its own.
        self._oom_after = await self._surroundings.oom_kills()
        self._notify()

    async def _watch_tree(self, process: Process) -> None:
        await process.wait_tree()
        self.lifecycle.tree_empty = True
        self._wake()

    async def _note_oom_kills(self) -> None:
        self._oom_before = await self._surroundings.oom_kills()

    async def _feed(self, process: Process) -> None:
        if self.request.close_stdin and self.request.pty:
            await self.stdin.end()
        await self.stdin.pump(process.stdin, terminal=self.request.pty)

    async def _step(self, process: Process) -> None:
        """Wait for a fact, an order or the next deadline, and do what is due."""
        if self._order is None:
            # After the report only orders from readers matter here; the TTL belongs to the session table.
            deadline = float("inf") if self.outcome is not None else self.lifecycle.deadline
            with trio.move_on_at(deadline):
                await self._control.park()
            if self._order is None and self.outcome is None:
                self._order = self.lifecycle.tick(trio.current_time())
        order, self._order = self._order, None
        if order is Order.TERMINATE:
            await process.signal(signal.SIGTERM)
        elif order is Order.KILL:
            await process.kill_tree()

    async def _report(self) -> None:
        if self.lifecycle.tree_empty or not self.lifecycle.gave_up:
            await self._drain()
        if self.lifecycle.cause is Cause.TIMEOUT:
            self._finish(ErrorFrame(f"Command timed out after {self.request.timeout_s:g} seconds", "CommandTimeout"))
            return
        if self._leader is None:
            self._finish(ErrorFrame("The command could not be killed: its leader does not end", "CommandError"))
            return
        if self._leader.signal == signal.SIGKILL and self.lifecycle.cause is None:
            # The death of the whole sandbox looks the same from here; its news may be just behind.
            with trio.move_on_after(self._settings.drain_grace_s):
                await self._surroundings.gone.wait()
        if self._surroundings.gone.is_set():
            self._finish(self._surroundings.end_frame())
            return
        await self._wait_until(self._oom_known, self._settings.drain_grace_s)
        oom_killed = self._oom_known() and self._oom_after > self._oom_before
        code = self._leader.exit_code
        self._finish(Exit(code, oom_killed, blame(code, self._surroundings.mem_bytes) if oom_killed else None))

    async def _drain(self) -> None:
        """Take what the pipes held when the leader was reaped, and give the streams a moment to end."""
        taken = {name: stream.received_bytes for name, stream in self.streams.items()}
        if await self._wait_until(self._streams_ended, self._settings.drain_grace_s):
            return
        with trio.move_on_after(self._settings.drain_limit_s):
            for name, stream in self.streams.items():
                await self._see_empty(stream, taken[name] + _PIPE_CAPACITY_BYTES)

    async def _see_empty(self, stream: OutputStream, enough_bytes: int) -> None:
        """Wait until the stream's pipe was empty once, or so much was taken that nothing of before can be in it.

        A reader whose pipe holds something gets it within a turn or two of the scheduler, so one that gets nothing
        for some turns has seen its pipe empty; a child that prints every millisecond cannot hold this up.
        """
        quiet_turns = 0
        before = -1
        while not stream.ended and stream.received_bytes < enough_bytes and quiet_turns < _QUIET_TURNS:
            quiet_turns = quiet_turns + 1 if stream.reading and stream.received_bytes == before else 0
            before = stream.received_bytes
            if stream.reading:
                await trio.lowlevel.checkpoint()
            else:
                await trio.sleep(0.001)

    async def _wait_until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        if not condition():
            with trio.move_on_after(limit_s):
                while not condition():
                    await self.changed.park()
        return condition()

    def _oom_known(self) -> bool:
        return self._oom_before >= 0 and self._oom_after >= 0

    def _streams_ended(self) -> bool:
        return all(stream.ended for stream in self.streams.values())

    def _finish(self, outcome: Exit | ErrorFrame) -> None:
        self.ends_at_outcome = self.ends
        self.outcome = outcome
        self.lifecycle.finish(trio.current_time())
        self.changed.unpark_all()
        self._on_finished(self)

    def _obey_soon(self, order: Order | None) -> None:
        self._order = order or self._order
        self._wake()

    def _notify(self) -> None:
        self.changed.unpark_all()

    def _wake(self) -> None:
        self._control.unpark_all()


def _nothing() -> None:
    pass
