"""Connections to a running command that end in every way a connection can end: the output is whole all the same."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.models import ExecutionResult
from sandboxrt.testing.peer import Peer
from sandboxrt.testing.peer_steps import Accept, Close, Drop, Expect, Send, Started, Step

TEXT = "hé😀llo\n" * 3


def out(data: str, offset: int, stream: str = "stdout") -> Send:
    return Send({"type": stream, "data": data, "offset": offset})


def exit_with(code: int = 0) -> Send:
    return Send({"type": "exit", "exit_code": code})


def length(text: str) -> int:
    return len(text.encode())


def reconnect(stdout: int, stderr: int = 0) -> Expect:
    return Expect("reconnect", {"stdout_offset": stdout, "stderr_offset": stderr})


HALF = TEXT[:10]
REST: tuple[Step, ...] = (out(TEXT[10:], length(HALF)), out("warn\n", 0, "stderr"), exit_with(3))
WHOLE = ExecutionResult(TEXT, "warn\n", 3)


def played(*ending: Step) -> tuple[Step, ...]:
    return (Accept(), Started(), out(HALF, 0), *ending)


def resumed(peer: Peer, *, acknowledged: bool = True) -> None:
    answer: tuple[Step, ...] = (Started("reconnect"),) if acknowledged else (reconnect(length(HALF)),)
    peer.script(Accept(), *answer, *REST, Close(1000))


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 4000, 4999, None])
async def test_close_codes_after_partial_output(
    clock: MockClock, box: AsyncSandbox, peer: Peer, code: int | None
) -> None:
    peer.script(*played(Close(code, "because" if code else None)))
    resumed(peer)
    begun = trio.current_time()
    assert await box.run("x") == WHOLE
    took = trio.current_time() - begun
    assert took < 0.2 if code == 1001 else 0.5 <= took < 1
    assert len(peer.frames("execute")) == 1
    frame = peer.frames("reconnect")[0]
    assert frame["command_id"] == peer.frames("execute")[0]["command_id"]
    assert (frame["stdout_offset"], frame["stderr_offset"]) == (length(HALF), 0)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("acknowledged", [True, False])
async def test_tcp_connection_ends(
    clock: MockClock, box: AsyncSandbox, peer: Peer, reset: bool, acknowledged: bool
) -> None:
    peer.script(*played(Drop(reset=reset)))
    resumed(peer, acknowledged=acknowledged)
    assert await box.run("x") == WHOLE


async def test_exit_without_close(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(*played(*REST))
    begun = trio.current_time()
    assert await box.run("x") == WHOLE
    with trio.fail_after(5):
        await peer.until(lambda: peer.open_sockets == 0)
    assert trio.current_time() - begun < 1


async def test_frames_after_exit_mean_nothing(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(*played(*REST, out("more", 100), exit_with(9), Send("no json"), Close(1011)))
    assert await box.run("x") == WHOLE
    assert len(peer.sockets) == 1
