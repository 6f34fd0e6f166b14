"""The commands of one sandbox: found by id, started once, kept for a while after their end, forgotten within bounds."""

from __future__ import annotations

import heapq
import itertools
import math
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

import attrs
import trio

from sandboxrt.host.attachment import CommandAttachment, RefusedAttachment
from sandboxrt.host.command import Command
from sandboxrt.host.starts import Begun, StartLog
from sandboxrt.protocol.exec import ErrorFrame, Execute, Reconnect

__all__ = ["SessionLimits", "SessionTable"]


@attrs.frozen(kw_only=True)
class SessionLimits:
    """How many sessions a sandbox keeps.

    Attributes:
        running: Commands that run at once; one more is refused.
        finished: Finished sessions kept, oldest finished first to go.
        finished_bytes: Memory that the output of finished sessions may take together; the oldest's is on disk then.
    """

    running: int = 256
    finished: int = 1000
    finished_bytes: int = 128 * 1024**2


class SessionTable:
    """Finds, starts and forgets the commands of one sandbox. Everything but :meth:`run` is immediate.

    Args:
        starts: Remembers what was begun, for longer than this table. Loaded.
        new_command: Makes a command that is not running yet and calls back when it has finished.
        start: Gives a command its task.
        limits: The bounds.
        on_detached: Called after each reader of a command that goes.
    """

    def __init__(
        self,
        starts: StartLog,
        new_command: Callable[[str, Execute, Callable[[Command], None]], Command],
        start: Callable[[Command], None],
        limits: SessionLimits,
        on_detached: Callable[[], None] = lambda: None,
    ) -> None:
        self._starts = starts
        self._new_command = new_command
        self._start = start
        self._limits = limits
        self._commands: dict[str, Command] = {}
        self._finished: OrderedDict[str, Command] = OrderedDict()
        self._in_memory: OrderedDict[Command, int] = OrderedDict()
        """Finished ones whose output is in memory, and how much that is."""
        self._deadlines: list[tuple[float, int, Command]] = []
        self._order = itertools.count()
        self._forgotten: deque[Command] = deque()
        self._changed = trio.lowlevel.ParkingLot()
        self._held_bytes = 0
        self._unfinished: set[Command] = set()
        self._on_detached = on_detached

    def __len__(self) -> int:
        return len(self._commands)

    @property
    def running(self) -> int:
        """How many commands have not finished."""
        return len(self._commands) - len(self._finished)

    @property
    def attended(self) -> bool:
        """Whether somebody follows a command that has not finished."""
        return any(command.lifecycle.attached for command in self._unfinished)

    def attach(self, first: Execute | Reconnect) -> CommandAttachment | RefusedAttachment:
        """Attach to the command that ``first`` names, started now if it is new.

        ``Execute`` with a known id attaches from offset 0, whatever its other fields say: it is the repetition of the
        first one. With another command text it is a clash of ids, and refused; and so it is where a command of that id
        was begun before and its session is gone, since nothing is ever run twice.
        """
        if isinstance(first, Reconnect):
            command = self._commands.get(first.command_id)
            if command is None:
                return RefusedAttachment(_missing(first.command_id, self._starts.when(first.command_id)))
            return command.attach(first.stdout_offset, first.stderr_offset, first.input_id)
        command_id = first.command_id or uuid.uuid4().hex
        command = self._commands.get(command_id)
        if command is not None:
            if command.request.command != first.command:
                return RefusedAttachment(
                    ErrorFrame(f"Command id '{command_id}' belongs to another command already", "CommandIdConflict")
                )
            return command.attach(input_id=first.input_id)
        if (begun := self._starts.when(command_id)) is not None:
            return RefusedAttachment(_repeated(command_id, begun))
        if self.running >= self._limits.running:
            return RefusedAttachment(
                ErrorFrame(f"The sandbox runs {self.running} commands at once already, which is its limit")
            )
        try:
            self._starts.note(command_id)
        except OSError as error:
            words = f"The start could not be recorded on the host, so nothing was started: {error.strerror}"
            return RefusedAttachment(ErrorFrame(words, "StartNotRecorded"))
        command = self._new_command(command_id, first, self._on_finished)
        command.on_detached = self._on_detached
        self._commands[command_id] = command
        self._unfinished.add(command)
        self._start(command)
        return command.attach(input_id=first.input_id)

    async def run(self) -> None:
        """Forget finished sessions when their time has come, and keep their memory within bounds. Until cancelled."""
        while True:
            # Whatever is waited for was taken out before: more may be added, or go, meanwhile.
            if self._forgotten:
                with trio.CancelScope(shield=True):
                    await self._forgotten.popleft().aclose()
                continue
            if self._held_bytes > self._limits.finished_bytes:
                command, held_bytes = self._in_memory.popitem(last=False)
                self._held_bytes -= held_bytes
                await command.spill()
                continue
            deadline = self._deadlines[0][0] if self._deadlines else math.inf
            if deadline <= trio.current_time():
                _, _, command = heapq.heappop(self._deadlines)
                if self._commands.get(command.id) is command:
                    self._forget(command)
                continue
            with trio.move_on_at(deadline):
                await self._changed.park()

    async def aclose(self) -> None:
        """Free what the sessions hold on disk. No command runs any more."""
        for command in (*self._commands.values(), *self._forgotten):
            await command.aclose()

    def _on_finished(self, command: Command) -> None:
        self._unfinished.discard(command)
        if command.pid is None:
            if command.never_ran:
                # A repetition may try again.
                self._starts.forget(command.id)
            self._forget(command)
            return
        self._finished[command.id] = command
        if held_bytes := command.memory_used_bytes:
            self._in_memory[command] = held_bytes
            self._held_bytes += held_bytes
            if self._held_bytes > self._limits.finished_bytes:
                self._changed.unpark_all()
        self._schedule(command)
        while len(self._finished) > max(1, self._limits.finished):
            self._forget(next(iter(self._finished.values())))

    def _schedule(self, command: Command) -> None:
        deadline = command.lifecycle.deadline
        if deadline == math.inf:
            return
        if len(self._deadlines) > 2 * self._limits.finished:
            # Entries of sessions that went before their time would otherwise pile up.
            self._deadlines = [entry for entry in self._deadlines if entry[2].id in self._finished]
            heapq.heapify(self._deadlines)
        entry = (deadline, next(self._order), command)
        heapq.heappush(self._deadlines, entry)
        if self._deadlines[0] is entry:
            self._changed.unpark_all()

    def _forget(self, command: Command) -> None:
        self._commands.pop(command.id, None)
        self._finished.pop(command.id, None)
        self._held_bytes -= self._in_memory.pop(command, 0)
        command.forget()
        self._forgotten.append(command)
        self._changed.unpark_all()


def _missing(command_id: str, begun: Begun | None) -> ErrorFrame:
    match begun:
        case None:
            return ErrorFrame(f"Command not found: {command_id}", "CommandNotFound")
        case Begun.NOW:
            return ErrorFrame(f"Session expired: {command_id}", "SessionExpired")
    words = f"Command {command_id} ended, at the latest, when {_ENDED[begun]}; its output is gone"
    return ErrorFrame(words, "CommandInterrupted")


def _repeated(command_id: str, begun: Begun) -> ErrorFrame:
    if begun is Begun.NOW:
        words = f"Session expired: {command_id}; the command was begun before, and a repeated start never runs it again"
        return ErrorFrame(words, "SessionExpired")
    return ErrorFrame(
        f"Command {command_id} was begun before {_ENDED[begun]}, and is not run again: whether it ran to its end, or "
        "at all, is not known",
        "CommandInterrupted",
    )


_ENDED: Final = {
    Begun.BEFORE_STOP: "the sandbox was stopped",
    Begun.BEFORE_HOST: "the server that ran it ended, or the sandbox was stopped",
}
