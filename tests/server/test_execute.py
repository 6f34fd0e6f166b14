"""Commands over plain HTTP: one answer, or a stream of events."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from sandboxrt.host.command import CommandSettings
from sandboxrt.protocol.exec import Execute, Input, Reconnect
from sandboxrt.server.dataplane import DataPlaneSettings
from sandboxrt.server.sse import StreamSettings
from sandboxrt.testing.conformance import converse
from tests.host.conftest import OpenFake

from .dataplane_kit import Served, serve


def detail(response: httpx.Response) -> dict[str, Any]:
    return response.json()["detail"]


async def events(response: httpx.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """(event, data), comments as ("", {})."""
    name = ""
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield "", {}
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def stream(served: Served, path: str, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    async with served.http.stream("POST", f"/box/box/execute/stream/{path}", json=body) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in events(response)]


def output(found: list[tuple[str, dict[str, Any]]], name: str = "stdout", start: int = 0) -> bytes:
    parts, offset = [], start
    for event, data in found:
        if event == name:
            assert data["offset"] == offset
            parts.append(base64.b64decode(data["data"]))
            offset += len(parts[-1])
    return b"".join(parts)


async def test_a_command_has_one_answer(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        answer = await served.http.post(
            "/box/box/execute",
            json={
                "command": "echo $A; pwd; echo oops >&2; cat; exit 4",
                "env": {"A": "b"},
                "cwd": "/tmp",
                "timeout": 9,
            },
        )
        assert answer.status_code == 200
        assert answer.json() == {"stdout": "b\n/tmp\n", "stderr": "oops\n", "exit_code": 4}


async def test_a_long_answer_is_whole(fake_host: OpenFake) -> None:
    settings = CommandSettings(replay_memory_bytes=100_000, replay_spill_bytes=50_000_000)
    async with fake_host(command=settings) as (host, _), serve(host) as served:
        answer = await served.http.post(
            "/box/box/execute", json={"command": "head -c 5000000 /dev/zero; echo '\"\\'; echo end >&2"}
        )
        assert answer.json() == {"stdout": "\0" * 5_000_000 + '"\\\n', "stderr": "end\n", "exit_code": 0}


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "InvalidRequest"),
        (b"{", 400, "InvalidRequest"),
        (b"[]", 400, "InvalidRequest"),
        (b"\xff\xfe", 400, "InvalidRequest"),
        (b'{"command": NaN}', 400, "InvalidRequest"),
        (b"[" * 200_000, 400, "InvalidRequest"),
        (b'{"command": "' + b"x" * 5_000_000 + b'"}', 413, "PayloadTooLarge"),
        (b'{"timeout": 5}', 400, "InvalidRequest"),
        (b'{"command": "true", "timeout": "5"}', 400, "InvalidRequest"),
        (b'{"command": "true\\u0000"}', 400, "CommandError"),
        (b'{"command": "true", "cwd": "/nowhere"}', 400, "CommandError"),
        (b'{"command": "sleep 9", "timeout": 0.05}', 408, "CommandTimeout"),
    ],
)
@pytest.mark.parametrize("path", ["/execute", "/execute/stream/start"])
async def test_what_is_wrong_is_said(fake_host: OpenFake, path: str, body: bytes, status: int, error: str) -> None:
    if path != "/execute":
        body = body.replace(b'"timeout"', b'"timeout_seconds"')
    async with fake_host() as (host, _), serve(host) as served:
        answer = await served.http.post(f"/box/box{path}", content=body)
        if path != "/execute" and error == "CommandTimeout":
            assert "event: error" in answer.text
            assert '"error_type":"CommandTimeout"' in answer.text
            return
        assert (answer.status_code, detail(answer)["error"]) == (status, error)
        assert detail(answer)["message"]


async def test_a_command_ends_with_the_client_that_waits_for_it(fake_host: OpenFake) -> None:
    async with fake_host() as (host, engine), serve(host) as served:
        with trio.move_on_after(0.3):
            await served.http.post("/box/box/execute", json={"command": "sleep 1000"})
        with trio.fail_after(5):
            while any(container.processes for container in engine.containers.values()):
                await trio.sleep(0.01)


async def test_an_unknown_sandbox_is_not_found(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        answer = await served.http.post("/box/nobody/execute", json={"command": "true"})
        assert (answer.status_code, detail(answer)["error"]) == (404, "NotFound")
        assert (await served.http.get("/box/box/execute")).status_code == 405


async def test_a_stream_of_events(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        body = {"command": "printf 'h\\303\\251\\n'; cat; echo oops >&2; exit 2", "command_id": "c"}
        found = await stream(served, "start", **body)
        assert found[0] == ("started", {"command_id": "c", "pid": found[0][1]["pid"], "stdin_received": 0})
        assert output(found) == "hé\n".encode()
        assert output(found, "stderr") == b"oops\n"
        assert found[-3:] == [
            ("stream_end", {"stream": "stdout", "offset": 4}),
            ("stream_end", {"stream": "stderr", "offset": 5}),
            ("exit", {"exit_code": 2}),
        ]
        again = await stream(served, "start", **body)
        assert sorted(again, key=str) == sorted(found, key=str)


async def test_a_stream_is_resumed_at_its_offsets(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        body = {"command": "echo one; read x; echo two", "command_id": "c"}
        async with converse(host, "box", Execute(command=body["command"], command_id="c")) as reader:
            async with served.http.stream("POST", "/box/box/execute/stream/start", json=body) as response:
                async for event, _ in events(response):
                    if event == "stdout":
                        break
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def _resume() -> None:
                    found = await stream(served, "resume", command_id="c", stdout_offset=4, stderr_offset=0)
                    assert output(found, start=4) == b"two\n"
                    assert ("stream_end", {"stream": "stderr", "offset": 0}) in found
                    assert ("stream_end", {"stream": "stdout", "offset": 8}) in found

                await trio.sleep(0.2)
                await reader.link.send(Input("\n"))


async def test_a_silent_stream_shows_that_it_lives(fake_host: OpenFake) -> None:
    settings = DataPlaneSettings(streams=StreamSettings(ping_s=0.1))
    async with fake_host() as (host, _), serve(host, settings) as served:
        found = await stream(served, "start", command="sleep 0.5; echo x")
        assert len([event for event, _ in found if not event]) >= 3
        assert output(found) == b"x\n"


async def test_input_of_a_stream_is_written_once(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        text = "äöü" * 30_000
        body = {"command": "cat; echo end", "command_id": "c", "stdin": base64.b64encode(text.encode()).decode()}
        for _ in range(2):
            assert output(await stream(served, "start", **body)).decode() == text + "end\n"


async def test_argument_lists_are_quoted(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        assert output(await stream(served, "start", command=["echo", "a  b", "$HOME"])) == b"a  b $HOME\n"


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("resume", {"command_id": "nobody"}, 404, "CommandNotFound"),
        ("resume", {}, 400, "InvalidRequest"),
        ("resume", {"command_id": "c", "stdout_offset": -1}, 400, "InvalidRequest"),
        ("start", {"command": "tty", "pty": True}, 400, "PTYUnsupported"),
        ("start", {"command": "cat", "stdin": "%"}, 400, "InvalidRequest"),
        ("start", {"command": "cat", "stdin": 5}, 400, "InvalidRequest"),
        ("start", {"command": "cat", "stdin": "/w=="}, 400, "InvalidRequest"),
        ("start", {"command": "cat", "stdin": "AAAA" * 100_000}, 413, "PayloadTooLarge"),
        ("start", {"command": []}, 400, "InvalidRequest"),
        ("start", {"command": "true", "env": {}, "cwd": "/", "run_config": {}}, 400, "InvalidRequest"),
    ],
)
async def test_requests_for_streams_that_cannot_be(
    fake_host: OpenFake, path: str, body: dict[str, Any], status: int, error: str
) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        answer = await served.http.post(f"/box/box/execute/stream/{path}", json=body)
        assert (answer.status_code, detail(answer)["error"]) == (status, error)


async def test_offsets_that_cannot_be_are_an_error_event(fake_host: OpenFake) -> None:
    settings = CommandSettings(replay_memory_bytes=100_000, replay_spill_bytes=300_000)
    async with fake_host(command=settings) as (host, _), serve(host) as served:
        await stream(served, "start", command="echo x", command_id="c")
        found = await stream(served, "resume", command_id="c", stdout_offset=99)
        assert found[-1][0] == "error"
        assert found[-1][1]["error_type"] == "InvalidOffset"
        async with converse(host, "box", Execute(command="head -c 2000000 /dev/zero", command_id="d")) as reader:
            await reader.to_end()
        found = await stream(served, "resume", command_id="d")
        assert found[-1][1]["error_type"] == "ReadOffsetUnavailable"


async def test_a_stopping_server_says_so_and_the_command_lives_on(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        found: list[tuple[str, dict[str, Any]]] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _stream() -> None:
                found.extend(await stream(served, "start", command="sleep 1; echo alive", command_id="c"))

            await trio.sleep(0.3)
            served.plane.stopping.set()
        assert found[-1][0] == "error"
        assert found[-1][1]["error_type"] == "ServerShuttingDown"
        async with converse(host, "box", Reconnect("c")) as reader:
            assert (await reader.to_end()).stdout == "alive\n"


async def test_leaving_a_stream_leaves_nothing_behind(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        async with served.http.stream(
            "POST", "/box/box/execute/stream/start", json={"command": "sleep 1000", "idle_timeout_seconds": 0.2}
        ) as response:
            async for event, _ in events(response):
                if event == "started":
                    break
        with trio.fail_after(5):
            while "0 requests" not in repr(served.plane):
                await trio.sleep(0.01)


async def test_a_tunnel_without_a_websocket(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        answer = await served.http.get("/box/box/tunnel")
        assert (answer.status_code, detail(answer)["error"]) == (426, "UpgradeRequired")
        assert answer.headers["upgrade"] == "websocket"
