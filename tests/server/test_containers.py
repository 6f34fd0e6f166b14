"""The data plane before real containers: awkward output, broken connections, terminals, big files, searches."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from sandboxrt.host.host import Host, HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.exec import Reconnect
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import converse
from tests.acceptance.test_output import WRITER

from .dataplane_kit import Served, serve, text_of

pytestmark = pytest.mark.container


@asynccontextmanager
async def served_box(state_dir: Path) -> AsyncIterator[tuple[Host, Served]]:
    async with open_host(HostConfig(state_dir=state_dir)) as host:
        await host.create_sandbox(CreateSandbox(name="box"))
        async with serve(host) as served:
            yield host, served


async def content(data: bytes) -> AsyncIterator[bytes]:
    yield data
    await trio.lowlevel.checkpoint()


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.mark.timeout(120)
async def test_awkward_output_is_whole_however_often_the_connection_breaks(state_dir: Path) -> None:
    async with served_box(state_dir) as (host, served):
        await host.write_file("box", "/home/user/writer.py", content(WRITER.encode()))
        parts: list[str] = []
        offset = breaks = 0
        end = None
        while end is None:
            async with served.raw() as (stream, peer):
                if breaks == 0:
                    await peer.execute("python3 /home/user/writer.py", command_id="c", timeout_seconds=60)
                else:
                    await peer.send(type="reconnect", command_id="c", stdout_offset=offset)
                assert (await peer.receive())["type"] == "started"
                for _ in range(20):
                    frame = await peer.receive()
                    if frame["type"] == "exit":
                        end = frame["exit_code"]
                        break
                    assert (frame["type"], frame["offset"]) == ("stdout", offset)
                    encoded = frame["data"].encode()
                    assert len(encoded) <= 65536
                    offset += len(encoded)
                    parts.append(frame["data"])
                await trio.aclose_forcefully(stream)
            breaks += 1
        expected = (await host.read_file("box", "/home/user/expected")).decode(errors="replace")
        assert "".join(parts) == expected
        assert offset == len(expected.encode()) > 10 * 2**20
        assert (end, breaks > 5) == (0, True)


async def test_kill_then_close_takes_the_whole_tree(state_dir: Path) -> None:
    async with served_box(state_dir) as (_, served):
        async with served.raw() as (stream, peer):
            await peer.execute("sleep 1000 & (setsid sleep 1001 &) ; yes", command_id="c")
            await peer.receive()
            await peer.receive()
            await peer.send(type="kill")
            await trio.aclose_forcefully(stream)
        async with served.connect() as peer:
            await peer.send(type="reconnect", command_id="c")
            with trio.fail_after(20):
                frames, code = await peer.to_close()
            assert (frames[-1], code) == ({"type": "exit", "exit_code": 137}, 1000)
        async with served.connect() as peer:
            await peer.execute("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
            frames, _ = await peer.to_close()
            assert "sleep" not in text_of(frames)


async def test_a_terminal_over_the_wire(state_dir: Path) -> None:
    async with served_box(state_dir) as (_, served), served.connect() as peer:
        await peer.execute("tty; stty size; python3 -q", pty=True, cols=100, rows=30)
        text = ""
        while ">>>" not in text:
            text += (await peer.receive()).get("data", "")
        await peer.send(type="input", data="print(6 * 7)\n")
        await peer.send(type="resize", cols=120, rows=40)
        await peer.send(type="input", data="import os; print(os.get_terminal_size())\nexit(5)\n")
        while (frame := await peer.receive())["type"] != "exit":
            text += frame.get("data", "")
        assert frame["exit_code"] == 5
        for wanted in ("/dev/pts/", "30 100", "42", "columns=120, lines=40"):
            assert wanted in text


async def test_numbered_input_arrives_once_over_broken_connections(state_dir: Path) -> None:
    text = "".join(f"{number} äöü €\n" for number in range(40_000))
    data = text.encode()
    async with served_box(state_dir) as (host, served):
        begun = False
        taken, cut = 0, 90_001
        while taken < len(data):
            async with served.raw() as (stream, peer):
                if not begun:
                    await peer.execute("cat > got; wc -c < got", command_id="c", cwd="/tmp", ext={"input_id": "me"})
                else:
                    await peer.send(type="reconnect", command_id="c", ext={"input_id": "me"})
                begun = True
                taken = (await peer.receive())["ext"]["input_offset"]
                start = taken
                while start and start < len(data) and data[start] & 0xC0 == 0x80:
                    start -= 1
                piece = data[start : start + cut].decode(errors="ignore")
                await peer.send(type="input", data=piece, offset=start)
                if start + cut < len(data):
                    await trio.sleep(0.005)
                else:
                    while (frame := await peer.receive())["type"] != "input_ack" or frame["offset"] < len(data):
                        pass
                    taken = len(data)
                    await peer.send(type="close_stdin")
                    frames, _ = await peer.to_close()
                    assert text_of(frames).strip() == str(len(data))
                await trio.aclose_forcefully(stream)
        async with converse(host, "box", Reconnect("c")) as reader:
            assert (await reader.to_end()).exit_code == 0
        assert await host.read_file("box", "/tmp/got") == data


@pytest.mark.timeout(120)
async def test_a_hundred_megabytes_up_and_down_without_memory(state_dir: Path) -> None:
    size = 100 * 10**6
    piece = bytes(range(250)) * 4000

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n\r\n'
        for _ in range(size // len(piece)):
            yield piece
        yield b"\r\n--b--\r\n"

    async with served_box(state_dir) as (_, served):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = await served.http.post(
            "/box/box/upload",
            params={"path": "/big"},
            content=body(),
            headers={"Content-Type": "multipart/form-data; boundary=b"},
        )
        assert answer.status_code == 200, answer.text
        offset = 0
        async with served.http.stream("GET", "/box/box/download", params={"path": "/big"}) as response:
            assert response.headers["content-length"] == str(size)
            async for chunk in response.aiter_raw(len(piece)):
                assert chunk == piece
                offset += len(chunk)
        assert offset == size
        # Kibibytes; client and server together.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


async def test_searches_in_a_real_tree(state_dir: Path) -> None:
    async with served_box(state_dir) as (_, served), served.connect() as peer:
        await peer.execute(
            "mkdir -p /srv/t/deep/er; cd /srv/t; echo 'needle 1' > a.py; printf 'x\\nneedle 2' > deep/er/b.py; "
            "touch \"it's \\$(odd)\"; printf 'needle\\n' > \"$(printf 'line\\nbreak')\"; ln -s / out; mkfifo pipe; "
            "printf '\\0needle' > binary; ln -s a.py link.py; chmod 0 deep/er/b.py",
            cwd="/",
        )
        frames, _ = await peer.to_close()
        assert frames[-1]["exit_code"] == 0, frames
        answer = await served.http.post("/box/box/glob", json={"pattern": "**/*.py", "path": "/srv/t"})
        assert [match["path"] for match in answer.json()["matches"]] == [
            "/srv/t/a.py",
            "/srv/t/deep/er/b.py",
            "/srv/t/link.py",
        ]
        answer = await served.http.post("/box/box/glob", json={"pattern": "*", "path": "/srv/t"})
        found = {match["path"]: match for match in answer.json()["matches"]}
        assert "/srv/t/it's $(odd)" in found
        assert "/srv/t/line\nbreak" in found
        assert (found["/srv/t/deep"]["is_dir"], found["/srv/t/out"]["is_dir"]) == (True, False)
        assert found["/srv/t/a.py"]["size_bytes"] == 9
        with trio.fail_after(20):
            answer = await served.http.post("/box/box/grep", json={"pattern": "needle", "path": "/srv/t"})
        assert answer.json() == {
            "matches": [
                {"path": "/srv/t/a.py", "line": 1, "text": "needle 1"},
                {"path": "/srv/t/deep/er/b.py", "line": 2, "text": "needle 2"},
            ],
            "truncated": False,
        }
        answer = await served.http.post("/box/box/glob", json={"pattern": "**/passwd", "path": "/etc"})
        assert "/etc/passwd" in [match["path"] for match in answer.json()["matches"]]


async def test_searches_with_lesser_tools(state_dir: Path) -> None:
    """A find that cannot print by itself, as BusyBox's, and none at all."""
    no_printf = '#!/bin/sh\ncase "$*" in *-printf*) exit 1; esac\nexec /usr/bin/find "$@"\n'
    async with served_box(state_dir) as (host, served):

        async def shell(command: str) -> None:
            answer = await served.http.post("/box/box/execute", json={"command": command})
            assert answer.json()["exit_code"] == 0, answer.text

        async def glob() -> httpx.Response:
            return await served.http.post("/box/box/glob", json={"pattern": "**", "path": "/srv"})

        await shell("mkdir -p '/srv/a b/c'; echo x > '/srv/a b/c/file'; touch /srv/empty; ln -s / /srv/out")
        best = (await glob()).json()
        assert len(best["matches"]) == 5
        await host.write_file("box", "/usr/local/bin/find", content(no_printf.encode()))
        await shell("chmod 755 /usr/local/bin/find")
        assert (await glob()).json() == best
        await host.write_file("box", "/usr/local/bin/find", content(b"#!/bin/sh\nexit 127\n"))
        answer = await glob()
        assert (answer.status_code, answer.json()["detail"]["error_type"]) == (400, "NoTool")
