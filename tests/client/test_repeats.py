"""Answers that are lost: what is the same done twice is done again, and what is not is left to the caller."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.errors import ResourceAlreadyExistsError, ResourceNotFoundError, SandboxConnectionError
from sandboxrt.testing.peer import Answer, Peer

LOST = Answer(drop=True)

Call = Callable[[AsyncSandboxClient], Awaitable[object]]
SAFE: dict[str, tuple[str, str, Call]] = {
    "get": ("GET", "/boxes/box", lambda client: client.get_sandbox("box")),
    "status": ("GET", "/boxes/box/status", lambda client: client.get_sandbox_status("box")),
    "list": ("GET", "/boxes", lambda client: client.list_sandboxes()),
    "snapshots": ("GET", "/snapshots", lambda client: client.list_snapshots()),
    "stop": ("POST", "/boxes/box/stop", lambda client: client.stop_sandbox("box")),
    "start": ("POST", "/boxes/box/start", lambda client: client.start_sandbox("box")),
    "delete": ("DELETE", "/boxes/box", lambda client: client.delete_sandbox("box")),
    "create": ("POST", "/boxes", lambda client: client.create_sandbox(name="new")),
    "unnamed": ("POST", "/boxes", lambda client: client.create_sandbox()),
}


@pytest.mark.parametrize("call", SAFE)
async def test_what_is_the_same_done_twice(clock: MockClock, client: AsyncSandboxClient, peer: Peer, call: str) -> None:
    peer.box(name="box")
    method, path, work = SAFE[call]
    peer.answer(method, path, LOST, LOST)
    await work(client)
    assert len(peer.asked(method, path)) == 3
    peer.boxes.pop("new", None)
    peer.box(name="box")
    peer.answer(method, path, *[LOST] * 4)
    with pytest.raises(SandboxConnectionError, match="after 4 attempts"):
        await work(client)


@pytest.mark.parametrize(
    ("method", "path", "work"),
    [
        ("POST", "/snapshots", lambda client: client.create_snapshot("s", "image", 2**30)),
        ("PATCH", "/boxes/box", lambda client: client.update_sandbox("box", new_name="other")),
        ("POST", "/upload", lambda client: _write(client)),
    ],
)
async def test_what_is_not(
    clock: MockClock, client: AsyncSandboxClient, peer: Peer, method: str, path: str, work: Call
) -> None:
    peer.box(name="box")
    peer.answer(method, path, LOST)
    with pytest.raises(SandboxConnectionError, match="broke"):
        await work(client)
    assert len(peer.asked(method, path)) == 1


async def _write(client: AsyncSandboxClient) -> None:
    await (await client.get_sandbox("box")).write("/x", "y")


async def test_a_deletion_whose_answer_was_lost_is_done(
    clock: MockClock, client: AsyncSandboxClient, peer: Peer
) -> None:
    gone = Answer(404, {"detail": {"error": "NotFound", "message": "gone"}})
    peer.answer("DELETE", "/boxes/box", LOST, gone)
    await client.delete_sandbox("box")
    peer.answer("DELETE", "/boxes/box", gone)
    with pytest.raises(ResourceNotFoundError):
        await client.delete_sandbox("box")


async def test_a_create_that_a_server_without_keys_repeats(
    clock: MockClock, client: AsyncSandboxClient, peer: Peer
) -> None:
    """The name tells whose it is, where we made it up."""
    taken = Answer(409, {"detail": {"error": "AlreadyExists", "message": "taken"}})

    async def make(name: str | None) -> str:
        async with trio.open_nursery() as nursery:
            peer.answer("POST", "/boxes", LOST, taken)

            async def make_it() -> None:
                await peer.until(lambda: len(peer.asked("POST", "/boxes")) == asked + 1)
                peer.box(name=peer.asked("POST", "/boxes")[-1].json["name"])

            asked = len(peer.asked("POST", "/boxes"))
            nursery.start_soon(make_it)
            return (await client.create_sandbox(name=name)).name

    assert await make(None) == peer.asked("POST", "/boxes")[-1].json["name"]
    with pytest.raises(ResourceAlreadyExistsError):
        try:
            await make("mine")
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None


async def test_a_cancelled_create_of_a_name_leaves_nothing(
    clock: MockClock, client: AsyncSandboxClient, peer: Peer
) -> None:
    """The key of its repetition tells whose it is."""
    peer.answer("POST", "/boxes", Answer(201, {}, delay_s=math.inf))
    with trio.move_on_after(5):
        await client.create_sandbox(name="mine")
    first, second = peer.asked("POST", "/boxes")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    made = peer.boxes["mine"]["id"]
    assert [request.path for request in peer.requests if request.method == "DELETE"] == [f"/boxes/{made}"]


async def test_a_create_that_was_never_sent_is_not_undone(
    clock: MockClock, client: AsyncSandboxClient, peer: Peer
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await client.create_sandbox(name="mine")
    assert peer.requests == []
