"""Virtual time over real connections: a clock that jumps only while nothing can be under way on loopback.

``MockClock(autojump_threshold=...)`` jumps once every task has waited for a moment. Over sockets that is wrong: a busy
kernel may hold bytes back, and a worker thread may be busy, for longer than any moment. Here the clock is asked to jump
when, besides, no worker thread runs and the kernel awaits nothing on the connections concerned.

Source: proc_pid_net(5), ``tcp``; the kernel's ``tcp4_seq_show`` for the timer column.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import trio
import trio.testing

__all__ = ["jumping", "under_way"]

_IDLE_S = 0.02
_TABLE = Path("/proc/net/tcp")
_ESTABLISHED, _SYN_SENT, _SYN_RECEIVED = "01", "02", "03"
_RETRANSMISSION = "01"
"""The timer that runs while bytes, or an end, were sent and not acknowledged; not while the other side's window is
closed, which is how a peer that reads nothing looks: then time has to go on."""


@contextlib.asynccontextmanager
async def jumping(clock: trio.testing.MockClock, port: int) -> AsyncIterator[None]:
    """Have the clock jump to the next deadline, for the length of the block, whenever nothing is under way.

    Args:
        clock: The run's clock, with neither a rate nor an ``autojump_threshold``.
        port: The port on loopback whose connections count.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_jump, clock, port)
        yield
        nursery.cancel_scope.cancel()


async def _jump(clock: trio.testing.MockClock, port: int) -> None:
    while True:
        # Real time, whatever the clock says.
        await trio.testing.wait_all_tasks_blocked(_IDLE_S)
        wait_s = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if 0 < wait_s < math.inf and not _thread_runs() and not under_way(port):
            clock.jump(wait_s)


def _thread_runs() -> bool:
    return trio.to_thread.current_default_thread_limiter().borrowed_tokens > 0


@attrs.frozen
class _Row:
    local: str
    remote: str
    state: str
    timer: str

    @property
    def ports(self) -> set[int]:
        return {int(address.rpartition(":")[2], 16) for address in (self.local, self.remote)}


def under_way(port: int) -> bool:
    """Whether something is under way on a connection to or from a port of 127.0.0.1.

    That is a handshake, bytes or an end that the other side has not acknowledged, or a reset that has not come.
    """
    rows = [row for row in _rows() if port in row.ports]
    ends = {(row.local, row.remote) for row in rows}
    return any(
        row.state in (_SYN_SENT, _SYN_RECEIVED)
        or row.timer == _RETRANSMISSION
        or (row.state == _ESTABLISHED and (row.remote, row.local) not in ends)
        for row in rows
    )


def _rows() -> list[_Row]:
    lines = _TABLE.read_text().splitlines()[1:]
    fields = (line.split() for line in lines)
    return [_Row(found[1], found[2], found[3], found[5].partition(":")[0]) for found in fields]
