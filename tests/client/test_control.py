"""The control plane's errors, and requests that are sent again: protocol.md §1.3, §2.9, §3.4."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.errors import (
    QuotaExceededError,
    ResourceAlreadyExistsError,
    ResourceCreationError,
    ResourceInUseError,
    ResourceNameConflictError,
    ResourceNotFoundError,
    ResourceTimeoutError,
    SandboxAPIError,
    SandboxAuthenticationError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxNotReadyError,
    SandboxOperationError,
    ValidationError,
)
from sandboxrt.testing.peer import Answer, Peer


def body(error: str, message: str = "the reason") -> dict[str, Any]:
    return {"detail": {"error": error, "message": message}}


FAULTS = {"detail": [{"loc": ["body", "vcpus"], "msg": "too many", "type": "value_error"}]}


@pytest.mark.parametrize(
    ("status", "content", "expected", "attributes"),
    [
        (408, body("Timeout"), ResourceTimeoutError, {"resource_type": "sandbox"}),
        (422, FAULTS, ValidationError, {"field": "vcpus"}),
        (422, body("ImagePull"), ResourceCreationError, {"error_type": "ImagePull", "resource_type": "sandbox"}),
        (429, body("Quota", "sandbox limit reached"), QuotaExceededError, {"quota_type": "sandbox_count"}),
        (429, body("Quota", "out of cpu"), QuotaExceededError, {"quota_type": "cpu"}),
        (429, body("Quota", "Memory is short"), QuotaExceededError, {"quota_type": "memory"}),
        (429, body("Quota", "no storage"), QuotaExceededError, {"quota_type": "storage"}),
        (429, body("Quota", "something"), QuotaExceededError, {"quota_type": None}),
        (503, body("CrashLoop"), ResourceCreationError, {"error_type": "CrashLoop"}),
        (503, "busy", ResourceCreationError, {"error_type": "Unschedulable"}),
        (401, body("Unauthorized"), SandboxAuthenticationError, {}),
        (403, "no", SandboxAuthenticationError, {}),
        (409, body("AlreadyExists"), ResourceAlreadyExistsError, {}),
        (500, body("InternalError"), SandboxAPIError, {}),
        (502, body("ConnectionError"), SandboxConnectionError, {}),
        (504, "late", SandboxClientError, {}),
        (302, "", SandboxClientError, {}),
        (200, "<html>", SandboxAPIError, {}),
    ],
)
async def test_create(
    clock: MockClock,
    client: AsyncSandboxClient,
    peer: Peer,
    status: int,
    content: object,
    expected: type[SandboxClientError],
    attributes: dict[str, object],
) -> None:
    peer.answer("POST", "/boxes", *[Answer(status, content, {"Retry-After": "0"})] * 4)
    with pytest.raises(expected) as raised:
        await client.create_sandbox(name="new")
    assert {name: getattr(raised.value, name) for name in attributes} == attributes
    retried = status in (429, 502, 503, 504)
    # What may have been made nevertheless is asked for once more, without a wait, to be deleted.
    creates = [request for request in peer.asked("POST", "/boxes") if request.json["wait_for_ready"]]
    assert len(creates) == (4 if retried else 1)
    # Every repetition has the key of the first, so that the sandbox is made once.
    assert len({request.headers["idempotency-key"] for request in peer.asked("POST", "/boxes")}) == 1


async def test_every_other_call(clock: MockClock, client: AsyncSandboxClient, peer: Peer) -> None:
    missing = Answer(404, body("NotFound", "server's words"))
    for method, path, call in (
        ("GET", "/boxes/x", lambda: client.get_sandbox("x")),
        ("PATCH", "/boxes/x", lambda: client.update_sandbox("x", idle_ttl_seconds=0)),
        ("DELETE", "/boxes/x", lambda: client.delete_sandbox("x")),
        ("GET", "/boxes/x/status", lambda: client.get_sandbox_status("x")),
        ("POST", "/boxes/x/start", lambda: client.start_sandbox("x")),
        ("POST", "/boxes/x/stop", lambda: client.stop_sandbox("x")),
    ):
        peer.answer(method, path, missing)
        with pytest.raises(ResourceNotFoundError, match=r"^Sandbox 'x' not found$") as raised:
            await call()
        assert raised.value.resource_type == "sandbox"
    peer.answer("GET", "/snapshots/s", missing)
    with pytest.raises(ResourceNotFoundError, match=r"^Snapshot 's' not found$"):
        await client.get_snapshot("s")
    for path, listing in (("/boxes", client.list_sandboxes), ("/snapshots", client.list_snapshots)):
        peer.answer("GET", path, missing)
        with pytest.raises(SandboxAPIError, match="endpoint"):
            await listing()
    peer.answer("PATCH", "/boxes/x", Answer(409, body("NameConflict")))
    with pytest.raises(ResourceNameConflictError, match="'taken'"):
        await client.update_sandbox("x", new_name="taken")
    peer.answer("DELETE", "/snapshots/s", Answer(409, body("InUse")))
    with pytest.raises(ResourceInUseError):
        await client.delete_snapshot("s")
    peer.answer("GET", "/snapshots", Answer(422, {"detail": [{"loc": ["query", "limit"], "msg": "no", "type": "v"}]}))
    with pytest.raises(ValidationError) as refused:
        await client.list_snapshots(limit=501)
    assert refused.value.field == "limit"


@pytest.mark.parametrize(
    ("status", "content", "expected", "attributes"),
    [
        (400, body("WriteError"), SandboxOperationError, {"operation": "write", "error_type": "WriteError"}),
        (418, body("ReadError"), SandboxOperationError, {"operation": "read"}),
        (500, body("CommandError"), SandboxOperationError, {"operation": "command"}),
        (403, body("Nope"), SandboxOperationError, {"error_type": "PermissionDenied"}),
        (502, body("ConnectionError"), SandboxConnectionError, {}),
        (400, body("NotReady"), SandboxNotReadyError, {}),
        (503, body("ServiceUnavailable"), SandboxNotReadyError, {}),
        (400, body("FileNotFound"), ResourceNotFoundError, {"resource_type": "file"}),
        (413, "too long", SandboxClientError, {}),
    ],
)
async def test_the_data_plane(
    clock: MockClock,
    box: AsyncSandbox,
    peer: Peer,
    status: int,
    content: object,
    expected: type[SandboxClientError],
    attributes: dict[str, object],
) -> None:
    peer.answer("POST", "/upload", *[Answer(status, content)] * 4)
    with pytest.raises(expected) as raised:
        await box.write("/x", "y")
    assert {name: getattr(raised.value, name) for name in attributes} == attributes


async def test_retries_are_as_many_as_were_asked_for(clock: MockClock, peer: Peer) -> None:
    for retries, after, least, most in ((0, None, 0, 0.1), (2, "5", 15, 17.1), (3, None, 7, 10.1)):
        before = len(peer.asked("GET", "/boxes"))
        async with AsyncSandboxClient(api_endpoint=peer.endpoint, max_retries=retries) as client:
            peer.answer(
                "GET", "/boxes", *[Answer(429, body("Q"), {"Retry-After": after} if after else {})] * (retries + 1)
            )
            begun = trio.current_time()
            with pytest.raises(QuotaExceededError):
                await client.list_sandboxes()
        assert len(peer.asked("GET", "/boxes")) - before == retries + 1
        assert least <= trio.current_time() - begun <= most


def page(following: int, *names: str) -> Answer:
    return Answer(200, {"sandboxes": [{"name": name, "id": name} for name in names], "offset": following})


async def test_pages_make_one_list(clock: MockClock, client: AsyncSandboxClient, peer: Peer) -> None:
    # One was made while the first page was read, and moved the others on.
    peer.answer("GET", "/boxes", page(2, "a", "b"), page(4, "b", "c"), page(0, "d"))
    assert [box.name for box in await client.list_sandboxes()] == ["a", "b", "c", "d"]


async def test_pages_that_repeat_themselves(clock: MockClock, client: AsyncSandboxClient, peer: Peer) -> None:
    peer.answer("GET", "/boxes", *(page(number, "a", "b") for number in range(1, 50)))
    with pytest.raises(SandboxAPIError, match="repeats itself: 3 pages in a row, up to offset 4"):
        await client.list_sandboxes()


async def test_pages_that_do_not_end(
    clock: MockClock, client: AsyncSandboxClient, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandboxrt.client.transport.pages._MAX_PAGES", 20)
    peer.answer("GET", "/boxes", *(page(number, f"box-{number}") for number in range(1, 50)))
    with pytest.raises(SandboxAPIError, match="does not end: after 20 pages with 20 sandboxes"):
        await client.list_sandboxes()


async def test_an_answer_that_never_comes(clock: MockClock, peer: Peer) -> None:
    async with AsyncSandboxClient(api_endpoint=peer.endpoint, timeout=3) as client:
        peer.answer("GET", "/boxes", Answer(200, {"sandboxes": []}, delay_s=100))
        with pytest.raises(SandboxConnectionError, match="3 s"):
            await client.list_sandboxes()


async def test_headers_of_the_client_and_of_one_call(clock: MockClock, peer: Peer) -> None:
    async with AsyncSandboxClient(api_endpoint=peer.endpoint, api_key="k", headers={"X-Tenant-Id": "t"}) as client:
        await client.list_sandboxes()
        await client.list_sandboxes(headers={"X-API-KEY": "other", "X-More": "m"})
    first, second = (request.headers for request in peer.asked("GET", "/boxes"))
    assert (first["x-api-key"], first["x-tenant-id"], first.get("x-more")) == ("k", "t", None)
    assert (second["x-api-key"], second["x-tenant-id"], second["x-more"]) == ("other", "t", "m")
