"""What a caller is told of a command that its sandbox or server has ended: at once, in words, with what had come."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.errors import (
    CommandInterruptedError,
    CommandNotFoundError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxOperationError,
)
from sandboxrt.protocol.backoff import MAX_LOSSES
from sandboxrt.protocol.exec import COMMAND_TOO_LONG
from sandboxrt.testing.peer import Peer
from sandboxrt.testing.peer_steps import Accept, Close, Drop, Expect, Refuse, Send, Started, Step

HALF: tuple[Step, ...] = (
    Accept(),
    Started(),
    Send({"type": "stdout", "data": "half", "offset": 0}),
    Send({"type": "stderr", "data": "warn", "offset": 0}),
)


def fails_with(error_type: str, words: str = "words for it") -> Send:
    return Send({"type": "error", "error": words, "error_type": error_type})


async def error_of(box: AsyncSandbox) -> SandboxClientError:
    with pytest.raises(SandboxClientError) as caught:
        await box.run("x")
    return caught.value


@pytest.mark.parametrize("error_type", ["CommandInterrupted", "SandboxStopped", "SandboxDeleted", "SandboxDied"])
@pytest.mark.parametrize("reconnected", [False, True])
async def test_the_end_is_told_with_what_had_come(
    clock: MockClock, box: AsyncSandbox, peer: Peer, error_type: str, reconnected: bool
) -> None:
    if reconnected:
        peer.script(*HALF, Close(1012))
        peer.script(Accept(), Expect("reconnect"), fails_with(error_type), Close(1000))
    else:
        peer.script(*HALF, fails_with(error_type), Close(1000))
    error = await error_of(box)
    assert type(error) is CommandInterruptedError
    assert isinstance(error, CommandNotFoundError)
    assert str(error) == f"words for it [{error_type}]"
    assert (error.stdout, error.stderr) == ("half", "warn")


@pytest.mark.parametrize("error_type", ["CommandError", "CommandTimeout", "SessionExpired", "InternalError"])
async def test_so_is_any_other(clock: MockClock, box: AsyncSandbox, peer: Peer, error_type: str) -> None:
    peer.script(*HALF, fails_with(error_type), Close(1000))
    error = await error_of(box)
    assert isinstance(error, SandboxOperationError)
    assert (error.error_type, error.stdout, error.stderr) == (error_type, "half", "warn")


async def test_so_is_a_connection_that_is_lost_for_good(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(*HALF, Drop())
    for _ in range(MAX_LOSSES):
        peer.script(Drop())
    handle = await box.run("x", wait=False)
    with pytest.raises(SandboxConnectionError) as caught:
        await handle.result
    assert (caught.value.stdout, caught.value.stderr) == ("half", "warn")


async def test_a_repeated_start_that_is_not_run_again(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Expect("execute"), Drop())
    peer.script(Accept(), Expect("execute"), fails_with("CommandInterrupted"), Close(1000))
    error = await error_of(box)
    assert isinstance(error, CommandInterruptedError)
    assert (error.operation, error.stdout) == ("command", "")
    first, second = peer.frames("execute")
    assert first["command_id"] == second["command_id"]


async def test_that_the_sandbox_is_gone_is_told_at_once(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(*HALF, Drop())
    peer.script(Refuse(404, {"detail": {"error": "NotFound", "message": "Sandbox 'box' not found"}}))
    begun = trio.current_time()
    error = await error_of(box)
    assert trio.current_time() - begun < 1
    assert str(error).endswith("ended with its sandbox: Sandbox 'box' not found [SandboxDeleted]")
    assert isinstance(error, CommandInterruptedError)
    assert (error.stdout, error.stderr) == ("half", "warn")


async def test_a_404_of_something_in_between_is_not(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(*HALF, Drop())
    peer.script(Refuse(404, "default backend - 404"))
    peer.script(Accept(), Started("reconnect"), Send({"type": "exit", "exit_code": 0}), Close(1000))
    assert (await box.run("x")).stdout == "half"


async def test_a_start_that_is_too_long_for_the_server(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Expect("execute"), Close(1009))
    begun = trio.current_time()
    error = await error_of(box)
    assert trio.current_time() - begun < 1
    assert str(error) == f"{COMMAND_TOO_LONG} [CommandError]"
    assert isinstance(error, SandboxOperationError)
    assert error.operation == "command"
