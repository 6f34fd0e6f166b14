"""Anything at all, sent to every endpoint: an answer in the documented shape, and the server goes on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import httpx
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandboxrt.host.host import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state

from .dataplane_kit import Served, serve

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["\0", "\ud800", "/", "..", "*", "[", "%2F", "x" * 10_000, "/etc", "true", "c"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(
    "command command_id timeout timeout_seconds shell env cwd pty run_config stdin stdout_offset stderr_offset pattern "
    "path glob limit ext type data offset cols rows signum idle_timeout_seconds ttl_seconds close_stdin".split()
)
objects = st.dictionaries(names, values, max_size=6)
bodies = st.binary(max_size=50) | objects.map(lambda fields: json.dumps(fields).encode())
paths = st.sampled_from(
    ["/execute", "/execute/stream/start", "/execute/stream/resume", "/glob", "/grep", "/upload?path=/f"]
)
headers = st.dictionaries(
    st.sampled_from(["Range", "If-Range", "If-None-Match", "If-Modified-Since", "Content-Type", "Accept"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30).map(str.strip),
    max_size=3,
)
frames = st.text(max_size=30) | st.builds(
    lambda kind, fields: json.dumps({**fields, "type": kind}),
    st.sampled_from("execute reconnect input close_stdin kill signal resize other".split()),
    objects,
)


async def post(served: Served, path: str, body: bytes, named: dict[str, str]) -> None:
    with trio.move_on_after(2):
        answer = await served.http.post(f"/box/box{path}", content=body, headers=named)
        _check(answer)


async def read(served: Served, path: str, named: dict[str, str]) -> None:
    answer = await served.http.get("/box/box/download", params={"path": path}, headers=named)
    _check(answer)


def _check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        detail: dict[str, Any] = answer.json()["detail"]
        assert isinstance(detail["error"], str)
        assert isinstance(detail["message"], str)


async def talk(served: Served, said: list[str]) -> None:
    async with served.connect() as peer:
        with trio.move_on_after(0.1):
            for text in said:
                try:
                    await peer.socket.send_message(text)
                except Exception:
                    return
            while True:
                frame = await peer.receive()
                assert frame["type"] in ("started", "stdout", "stderr", "input_ack", "exit", "error")
                if frame["type"] in ("exit", "error"):
                    assert frame.get("error_type") != "InternalError", frame
                    return


@given(
    st.lists(st.tuples(paths, bodies, headers), max_size=20),
    st.lists(st.tuples(st.text(max_size=20), headers), max_size=10),
    st.lists(st.lists(frames, min_size=1, max_size=3), max_size=5),
)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_that_is_sent_breaks_the_server(
    posts: list[tuple[str, bytes, dict[str, str]]],
    reads: list[tuple[str, dict[str, str]]],
    talks: list[list[str]],
) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as folder:
            config = HostConfig(state_dir=Path(folder))
            async with FakeEngine() as engine, open_host(config, engine=engine, state=memory_state()) as host:
                await host.create_sandbox(CreateSandbox(name="box"))
                async with serve(host) as served:
                    for path, body, named in posts:
                        await post(served, path, body, named)
                    for path, named in reads:
                        await read(served, path, named)
                    for said in talks:
                        await talk(served, said)
                    answer = await served.http.post("/box/box/execute", json={"command": "echo alive"})
                    assert answer.json()["stdout"] == "alive\n"

    trio.run(main)
