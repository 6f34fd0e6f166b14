"""Waiting for control groups to change state: one inotify descriptor for the whole process, or patience."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CgroupEvents", "read_flags", "wait_for"]

_IN_MODIFY = 0x2
_IN_IGNORED = 0x8000
_IN_NONBLOCK = 0x800
_IN_CLOEXEC = 0x80000
_EVENT = struct.Struct("iIII")
_READ_BYTES = 1 << 16
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.25
_WATCHED_PAUSE_S = 1.0
"""How long a lost event can go unnoticed."""


def _libc_call(function: str, *arguments: int | bytes) -> int:
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


_libc = ctypes.CDLL(None, use_errno=True)


def read_flags(path: Path) -> dict[str, int]:
    """The numbers in a file of ``name value`` lines, such as ``cgroup.events``; empty when the group is gone."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found


@attrs.define
class _Watch:
    """What waits on one file. ``changed`` is replaced at every change."""

    waiters: int = 0
    changed: trio.Event = attrs.field(factory=trio.Event)


@attrs.define
class CgroupEvents:
    """Tells when ``cgroup.events`` files change. Owned by the nursery that :meth:`open` opens.

    One inotify instance (of the few that a user may have) serves every group of the process.
    """

    _fd: int
    _watches: dict[int, _Watch] = attrs.field(factory=dict)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[CgroupEvents]:
        """Serve watches while the block runs.

        Where no inotify instance can be had, watches never fire and :func:`wait_for` relies on its polling.
        """
        try:
            fd = _libc_call("inotify_init1", _IN_NONBLOCK | _IN_CLOEXEC)
        except OSError:
            yield cls(-1)
            return
        events = cls(fd)
        # The nursery wraps the caller's block, so its lone error must leave as it came.
        failure: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(events._serve)
                try:
                    yield events
                except BaseException as error:  # noqa: BLE001 - raised again below, outside the nursery
                    failure = error
                nursery.cancel_scope.cancel()
        finally:
            # Only now: a reader that was woken just before the end still reads once.
            events._fd = -1
            os.close(fd)
        if failure is not None:
            raise failure

    async def _serve(self) -> None:
        fd = self._fd
        while True:
            await trio.lowlevel.wait_readable(fd)
            with contextlib.suppress(BlockingIOError):
                self._dispatch(os.read(fd, _READ_BYTES))

    def _dispatch(self, data: bytes) -> None:
        at = 0
        while at + _EVENT.size <= len(data):
            number, mask, _, name_bytes = _EVENT.unpack_from(data, at)
            at += _EVENT.size + name_bytes
            # An overflow of the kernel's queue (number -1) may have swallowed any event: everybody looks.
            fired = list(self._watches.values()) if number < 0 else [self._watches.get(number)]
            for watch in fired:
                if watch is not None:
                    watch.changed.set()
                    watch.changed = trio.Event()
            if mask & _IN_IGNORED:
                self._watches.pop(number, None)

    @contextmanager
    def watch(self, path: Path) -> Iterator[_Watch | None]:
        """Watch a file while the block runs; ``None`` where it cannot be watched."""
        try:
            if self._fd < 0:
                raise FileNotFoundError
            number = _libc_call("inotify_add_watch", self._fd, os.fsencode(path), _IN_MODIFY)
        except OSError:
            yield None
            return
        # Adding a file twice gives the same number.
        watch = self._watches.setdefault(number, _Watch())
        watch.waiters += 1
        try:
            yield watch
        finally:
            watch.waiters -= 1
            if watch.waiters == 0 and self._watches.pop(number, None) is not None and self._fd >= 0:
                _libc.inotify_rm_watch(self._fd, number)


async def wait_for(condition: Callable[[], bool], events: CgroupEvents | None = None, path: Path | None = None) -> None:
    """Wait until ``condition()`` is true: it is asked after every change of ``path``, else with growing pauses.

    Cancellation: any time, nothing is left behind.
    """
    await trio.lowlevel.checkpoint()
    if condition():
        return
    if events is None or path is None:
        await _poll(condition, None)
        return
    with events.watch(path) as watch:
        await _poll(condition, watch)


async def _poll(condition: Callable[[], bool], watch: _Watch | None) -> None:
    pause_s = _FIRST_PAUSE_S if watch is None else _WATCHED_PAUSE_S
    while True:
        changed = None if watch is None else watch.changed
        if condition():
            return
        with trio.move_on_after(pause_s):
            if changed is None:
                await trio.sleep_forever()
            else:
                await changed.wait()
        if watch is None:
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
