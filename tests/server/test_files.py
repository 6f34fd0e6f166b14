"""Files over HTTP: forms cut anywhere, ranges of every kind, nothing in memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrt.models import Limits
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.server.dataplane import DataPlaneSettings
from sandboxrt.server.files import FileSettings, _file_part, _joined
from sandboxrt.server.replies import BodyError
from tests.host.conftest import OpenFake

from .dataplane_kit import Served, serve

DATA = bytes(range(256)) * 40


def error(response: httpx.Response) -> str:
    return response.json()["detail"]["error"]


async def put(served: Served, path: str, data: bytes, sandbox: str = "box") -> httpx.Response:
    return await served.http.post(
        f"/box/{sandbox}/upload", params={"path": path}, files={"file": ("file", data, "application/octet-stream")}
    )


async def get(served: Served, path: str, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await served.http.get("/box/box/download", params={"path": path}, headers=named)


@pytest.mark.parametrize("data", [b"", b"text", DATA, b"\r\n--", b"\r\n" * 1000, b"x" * 3_000_000])
@pytest.mark.parametrize("path", ["/app/script.py", "a/relative path+ä/ö.txt", "/tmp/%2F"])
async def test_what_was_uploaded_is_downloaded(fake_host: OpenFake, path: str, data: bytes) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        for content in (b"before", data):
            assert (await put(served, path, content)).status_code == 200
        answer = await get(served, path)
        assert (answer.status_code, answer.content) == (200, data)
        assert await host.read_file("box", path) == data
        if not path.startswith("/"):
            assert await host.read_file("box", f"/home/user/{path}") == data


async def test_a_plain_body_is_a_file_too(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        answer = await served.http.post("/box/box/upload", params={"path": "/f"}, content=DATA)
        assert answer.status_code == 200
        assert await host.read_file("box", "/f") == DATA


async def pieces(data: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, stop in pairwise(edges):
        yield data[start:stop]


@given(
    st.binary(max_size=300) | st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--b", b"\r\n--", b"x"])).map(b"".join),
    st.lists(st.integers(0, 700), max_size=30),
)
@settings(deadline=None)
def test_a_form_may_be_cut_anywhere(content: bytes, cuts: list[int]) -> None:
    if b"\r\n--bound" in b"\r\n" + content:
        return
    form = (
        b'--bound\r\nContent-Disposition: form-data; name="other"\r\n\r\nsomething\r\n'
        b'--bound\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--bound--\r\n"
    )

    async def main() -> bytes:
        part = _joined(_file_part(pieces(form, cuts), "bound"))
        return b"".join([piece async for piece in part])

    assert trio.run(main) == content


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=10))
@settings(deadline=None)
def test_what_is_no_form_is_refused(body: bytes, cuts: list[int]) -> None:
    async def main() -> None:
        async for _ in _file_part(pieces(b"--bound\r\n" + body, cuts), "bound"):
            pass

    with pytest.raises(BodyError):
        trio.run(main)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--b\r\n\r\n--b--"),
        ("multipart/form-data; boundary=", b""),
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n'),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n1'),
        ("multipart/form-data; boundary=" + "b" * 300, b""),
    ],
)
async def test_a_broken_form_changes_nothing(fake_host: OpenFake, content_type: str, body: bytes) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await put(served, "/f", b"old")
        answer = await served.http.post(
            "/box/box/upload", params={"path": "/f"}, content=body, headers={"Content-Type": content_type}
        )
        assert (answer.status_code, error(answer)) == (400, "InvalidRequest")
        assert await host.read_file("box", "/f") == b"old"


async def test_an_upload_that_breaks_off_changes_nothing(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await put(served, "/f", b"old")
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        await stream.send_all(
            b"POST /box/box/upload?path=/f HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
            b"Content-Type: application/octet-stream\r\n\r\nsome of it"
        )
        await trio.sleep(0.2)
        await trio.aclose_forcefully(stream)
        with trio.fail_after(5):
            while "0 requests" not in repr(served.plane):
                await trio.sleep(0.01)
        assert await host.read_file("box", "/f") == b"old"


async def test_the_sender_of_a_long_refused_upload_reads_why(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        for _ in range(5):
            answer = await put(served, "/etc", b"x" * 20_000_000)
            assert (answer.status_code, error(answer)) == (400, "WriteError")
            answer = await served.http.post("/box/box/upload", content=b"x" * 20_000_000)
            assert (answer.status_code, error(answer)) == (400, "InvalidRequest")


async def test_uploads_that_stall_or_are_too_long_are_given_up(fake_host: OpenFake) -> None:
    bounds = DataPlaneSettings(files=FileSettings(max_upload_bytes=1000, stall_s=0.3))
    async with fake_host() as (host, _), serve(host, bounds) as served:
        answer = await put(served, "/f", b"x" * 2000)
        assert (answer.status_code, error(answer)) == (413, "PayloadTooLarge")
        async with await trio.open_tcp_stream("127.0.0.1", served.port) as stream:
            await stream.send_all(b"POST /box/box/upload?path=/f HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx")
            with trio.fail_after(5):
                assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("asked", "expected", "content_range"),
    [
        ("bytes=0-9", DATA[:10], "bytes 0-9/10240"),
        ("bytes=100-", DATA[100:], "bytes 100-10239/10240"),
        ("bytes=10000-99999", DATA[10000:], "bytes 10000-10239/10240"),
        ("bytes=-5", DATA[-5:], "bytes 10235-10239/10240"),
        ("bytes=-99999", DATA, "bytes 0-10239/10240"),
        ("bytes=10239-10239", DATA[-1:], "bytes 10239-10239/10240"),
    ],
)
async def test_a_range_of_a_file(fake_host: OpenFake, asked: str, expected: bytes, content_range: str) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await put(served, "/f", DATA)
        answer = await get(served, "/f", Range=asked)
        assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["content-range"] == content_range
        assert answer.headers["content-length"] == str(len(expected))


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=99999-100000", "bytes=-0"])
async def test_a_range_outside_of_the_file(fake_host: OpenFake, asked: str) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await put(served, "/f", DATA)
        answer = await get(served, "/f", Range=asked)
        assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10240")


@pytest.mark.parametrize(
    "asked", ["bytes=", "bytes=-", "bytes=9-1", "bytes=0-1,3-4", "lines=0-1", "bytes=a-b", "x" * 999]
)
async def test_a_range_that_is_none_is_passed_over(fake_host: OpenFake, asked: str) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await put(served, "/f", DATA)
        answer = await get(served, "/f", Range=asked)
        assert (answer.status_code, answer.content) == (200, DATA)


async def test_conditions(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        await put(served, "/f.txt", DATA)
        head = await served.http.head("/box/box/download", params={"path": "/f.txt"})
        assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "10240")
        assert head.headers["content-type"].startswith("text/plain")
        assert head.headers["accept-ranges"] == "bytes"
        etag, date = head.headers["etag"], head.headers["last-modified"]
        for condition in (etag, f"W/{etag}", f'"x", {etag}', "*"):
            answer = await get(served, "/f.txt", If_None_Match=condition)
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert (await get(served, "/f.txt", If_None_Match='"x"')).status_code == 200
        assert (await get(served, "/f.txt", If_Modified_Since=date)).status_code == 304
        assert (await get(served, "/f.txt", If_Modified_Since="Thu, 01 Jan 1970 00:00:00 GMT")).status_code == 200
        assert (await get(served, "/f.txt", If_Modified_Since="yesterday")).status_code == 200
        for condition, status in ((etag, 206), (date, 206), ('"x"', 200), (f"W/{etag}", 200), ("yesterday", 200)):
            assert (await get(served, "/f.txt", Range="bytes=0-1", If_Range=condition)).status_code == status
        await put(served, "/f.txt", DATA[::-1])
        assert (await get(served, "/f.txt", If_None_Match=etag)).status_code == 200
        answer = await get(served, "/f.txt", Range="bytes=0-1", If_Range=etag)
        assert (answer.status_code, answer.content) == (200, DATA[::-1])


@pytest.mark.parametrize(
    ("path", "read", "write"),
    [
        ("/nowhere/file", (404, "FileNotFound"), None),
        ("/etc", (400, "ReadError"), (400, "WriteError")),
        ("/etc/passwd/x", (400, "ReadError"), (400, "WriteError")),
        ("/dev/null", (400, "ReadError"), (400, "WriteError")),
        ("a\0b", (422, "ValidationError"), (422, "ValidationError")),
        ("", (422, "ValidationError"), (422, "ValidationError")),
        ("/" + "x" * 300, (400, "ReadError"), (400, "WriteError")),
    ],
)
async def test_errors_have_the_documented_words(
    fake_host: OpenFake, path: str, read: tuple[int, str], write: tuple[int, str] | None
) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        answer = await get(served, path)
        assert (answer.status_code, error(answer)) == read
        if write is not None:
            answer = await put(served, path, b"x")
            assert (answer.status_code, error(answer)) == write


async def test_a_path_is_needed_and_the_sandbox_too(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        answer = await served.http.get("/box/box/download")
        assert (answer.status_code, error(answer)) == (400, "InvalidRequest")
        answer = await served.http.get("/box/nobody/download?path=/f")
        assert (answer.status_code, error(answer)) == (404, "NotFound")


async def test_a_full_disk_is_a_write_error_that_says_so(fake_host: OpenFake) -> None:
    async with fake_host(box=False) as (host, _), serve(host) as served:
        await host.create_sandbox(CreateSandbox(name="small", limits=Limits(disk_bytes=100_000)))
        answer = await put(served, "/f", b"x" * 200_000, "small")
        detail: dict[str, Any] = json.loads(answer.content)["detail"]
        assert (answer.status_code, detail["error"]) == (507, "WriteError")
        assert (detail["operation"], detail["error_type"]) == ("write", "NoSpace")


async def test_a_transfer_is_not_held_in_memory(fake_host: OpenFake) -> None:
    """The fake keeps files in memory itself, so what counts is what comes on top of that."""
    size = 30_000_000
    async with fake_host() as (host, _), serve(host) as served:

        async def body() -> AsyncIterator[bytes]:
            for _ in range(size // 100_000):
                yield b"x" * 100_000

        await served.http.post("/box/box/upload", params={"path": "/f"}, content=body())
        tracemalloc.start()
        try:
            total = 0
            async with served.http.stream("GET", "/box/box/download", params={"path": "/f"}) as response:
                async for chunk in response.aiter_raw():
                    total += len(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert total == size
        assert peak < size + 10_000_000
