"""Many calls at once: no more under way than there may be connections, first come first served, none lost."""

from __future__ import annotations

import socket
import ssl

import httpx
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.client.config import RemoteConfig
from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.client.transport.http import HttpTransport
from sandboxrt.http_pool import http_connections
from sandboxrt.testing.peer import Answer, Peer

CROWD = 70
ROOM = 20


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxrt.http_pool._ORDINARY", ROOM)


async def test_many_calls_of_a_fresh_client(clock: MockClock, client: AsyncSandboxClient, peer: Peer) -> None:
    most = done = 0
    peer.answer("GET", "/boxes", *[Answer(200, {"sandboxes": []}, delay_s=9)] * CROWD)
    # Four rounds of nine seconds, though each call may take ten.

    async def ask() -> None:
        nonlocal done
        assert await client.list_sandboxes() == []
        done += 1

    async with trio.open_nursery() as nursery:
        for _ in range(CROWD):
            nursery.start_soon(ask)
        while done < CROWD:
            await trio.sleep(4)
            most = max(most, peer.connections)
    assert most == ROOM


async def test_whoever_waits_can_be_cancelled_and_the_next_is_let_in(
    clock: MockClock, box: AsyncSandbox, peer: Peer
) -> None:
    peer.answer("GET", "/download", Answer(200, b"late", delay_s=50))
    peer.answer("GET", "/download", *[Answer(200, b"later", delay_s=500)] * (ROOM - 1))
    order: list[int] = []

    async def read(number: int) -> None:
        await box.read("/x", timeout=0)
        order.append(number)

    async with trio.open_nursery() as crowd:
        for number in range(ROOM):
            crowd.start_soon(read, number)
        await peer.until(lambda: peer.waiting == ROOM)
        peer.files["/x"] = b""
        with trio.move_on_after(5) as impatient:
            await box.read("/x")
        assert impatient.cancelled_caught
        for number in range(ROOM, ROOM + 3):
            crowd.start_soon(read, number)
            await trio.testing.wait_all_tasks_blocked(0.01)
    late = [number for number in order if number >= ROOM]
    assert late == sorted(late)
    assert len(order) == ROOM + 3


async def test_leases_have_their_own_way_through(clock: MockClock, peer: Peer) -> None:
    peer.box(name="box")
    peer.answer("GET", "/boxes", *[Answer(200, {"sandboxes": []}, delay_s=100)] * (ROOM + 50))
    config = RemoteConfig(base_url=peer.endpoint, timeout_s=0)
    async with HttpTransport.open(config) as transport, trio.open_nursery() as nursery:
        for _ in range(ROOM + 50):
            nursery.start_soon(transport.list_sandboxes)
        await peer.until(lambda: peer.waiting == ROOM)
        peer.answer("POST", "/boxes/box/lease", Answer(200, {}))
        begun = trio.current_time()
        await transport.renew_lease("box", 60)
        assert trio.current_time() - begun < 1
        nursery.cancel_scope.cancel()


async def test_a_network_that_swallows_everything_is_noticed_by_the_kernel(clock: MockClock, peer: Peer) -> None:
    """Whatever a call's own limit is: within half a minute."""
    async with http_connections(ssl.create_default_context()) as connections:
        request = httpx.Request("GET", peer.endpoint + "/boxes")
        answer = await connections.handle_async_request(request)
        wire = answer.extensions["network_stream"].get_extra_info("socket")
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        idle, interval, count = (wire.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
        assert wire.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert idle + interval * count <= 30
        assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000
        await answer.aclose()
