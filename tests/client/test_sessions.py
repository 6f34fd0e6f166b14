"""Frames that a server should not send, and orders that have to get through whatever the connection does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.client.transport.input import WINDOW_BYTES
from sandboxrt.errors import (
    CommandNotFoundError,
    CommandTimeoutError,
    OutputLostError,
    SandboxConnectionError,
    SandboxOperationError,
)
from sandboxrt.testing.peer import Peer
from sandboxrt.testing.peer_steps import (
    Accept,
    Close,
    Delay,
    Do,
    Drop,
    Expect,
    PeerSocket,
    Send,
    Started,
    StopReading,
)
from tests.client.test_losses import exit_with, out

EXT = {"input_offset": 0}


def error(kind: str, **more: Any) -> Send:
    return Send({"type": "error", "error": f"it is {kind}", "error_type": kind, **more})


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("CommandTimeout", CommandTimeoutError),
        ("CommandNotFound", CommandNotFoundError),
        ("SessionExpired", CommandNotFoundError),
        ("CommandError", SandboxOperationError),
        ("SomethingNew", SandboxOperationError),
    ],
)
async def test_error_frames(
    clock: MockClock, box: AsyncSandbox, peer: Peer, kind: str, expected: type[SandboxOperationError]
) -> None:
    # In place of the start, after it, and in place of a re-attachment.
    peer.script(Accept(), Expect("execute"), error(kind), Close())
    with pytest.raises(expected) as refused:
        await box.run("x")
    peer.script(Accept(), Started(), out("part\n", 0), error(kind), Close())
    with pytest.raises(expected) as ended:
        await box.run("x", timeout=9)
    peer.script(Accept(), Started(), out("part\n", 0), Drop())
    peer.script(Accept(), Expect("reconnect"), error(kind), Close())
    with pytest.raises(expected) as lost:
        await box.run("x")
    for found in (refused.value, ended.value, lost.value):
        assert (found.error_type, f"it is {kind}" in str(found)) == (kind, True)
    if isinstance(ended.value, CommandTimeoutError):
        assert (ended.value.stdout, ended.value.timeout) == ("part\n", 9)
    peer.script(Accept(), Expect("reconnect", {"command_id": "gone"}), error(kind), Close())
    if kind == "CommandTimeout":
        # How that command ended, not a failure to attach to it.
        handle = await box.reconnect("gone")
        with pytest.raises(expected):
            await handle.result
    else:
        with pytest.raises(expected) as missing:
            await box.reconnect("gone")
        assert missing.value.operation == "reconnect"


async def test_repeated_and_stale_output_counts_once(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(
        Accept(), Started(), out("héllo", 0), out("héllo", 0), out("llo wörld", 3), out("h", 0), Drop()
    )  # fmt: skip
    peer.script(Accept(), Started("reconnect"), out("wörld!", 7), exit_with(0), Close())
    handle = await box.run("x", wait=False)
    chunks = [(chunk.offset, chunk.data) async for chunk in handle]
    assert "".join(data for _, data in chunks) == "héllo wörld!"
    assert [offset for offset, _ in chunks] == sorted({offset for offset, _ in chunks})


async def test_a_gap_is_an_error(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(), out("abc", 0), out("xyz", 10), exit_with(0), Close())
    with pytest.raises(OutputLostError) as lost:
        await box.run("x")
    assert (lost.value.stream, lost.value.requested_offset, lost.value.first_offset) == ("stdout", 3, 10)


async def test_an_answer_that_names_another_command_is_none(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(), out("a", 0), Drop())
    peer.script(Accept(), Started("reconnect", command_id="somebody-elses"), out("WRONG", 1), Close())
    peer.script(Accept(), Started("reconnect"), out("b", 1), exit_with(0), Close())
    assert (await box.run("x")).stdout == "ab"


async def test_a_message_beyond_every_bound_ends_in_an_error(
    clock: MockClock, box: AsyncSandbox, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandboxrt.client.transport import websocket

    monkeypatch.setattr(websocket.SocketLimits.__init__, "__kwdefaults__", {
        **websocket.SocketLimits.__init__.__kwdefaults__, "message_bytes": 1000,
    })  # fmt: skip
    async with AsyncSandboxClient(api_endpoint=peer.endpoint) as client:
        sandbox = await client.get_sandbox("box")
        peer.script(Accept(), Started(), out("x" * 5000, 0))
        for _ in range(5):
            peer.script(Accept(), Started("reconnect"), out("x" * 5000, 0))
        with pytest.raises(SandboxConnectionError, match="giving up"):
            with trio.fail_after(600):
                await sandbox.run("x")
        assert peer.sockets[0].close_code == 1009


async def test_a_silent_command_is_never_given_up(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(), Delay(2000), Drop())
    for _ in range(20):
        peer.script(Accept(), Started("reconnect"), Delay(90), Drop())
    peer.script(Accept(), Started("reconnect"), Delay(1000), exit_with(4), Close())
    assert (await box.run("x", timeout=0)).exit_code == 4


async def test_a_kill_keeps_the_connection_until_the_exit(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(), Expect("kill"), Delay(3), out("last words", 0), exit_with(137), Close())
    handle = await box.run("x", wait=False)
    await handle.kill()
    result = await handle.result
    assert (result.exit_code, result.stdout) == (137, "last words")


async def test_a_kill_is_repeated_over_a_broken_connection(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(), Expect("kill"), Drop())
    peer.script(Accept(), Started("reconnect"), Expect("kill"), exit_with(137), Close())
    handle = await box.run("x", wait=False)
    await handle.kill()
    assert (await handle.result).exit_code == 137


async def test_input_is_sent_again_from_where_the_server_is(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(
        Accept(), Started(ext=EXT), Expect("input", {"data": "häns\n", "offset": 0}),
        Send({"type": "input_ack", "offset": 6}), Expect("input", {"data": "und\n", "offset": 6}), Drop(),
    )  # fmt: skip
    peer.script(
        Accept(), Started("reconnect", ext={"input_offset": 6}), Expect("input", {"data": "und\n", "offset": 6}),
        Expect("close_stdin"), exit_with(0), Close(),
    )  # fmt: skip
    handle = await box.run("x", wait=False)
    await handle.send_input("häns\n")
    await handle.send_input("und\n")
    await handle.close_input()
    assert (await handle.result).exit_code == 0
    ids = [frame["ext"]["input_id"] for kind in ("execute", "reconnect") for frame in peer.frames(kind)]
    assert len(ids) == 2 and len(set(ids)) == 1


async def test_a_server_without_the_extension_gets_plain_input(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(), Expect("input", {"data": "a\n", "offset": None}), Expect("close_stdin"),
                exit_with(0), Close())  # fmt: skip
    handle = await box.run("x", wait=False)
    await handle.send_input("a\n")
    await handle.close_input()
    assert (await handle.result).exit_code == 0
    peer.script(Accept(), Started(), Delay(5), exit_with(0), Close())
    other = await box.run("x", wait=False)
    with pytest.raises(SandboxOperationError, match="no signals"):
        await other.send_signal(2)
    await other.result


async def test_input_waits_for_a_peer_that_does_not_take_it(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    got: list[int] = []

    async def count(socket: PeerSocket) -> None:
        while not got or sum(got) < WINDOW_BYTES:
            got.append(len((await socket.receive())["data"]))

    peer.script(Accept(), Started(ext=EXT), Do(count), StopReading(41), Delay(1))
    handle = await box.run("x", wait=False)
    with trio.move_on_after(40) as scope:
        await handle.send_input("x" * (4 * WINDOW_BYTES))
    assert scope.cancelled_caught
    # Nothing was acknowledged, so no more than the window is on its way.
    assert sum(got) == WINDOW_BYTES
    assert sum(len(json.dumps(frame)) for frame in peer.frames("input")) < 2 * WINDOW_BYTES
    await handle.detach()
