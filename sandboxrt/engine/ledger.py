"""The ledger: what running sandboxes may still write is never more than what the host's file system can take.

A sandbox's disk is an image with holes. What is written inside is accepted by its file system long before the host
finds blocks for it, and when it finds none then, the data are gone although every write succeeded. So the file system
inside is made to refuse first. With S for what the host's file system has above the low-water mark and O for what it
owes already (accepted inside, without a block outside), a disk gets leave to grow by its share of S - O, set as what
its file system keeps back (:mod:`sandboxrt.engine.ext4`). The leaves and O never exceed S together, so it does not
matter how fast anybody writes, or when this task comes to look.

While there is much more room than could be written between two looks, each may take half of it all, and who does not
want that much is not restricted at all. Below, the room is shared: half equally, half by who has written lately.

What no leave covers is what takes blocks without asking for any: the inode tables, which are holes at first, and data
in blocks that were set aside without being written (``fallocate``), where several did that at once before the first
look. A debt that outgrows the room is first made good at once (written out, so that it has its place), and whoever has
one that cannot be made good stands still until it can.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import attrs
import trio

from sandboxrt.engine.ext4 import BLOCK_BYTES, DiskUse, MountedDisk, can_keep_back
from sandboxrt.engine.loops import backings, loops_below
from sandboxrt.room import Room
from sandboxrt.threads import run_blocking

__all__ = ["Account", "DiskLedger", "Plan", "plan_leaves"]

_log = logging.getLogger("sandboxrt.engine")

_SLACK: Final = 2 * 1024**2
"""What the inode tables of one disk may take between two looks: some thousand new files."""
_MARGIN: Final = 2 * 1024**3
"""What a fast disk can take in a second."""
_NEAREST_S, _NEAR_S, _FAR_S, _FARTHEST_S = 0.02, 0.1, 1.0, 5.0
_FORGET: Final = 0.5
"""How much of what was written lately still counts one look later."""
_VMSTAT: Final = Path("/proc/vmstat")


@attrs.frozen
class Plan:
    """What all disks may take from now on.

    Attributes:
        leaves: For each disk, in the order given, how many bytes it may still take.
        is_near: Whether the room is shared because there is little of it.
        is_broken: Whether more is owed than there is, below the mark, too.
    """

    leaves: tuple[int, ...]
    is_near: bool
    is_broken: bool


def plan_leaves(uses: list[DiskUse], wrote: list[float], spare: int, kept: int, plenty: int) -> Plan:
    """Share out the room of a host.

    Args:
        uses: The disks.
        wrote: How much each of them has taken lately.
        spare: What the host has above its mark and owes to nobody; negative where it owes more than that.
        kept: What is below the mark.
        plenty: What can be written before the next look.
    """
    if spare > plenty:
        return Plan(tuple(spare // 2 for _ in uses), False, False)
    room, lately, many = max(0, spare), sum(wrote), max(1, len(uses))
    equal = room / many
    goals = [int(equal if lately <= 0 else 0.5 * equal + 0.5 * room * each / lately) for each in wrote]
    # Who gets less gives it back now; who gets more gets it from what nobody has leave to take at this moment.
    unpromised = max(0, room - sum(use.may_take for use in uses))
    more = sum(max(0, goal - use.may_take) for goal, use in zip(goals, uses, strict=True))
    part = min(1.0, unpromised / more) if more else 0.0
    leaves = tuple(
        min(goal, use.may_take) + int(part * max(0, goal - use.may_take)) for goal, use in zip(goals, uses, strict=True)
    )
    return Plan(leaves, True, spare + kept // 2 < 0)


@attrs.define(eq=False)
class Account:
    """One running sandbox of this process, as the ledger knows it.

    Attributes:
        disk: Its disk.
        freeze: Makes all of it stand still; ``None`` where nothing can.
        thaw: Lets it run again.
        is_backed: The host has allocated all of its image, so it needs no leave.
        is_frozen: It stands still.
        use: Its disk when it was last looked at.
        wrote: How much it has taken lately.
        placed: Its disk when everything on it was last written out.
    """

    disk: MountedDisk
    freeze: Callable[[], Awaitable[None]] | None = None
    thaw: Callable[[], Awaitable[None]] | None = None
    is_backed: bool = False
    is_frozen: bool = False
    use: DiskUse | None = None
    wrote: float = 0.0
    placed: DiskUse | None = None

    def note(self, use: DiskUse) -> None:
        """Take in a new look at its disk."""
        if self.use is not None:
            self.wrote = self.wrote * _FORGET + max(0, use.taken - self.use.taken)
        self.use = use

    @property
    def is_placed(self) -> bool:
        """Whether nothing has changed on it since everything was written out, as far as that is seen."""
        return self.use is None or self.use == self.placed

    @property
    def owed(self) -> int:
        """What the host owes it."""
        return 0 if self.use is None else self.use.owed(0 if self.is_backed else _SLACK)


@attrs.define(eq=False)
class DiskLedger:
    """Watches the room of a state folder and says what each disk in it may take. :meth:`run` is its task.

    Other processes' disks in the same folder are counted, and each process says what its own may take; they come to the
    same shares, because they look at the same figures.

    Attributes:
        folder: Where the sandboxes' folders are.
        room: The room on its file system; what is owed is told to it.
    """

    folder: Path
    room: Room
    _own: dict[int, Account] = attrs.field(factory=dict, init=False)
    _others: dict[int, Account] = attrs.field(factory=dict, init=False)
    _searched_at: float = attrs.field(default=float("-inf"), init=False)
    _looking: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    _thread: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1), init=False)
    _writer: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(1), init=False)
    _is_near: bool = attrs.field(default=False, init=False)
    _is_late: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set while something may be accepted without a place, where another program could take that at any moment."""

    async def admit(
        self,
        image: Path,
        loop: int,
        freeze: Callable[[], Awaitable[None]] | None = None,
        thaw: Callable[[], Awaitable[None]] | None = None,
    ) -> Account:
        """Enter a disk that was just mounted, and give it its first leave; only then may anything run on it.

        Raises:
            HostDiskFullError: This host cannot keep disks from growing, and has no room to allocate all of it.
            OSError: The disk is not mounted any more.
        """
        account = Account(MountedDisk(image, loop), freeze, thaw)
        async with self._looking:
            if reason := await run_blocking(self._thread, lambda: _why_not(account.disk)):
                await self._back_wholly(account, reason)
            self._others.pop(loop, None)
            self._own[loop] = account
            try:
                await self._look()
            except BaseException:
                self._own.pop(loop, None)
                raise
        self._changed.set()
        return account

    def leave(self, account: Account) -> None:
        """Forget a disk whose sandbox ends."""
        if self._own.get(account.disk.loop) is account:
            del self._own[account.disk.loop]
            account.is_frozen = False
            self._changed.set()

    async def run(self) -> None:
        """Look, as often as the room demands."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_out)
            # Who only looks at a folder, as a doctor does, writes nothing into it, no ballast either.
            await self._changed.wait()
            while True:
                pause_s = _FARTHEST_S
                if self._own:
                    async with self._looking:
                        await self._look()
                    pause_s = self._pause_s()
                await run_blocking(self._thread, self.room.tend_ballast)
                with trio.move_on_after(pause_s):
                    await self._changed.wait()
                self._changed = trio.Event()

    async def _write_out(self) -> None:
        """Find places for what was accepted before another program can take them, where there is little room."""
        while True:
            await self._is_late.wait()
            for account in list(self._own.values()):
                if not account.is_placed:
                    with contextlib.suppress(OSError, ValueError):  # it ends at this moment, or its users are told
                        await run_blocking(self._writer, account.disk.write_out)
                        account.placed = await run_blocking(self._writer, account.disk.use)
            self._is_late = trio.Event()
            await trio.sleep(_NEAR_S)

    def _pause_s(self) -> float:
        if self._is_near:
            return min(_NEAR_S, max(_NEAREST_S, self.room.free_bytes / _MARGIN))
        # The time in which nobody can have written what there is above plenty.
        return min(_FARTHEST_S, max(_FAR_S, (self.room.spare_bytes - _plenty()) / _MARGIN))

    async def _back_wholly(self, account: Account, reason: str) -> None:
        try:
            spare = self.room.spare_bytes
            await run_blocking(self._thread, lambda: account.disk.back_wholly(spare))
        except OSError as error:
            _log.error("disks cannot be kept from growing here: %s", reason)
            refusal = await self.room.refusal(f"sandbox can be started (its disk must be allocated wholly: {reason})")
            raise refusal from error
        account.is_backed = True

    async def _look(self) -> None:
        if trio.current_time() - self._searched_at > _FAR_S:
            self._searched_at = trio.current_time()
            await run_blocking(self._thread, self._search)
        plan = await run_blocking(self._thread, self._measure_and_set)
        self._is_near = plan.is_near
        if plan.is_near and not all(account.is_placed for account in self._own.values()):
            self._is_late.set()
        if plan.is_broken:
            await run_blocking(self._thread, self.room.tend_ballast)
            await self._hold()
        elif any(account.is_frozen for account in self._own.values()):
            await self._let_go()
        self.room.frozen = sum(account.is_frozen for account in self._own.values())

    def _search(self) -> None:
        """Find the disks that other processes have in the same folder."""
        found: dict[int, Account] = {}
        for loop, image in _loops_below(self.folder):
            if loop not in self._own:
                known = self._others.get(loop)
                same = known is not None and known.disk.image == image
                found[loop] = known if known is not None and same else Account(MountedDisk(image, loop))
        self._others = found

    def _measure_and_set(self) -> Plan:
        accounts = [account for account in self._everybody() if _measured(account)]
        uses = [account.use for account in accounts if account.use is not None]
        self.room.owed_bytes = sum(account.owed for account in accounts)
        kept = self.room.min_free_bytes
        plan = plan_leaves(uses, [account.wrote for account in accounts], self.room.spare_bytes, kept, _plenty())
        restricted = 0
        # First those who get less.
        for account, use, leave in sorted(
            zip(accounts, uses, plan.leaves, strict=True), key=lambda each: each[2] - each[1].may_take
        ):
            if account.is_backed:
                continue
            keep_back = max(0, use.free - use.waiting - leave)
            restricted += keep_back > use.own_reserve
            if account.disk.loop in self._own:
                with contextlib.suppress(OSError):  # it ends at this moment
                    account.disk.keep_back(keep_back, use)
        self.room.restricted = restricted
        return plan

    def _everybody(self) -> Iterator[Account]:
        yield from list(self._own.values())
        yield from list(self._others.values())

    async def _hold(self) -> None:
        """Make those stand still to whom more is owed than what every disk is."""
        for account in list(self._own.values()):
            if account.owed > 2 * _SLACK and account.freeze is not None and not account.is_frozen:
                try:
                    await account.freeze()
                except OSError as error:
                    _log.error("the sandbox on %s cannot be stopped on a full disk: %s", account.disk.image, error)
                else:
                    account.is_frozen = True
                    _log.error(
                        "%s has no room for %d bytes that the sandbox on %s has set aside: it stands still until there"
                        " is some",
                        self.room.folder,
                        account.owed,
                        account.disk.image,
                    )

    async def _let_go(self) -> None:
        for account in list(self._own.values()):
            if account.is_frozen and account.thaw is not None and self.room.spare_bytes >= 0:
                await account.thaw()
                account.is_frozen = False


def _why_not(disk: MountedDisk) -> str:
    """Why a disk cannot be kept from growing; empty where it can."""
    if reason := can_keep_back():
        return reason
    try:
        use = disk.use()
        disk.keep_back(use.kept_back + BLOCK_BYTES, use)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def _measured(account: Account) -> bool:
    try:
        account.note(account.disk.use())
    except (OSError, ValueError):
        account.use = None  # it ends at this moment
        return False
    return True


def _loops_below(folder: Path) -> Iterator[tuple[int, Path]]:
    seen = backings()
    for name in loops_below(folder, seen):
        yield int(name.removeprefix("loop")), Path(seen[name])


def _plenty() -> int:
    """What all programs can have written in memory without a place on a disk, and what a disk takes in a second."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        threshold = int(_VMSTAT.read_text().split("nr_dirty_threshold ", 1)[1].split("\n", 1)[0])
        return threshold * os.sysconf("SC_PAGE_SIZE") + _MARGIN
    return 4 * _MARGIN
