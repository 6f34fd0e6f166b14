"""Files over a server: none is cut short, none is given up before its caller's own limit, and breaks are mended."""

from __future__ import annotations

import math
import re

import pytest
import trio
from trio.testing import MockClock

from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.errors import SandboxConnectionError, SandboxOperationError
from sandboxrt.testing.peer import Answer, Peer, PeerRequest


def boundary(request: PeerRequest) -> str:
    found = re.fullmatch(r"multipart/form-data; boundary=(\S+)", request.headers["content-type"])
    assert found is not None
    return found[1]


async def test_no_file_knows_the_boundary_that_ends_it(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    await box.write("/first", "x")
    known = boundary(peer.asked("POST", "/upload")[-1])
    content = f"first\r\n--{known}\r\nEVIL\r\n--{known}--\r\ntail".encode()
    await box.write("/second", content)
    request = peer.asked("POST", "/upload")[-1]
    assert boundary(request) != known
    head, _, rest = request.body.partition(b"\r\n\r\n")
    assert head.startswith(f"--{boundary(request)}\r\n".encode())
    assert rest == content + f"\r\n--{boundary(request)}--\r\n".encode()


@pytest.mark.parametrize("timeout", [0, 300])
async def test_a_slow_transfer_is_its_callers_affair(
    clock: MockClock, box: AsyncSandbox, peer: Peer, timeout: float
) -> None:
    peer.answer("POST", "/upload", Answer(200, {}, delay_s=290))
    peer.answer("GET", "/download", Answer(200, b"late", delay_s=290))
    await box.write("/x", "y", timeout=timeout)
    assert await box.read("/x", timeout=timeout) == b"late"


async def test_a_transfer_ends_at_its_callers_limit(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    """With the error that an embedded host's callers get."""
    for timeout in (5.0, 100.0):
        peer.answer("POST", "/upload", Answer(200, {}, delay_s=math.inf))
        peer.answer("GET", "/download", Answer(200, b"", delay_s=math.inf))
        begun = trio.current_time()
        with pytest.raises(SandboxOperationError) as unwritten:
            await box.write("/x", "y", timeout=timeout)
        with pytest.raises(SandboxOperationError) as unread:
            await box.read("/x", timeout=timeout)
        assert [(error.value.operation, error.value.error_type) for error in (unwritten, unread)] == [
            ("write", "Timeout"),
            ("read", "Timeout"),
        ]
        assert trio.current_time() - begun == pytest.approx(2 * timeout, abs=0.5)


CONTENT = bytes(range(256)) * 4


def cut(at: int, *, etag: str = '"one"', delay: str = "") -> Answer:
    """The file's head, and as much of it as it takes until the connection breaks."""
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(CONTENT)}\r\netag: {etag}\r\n{delay}\r\n".encode()
    return Answer(raw=head + CONTENT[:at])


def rest(since: int, content: bytes = CONTENT) -> Answer:
    return Answer(206, content[since:], {"content-range": f"bytes {since}-{len(content) - 1}/{len(content)}"})


async def test_a_download_goes_on_where_it_broke_off(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    for at in (0, 1, 500, len(CONTENT) - 1):
        peer.answer("GET", "/download", cut(at), rest(at) if at else Answer(200, CONTENT))
        assert await box.read("/x") == CONTENT
        asked = peer.asked("GET", "/download")[-1].headers
        assert (asked.get("range"), asked.get("if-range")) == ((f"bytes={at}-", '"one"') if at else (None, None))


async def test_a_download_of_a_file_that_changed_begins_again(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.answer("GET", "/download", cut(500), Answer(200, b"another"))
    assert await box.read("/x") == b"another"
    peer.answer("GET", "/download", cut(500), Answer(416, ""), Answer(200, b"short"))
    assert await box.read("/x") == b"short"


async def test_a_download_without_progress_is_given_up(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    peer.answer("GET", "/download", *[Answer(drop=True)] * 4)
    with pytest.raises(SandboxConnectionError, match="after 4 attempts"):
        await box.read("/x")
    # As long as there is some, it goes on.
    peer.answer("GET", "/download", cut(1), *[Answer(raw=_part(n)) for n in range(1, 9)], rest(9))
    assert await box.read("/x") == CONTENT


def _part(number: int) -> bytes:
    return (
        f'HTTP/1.1 206 Partial\r\ncontent-length: {len(CONTENT) - number}\r\netag: "one"\r\n\r\n'.encode()
        + CONTENT[number : number + 1]
    )
