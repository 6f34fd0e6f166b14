"""Starts of commands that do not come off at once: the command runs once, or the error says why it does not."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.errors import SandboxConnectionError, SandboxOperationError, SandboxRetryableConnectionError
from sandboxrt.models import ExecutionResult
from sandboxrt.testing.peer import Answer, Peer
from sandboxrt.testing.peer_steps import Accept, Close, Delay, Drop, Expect, Refuse, Send, SendRaw, Started, Step
from tests.client.test_losses import exit_with, out

BODY = {"detail": {"error": "Overloaded", "message": "come back later", "error_id": "e-17"}}
WELL = ExecutionResult("ok\n", "", 0)
OVER_HTTP = ExecutionResult("over HTTP\n", "", 0)


def good(peer: Peer) -> None:
    peer.script(Accept(), Started(), out("ok\n", 0), exit_with(0), Close())


def one_command(peer: Peer) -> None:
    """Every start was of the same command."""
    assert len({frame["command_id"] for frame in peer.frames("execute")}) == 1
    assert not peer.asked("POST", "/execute")


async def test_the_handshake_is_cut_at_every_byte(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    answer = Accept.answer("x" * 24)
    for cut in range(len(answer) + 1):
        peer.script(Accept(cut_after=cut, reset=cut % 2 == 0))
        good(peer)
        before = len(peer.frames("execute"))
        assert await box.run("x") == WELL, cut
        assert len(peer.frames("execute")) - before <= 2
        await peer.until(lambda: peer.open_sockets == 0)
    assert not peer.asked("POST", "/execute")


@pytest.mark.parametrize("reset", [True, False])
async def test_started_is_cut_at_every_byte(clock: MockClock, box: AsyncSandbox, peer: Peer, reset: bool) -> None:
    frame = {"type": "started", "command_id": "another-id", "pid": 1}
    for cut in range(80):
        peer.script(Accept(), Expect("execute"), Send(frame, cut_after=cut, reset=reset))
        # What the server did say may have been the whole frame: then the next connection is a reconnect.
        whole = cut >= len(str(frame)) + 2
        peer.script(Accept(), Started("reconnect" if whole else "execute"), out("ok\n", 0), exit_with(0), Close())
        assert await box.run("x") == WELL, cut


@pytest.mark.parametrize("reset", [True, False])
async def test_an_output_frame_is_cut_at_every_byte(
    clock: MockClock, box: AsyncSandbox, peer: Peer, reset: bool
) -> None:
    frame = {"type": "stdout", "data": "hé😀", "offset": 0}
    sent = len(str(frame).replace("é", "\\u00e9").replace("😀", "\\ud83d\\ude00")) + 2
    for cut in range(sent + 1):
        received = cut >= sent
        peer.script(Accept(), Started(), Send(frame, cut_after=cut, reset=reset))
        rest = out("!", 7) if received else out("hé😀!", 0)
        peer.script(
            Accept(),
            Expect("reconnect", {"stdout_offset": 7 if received else 0}),
            rest,
            exit_with(0),
            Close(),
        )
        assert (await box.run("x")).stdout == "hé😀!", cut


@pytest.mark.parametrize("how", [Close(1000), Close(1001), Close(1011), Close(None), Drop(), Drop(reset=False)])
async def test_an_end_before_started_repeats_the_same_start(
    clock: MockClock, box: AsyncSandbox, peer: Peer, how: Step
) -> None:
    for _ in range(3):
        peer.script(Accept(), Expect("execute"), how)
    good(peer)
    assert await box.run("x") == WELL
    assert len(peer.frames("execute")) == 4
    one_command(peer)


async def test_a_start_is_given_up_after_five_repetitions(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    for _ in range(6):
        peer.script(Accept(), Expect("execute"), Drop())
    # The clean-up asks once whether the command is there all the same.
    begun = trio.current_time()
    with pytest.raises(SandboxConnectionError):
        await box.run("x")
    assert 0.8 * 15.5 <= trio.current_time() - begun <= 15.6
    one_command(peer)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("after", [None, "7", "0", "soon"])
async def test_refusals_for_now_are_tried_again(
    clock: MockClock, box: AsyncSandbox, peer: Peer, status: int, after: str | None
) -> None:
    peer.script(Refuse(status, BODY, {} if after is None else {"Retry-After": after}))
    good(peer)
    begun = trio.current_time()
    assert await box.run("x") == WELL
    took = trio.current_time() - begun
    least, most = {"7": (7, 7.1), "0": (0, 0.1)}.get(after or "", (0.4, 0.6))
    assert least <= took <= most
    one_command(peer)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_what_a_lasting_refusal_says_is_shown(
    clock: MockClock, box: AsyncSandbox, peer: Peer, status: int
) -> None:
    for _ in range(6):
        peer.script(Refuse(status, BODY, {"Retry-After": "1"}))
    with pytest.raises(SandboxConnectionError, match=r"come back later \(error_id=e-17\)") as caught:
        await box.run("x", close_input=False)
    assert str(status) in str(caught.value)
    assert not peer.asked("POST", "/execute")


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 410, 426])
async def test_other_refusals_are_final(clock: MockClock, box: AsyncSandbox, peer: Peer, status: int) -> None:
    peer.script(Refuse(status, BODY, {"Retry-After": "1"}))
    begun = trio.current_time()
    with pytest.raises(SandboxConnectionError, match="come back later") as caught:
        await box.run("x", wait=False)
    assert not isinstance(caught.value, SandboxRetryableConnectionError)
    assert trio.current_time() - begun < 0.5
    assert not peer.asked("POST", "/execute")


@pytest.mark.parametrize("body", ["", "<html>busy</html>", {"detail": "plain"}, [1], {"detail": [{"msg": "listed"}]}])
async def test_bodies_of_refusals_may_be_anything(
    clock: MockClock, box: AsyncSandbox, peer: Peer, body: object
) -> None:
    peer.script(Refuse(403, body))
    said = {"{'detail': 'plain'}": "plain", "{'detail': [{'msg': 'listed'}]}": "listed"}.get(str(body), "HTTP 403")
    with pytest.raises(SandboxConnectionError, match=said):
        await box.run("x", wait=False)


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\x01\x02\x03\x04\x05", b"{}\n", b"\x15\x03\x01\x00\x02\x02"]
)
async def test_garbage_instead_of_http(clock: MockClock, box: AsyncSandbox, peer: Peer, garbage: bytes) -> None:
    peer.script(SendRaw(garbage), Drop(reset=False))
    begun = trio.current_time()
    with pytest.raises(SandboxConnectionError, match="does not speak HTTP"):
        await box.run("x", wait=False)
    assert trio.current_time() - begun < 1
    assert len(peer.sockets) == 1


async def test_garbage_from_a_peer_that_stays(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(SendRaw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"))
    begun = trio.current_time()
    with pytest.raises(SandboxConnectionError):
        await box.run("x", wait=False)
    assert trio.current_time() - begun < 31


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: d3Jvbmc=\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/9.9 999 What\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nbroken header\r\n\r\n",
        b"HTTP/1.1 503 X\r\nContent-Length: 1000\r\n\r\npartial",
        b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
async def test_broken_handshakes_end_in_a_typed_error(
    clock: MockClock, box: AsyncSandbox, peer: Peer, answer: bytes
) -> None:
    for _ in range(6):
        peer.script(SendRaw(answer), Drop(reset=False))
    begun = trio.current_time()
    with pytest.raises(SandboxConnectionError):
        await box.run("x", wait=False)
    assert trio.current_time() - begun < 120
    peer._scripts.clear()


async def test_a_server_that_says_nothing(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    for _ in range(4):
        peer.script()
    begun = trio.current_time()
    with pytest.raises(SandboxConnectionError):
        await box.run("x", wait=False)
    assert trio.current_time() - begun <= 121  # the whole of a start has a limit
    assert peer.open_sockets == 0


async def test_an_accepted_start_that_is_never_answered(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Expect("execute"))
    for _ in range(3):
        peer.script(Accept())
    begun = trio.current_time()
    with pytest.raises(SandboxConnectionError):
        await box.run("x", wait=False)
    assert 119 < trio.current_time() - begun < 140
    peer._scripts.clear()


@pytest.mark.parametrize(
    "first",
    [
        {"type": "stdout", "data": "x", "offset": 0},
        {"type": "exit", "exit_code": 0},
        {"type": "input_ack", "offset": 0},
    ],
)
async def test_a_first_frame_other_than_started(
    clock: MockClock, box: AsyncSandbox, peer: Peer, first: dict[str, Any]
) -> None:
    peer.script(Accept(), Expect("execute"), Send(first))
    with pytest.raises(SandboxOperationError, match=r"(?i)expected 'started'"):
        await box.run("x", wait=False)
    assert peer.open_sockets == 0


async def test_unknown_frames_before_started_are_passed_over(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(
        Accept(), Expect("execute"), Send({"type": "weather", "is": "fine"}),
        Send({"type": "started", "command_id": "server-made", "pid": 5, "new": [1]}), out("ok\n", 0), exit_with(0),
    )  # fmt: skip
    handle = await box.run("x", wait=False)
    assert (handle.command_id, handle.pid) == ("server-made", 5)
    assert await handle.result == WELL


async def test_the_servers_own_command_id_is_used_from_then_on(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(command_id="server-made"), out("o", 0), Drop())
    peer.script(Accept(), Expect("reconnect", {"command_id": "server-made"}), out("k\n", 1), exit_with(0))
    assert await box.run("x") == WELL


@pytest.mark.parametrize(
    "text", ["no json", "[]", "{}", '{"type": 5}', '{"type":"stdout"}', '{"type":"exit"}', '{"type":"stdout","data":1}']
)
async def test_frames_that_cannot_be(clock: MockClock, box: AsyncSandbox, peer: Peer, text: str) -> None:
    peer.script(Accept(), Started(), Send(text))
    peer.script(Accept(), Expect("reconnect"), Delay(0), Expect("kill"), exit_with(137))
    with pytest.raises(SandboxOperationError):
        await box.run("x")
    assert len(peer.frames("execute")) == 1
    peer._scripts.clear()


# -- plain HTTP --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal", [Refuse(404), Refuse(426), Refuse(400, "no WebSocket here"), SendRaw(b"gopher\r\n\r\n")]
)
async def test_http_is_used_where_no_websocket_can_be_had(
    clock: MockClock, box: AsyncSandbox, peer: Peer, refusal: Step
) -> None:
    peer.script(refusal, Drop(reset=False))
    assert await box.run("x", env={"A": "b"}, cwd="/w") == OVER_HTTP
    (request,) = peer.asked("POST", "/execute")
    assert request.json == {"command": "x", "timeout": 60, "shell": "/bin/bash", "env": {"A": "b"}, "cwd": "/w"}


async def test_http_is_used_when_refusals_last(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    for _ in range(6):
        peer.script(Refuse(503))
    assert await box.run("x") == OVER_HTTP
    assert len(peer.asked("POST", "/execute")) == 1


@pytest.mark.parametrize("options", [{"pty": True}, {"close_input": False}, {"user": "nobody"}])
async def test_http_is_not_used_for_what_it_cannot_do(
    clock: MockClock, box: AsyncSandbox, peer: Peer, options: dict[str, Any]
) -> None:
    peer.script(Refuse(404))
    with pytest.raises(SandboxConnectionError):
        await box.run("x", **options)
    assert not peer.asked("POST", "/execute")


async def test_http_is_not_used_once_a_start_may_have_arrived(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Drop())
    peer.script(Refuse(404))
    peer.script(Refuse(404))  # the clean-up's
    with pytest.raises(SandboxConnectionError):
        await box.run("x")
    assert not peer.asked("POST", "/execute")
    peer._scripts.clear()


async def test_an_execute_over_http_is_not_sent_again_by_a_broken_connection(
    clock: MockClock, box: AsyncSandbox, peer: Peer
) -> None:
    peer.script(Refuse(404))
    peer.answer("POST", "/execute", Answer(drop=True))
    with pytest.raises(SandboxConnectionError):
        await box.run("x")
    assert len(peer.asked("POST", "/execute")) == 1


async def test_headers_of_a_call_reach_every_attachment(
    clock: MockClock, client: AsyncSandboxClient, box: AsyncSandbox, peer: Peer
) -> None:
    peer.script(Accept(), Started(), out("o", 0), Drop())
    peer.script(Accept(), Started("reconnect"), out("k\n", 1), exit_with(0))
    assert await box.run("x", headers={"X-Trace": "t1", "X-Api-Key": "other"}) == WELL
    assert [(s.headers["x-trace"], s.headers["x-api-key"]) for s in peer.sockets] == [("t1", "other")] * 2
    peer.script(Accept(), Started("reconnect"), exit_with(0))
    await (await box.reconnect("id", headers={"x-trace": "t2"})).result
    assert peer.sockets[2].headers["x-trace"] == "t2"
    assert peer.sockets[2].headers["x-api-key"] == "key"


async def test_the_environment_bounds_a_start(
    clock: MockClock, box: AsyncSandbox, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANGSMITH_SANDBOX_WS_TIMEOUT_CONNECT_BUDGET", "5")
    async with AsyncSandboxClient(api_endpoint=peer.endpoint) as client:
        sandbox = await client.get_sandbox("box")
        peer.script(Accept(), Expect("execute"), Delay(1000))
        before = trio.current_time()
        with pytest.raises(SandboxConnectionError, match="in 5 s"):
            await sandbox.run("x", timeout=0)
        assert 5 <= trio.current_time() - before < 30
