"""What a sandbox notices of another one that takes all it can get: disk, memory, processes, processor time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

import trio

from benchmarks.report import Measurement
from sandboxrt import AsyncSandbox, AsyncSandboxClient

__all__ = ["beside_neighbours"]

# Each is bounded by its sandbox's limits and by a count of its own.
_FILL = "for i in $(seq 400); do head -c 64M /dev/zero >/root/$i 2>/dev/null || rm -f /root/[0-9]*; done"
_HOARD = "for i in $(seq 400); do /usr/bin/python3 -S -c 'x = b\"x\" * (1 << 30)'; done"
_FORK = """/usr/bin/python3 -S -c '
import os, time
for _ in range(200_000):
    try:
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
    except OSError:
        while True:
            try:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    break
            except ChildProcessError:
                break
'"""
_SPIN = "for i in 1 2 3 4; do timeout 60 sh -c 'while :; do :; done' & done; wait"
ABUSES: Final[Mapping[str, str]] = {
    "fills its disk": _FILL,
    "runs out of memory": _HOARD,
    "forks all it can": _FORK,
    "computes on four processes": _SPIN,
}
_ABUSER: Final = {"mem_bytes": 256 * 1024**2, "fs_capacity_bytes": 512 * 1024**2}
_SAMPLES: Final = 20
_KILLED: Final = 137
_SETTLE_S: Final = 0.5


async def beside_neighbours(client: AsyncSandboxClient, rounds: int) -> list[Measurement]:
    """Round trips in one sandbox, while another one is at it and while it is not, in turn."""
    quiet: dict[str, list[float]] = {what: [] for what in ABUSES}
    beside: dict[str, list[float]] = {what: [] for what in ABUSES}
    async with client.sandbox() as neighbour, client.sandbox(**_ABUSER) as abuser:
        await _round_trips(neighbour)
        for _ in range(rounds):
            for what, command in ABUSES.items():
                quiet[what] += await _round_trips(neighbour)
                abuse = await abuser.run(command, shell="/bin/sh", timeout=0, wait=False)
                await trio.sleep(_SETTLE_S)
                beside[what] += await _round_trips(neighbour)
                await abuse.kill()
                assert (await abuse.result).exit_code == _KILLED, f"what {what} was over before the samples were"
    return [
        Measurement(
            f"round trip beside a sandbox that {what}",
            "ms",
            {"sandboxrt": beside[what], "with a quiet neighbour": quiet[what]},
            "at most twice the quiet one",
            note="`echo ok` in one sandbox; the other has one processor, 256 MiB of memory, 512 MiB of disk and 256 "
            "processes.",
        )
        for what in ABUSES
    ]


async def _round_trips(sandbox: AsyncSandbox) -> list[float]:
    taken = []
    for _ in range(_SAMPLES):
        began = time.perf_counter()
        assert (await sandbox.run("echo ok", shell="/bin/sh")).stdout == "ok\n"
        taken.append(1000 * (time.perf_counter() - began))
    return taken
