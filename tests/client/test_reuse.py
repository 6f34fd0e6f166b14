"""Sockets that served a command and are kept for the next, where servers offer that; and what if they break then."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sandboxrt import AsyncSandbox
from sandboxrt.testing.peer import Peer
from sandboxrt.testing.peer_steps import Accept, Close, Delay, Drop, Expect, Send, Started, StopReading

EXT = {"input_offset": 0}
OFFER = {"type": "exit", "exit_code": 0, "reuse_s": 30}
EXIT = {"type": "exit", "exit_code": 0}


def output(text: str) -> Send:
    return Send({"type": "stdout", "data": text, "offset": 0})


async def test_the_next_command_goes_over_the_same_socket(box: AsyncSandbox, peer: Peer) -> None:
    # The peer's step answers with the id of the socket's first command, as a server that is wrong would.
    peer.script(Accept(), Started(ext=EXT), output("one"), Send(OFFER), Started(ext=EXT), output("wrong"), Send(EXIT))
    peer.script(Accept(), Started(ext=EXT), output("two"), Send(EXIT))
    assert (await box.run("1")).stdout == "one"
    assert (await box.run("2")).stdout == "two"
    ids = [frame["command_id"] for frame in peer.frames("execute")]
    assert len(peer.sockets) == 2
    assert ids[0] != ids[1] == ids[2]
    assert all(frame["ext"]["reuse"] is True for frame in peer.frames("execute"))


async def test_a_server_without_the_extension_gets_a_socket_for_each(box: AsyncSandbox, peer: Peer) -> None:
    for _ in range(3):
        peer.script(Accept(), Started(), Send(EXIT), Close())
        await box.run("true")
    assert len(peer.sockets) == 3


@pytest.mark.parametrize("ending", [Drop(), Drop(reset=False), Close(1000), Close(1012)])
async def test_a_socket_that_ends_at_rest_is_not_used(box: AsyncSandbox, peer: Peer, ending: Any) -> None:
    peer.script(Accept(), Started(ext=EXT), Send(OFFER), ending)
    peer.script(Accept(), Started(ext=EXT), output("two"), Send(EXIT))
    await box.run("1")
    await peer.until(lambda: peer.open_sockets == 0)
    assert (await box.run("2")).stdout == "two"
    assert len(peer.frames("execute")) == 2


@pytest.mark.parametrize("ending", [Drop(), Drop(reset=False), Close(1000), Close(1013)])
async def test_a_start_over_a_dying_socket_is_repeated_at_once(
    clock: MockClock, box: AsyncSandbox, peer: Peer, ending: Any
) -> None:
    peer.script(Accept(), Started(ext=EXT), Send(OFFER), Expect("execute"), ending)
    peer.script(Accept(), Started(ext=EXT), output("two"), Send(EXIT))
    await box.run("1")
    began = trio.current_time()
    assert (await box.run("2")).stdout == "two"
    assert trio.current_time() - began < 0.4, "no delay, as after a loss"
    ids = [frame["command_id"] for frame in peer.frames("execute")]
    assert (len(ids), ids[1]) == (3, ids[2])


async def test_a_silent_server_is_asked_whether_it_lives(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(ext=EXT), Send(OFFER), Expect("execute"), StopReading(9))
    peer.script(Accept(), Started(ext=EXT), output("two"), Send(EXIT))
    await box.run("1")
    began = trio.current_time()
    assert (await box.run("2")).stdout == "two"
    assert 6 < trio.current_time() - began < 10


async def test_a_socket_rests_for_less_time_than_the_server_waits(
    clock: MockClock, box: AsyncSandbox, peer: Peer
) -> None:
    peer.script(Accept(), Started(ext=EXT), Send(OFFER), Delay(1000))
    await box.run("1")
    began = trio.current_time()
    await peer.until(lambda: peer.open_sockets == 0)
    assert 14 < trio.current_time() - began < 17


async def test_other_headers_have_sockets_of_their_own(box: AsyncSandbox, peer: Peer) -> None:
    peer.script(Accept(), Started(ext=EXT), Send(OFFER))
    peer.script(Accept(), Started(ext=EXT), output("two"), Send(EXIT))
    await box.run("1")
    assert (await box.run("2", headers={"authorization": "Bearer other"})).stdout == "two"
    assert peer.sockets[1].headers["authorization"] == "Bearer other"
