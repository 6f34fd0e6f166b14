"""Answers in time, whatever takes long: every route of the control plane, over a host that cannot be interrupted."""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Iterator
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import attrs
import pytest
import trio
from starlette.routing import Route

from sandboxrt.host.host import Host
from sandboxrt.host.registries import Registries
from sandboxrt.server.app import CONTROL_PREFIXES, DATA_PREFIX, App, AppSettings
from sandboxrt.store import LinkKeys
from tests.server.app_kit import Site, site

ANSWER_S = 1.0
BODIES = {
    "/boxes/{name}": {"name": "renamed"},
    "/boxes/{name}/snapshot": {"name": "captured"},
    "/boxes/{name}/service-url": {"port": 80},
    "/boxes/{name}/download-url": {"path": "/file"},
    "/snapshots": {"name": "app", "docker_image": "alpine:3.20", "fs_capacity_bytes": 2**30},
    "/registries": {"name": "new", "url": "https://registry.example.com", "username": "a", "password": "b"},
    "/registries/{name}": {"username": "other"},
}
SETTLE_LATE = {
    ("PATCH", "/boxes/{name}"): "update_sandbox",
    ("POST", "/boxes/{name}/snapshot"): "capture_snapshot",
    ("POST", "/snapshots"): "create_snapshot",
    ("POST", "/registries"): "create",
    ("PATCH", "/registries/{name}"): "update",
    ("DELETE", "/registries/{name}"): "delete",
}
"""A repetition of these is not the same, so once they do what cannot be undone, their true answer is waited for."""


def _routes() -> list[tuple[str, str]]:
    """The control plane's, each once; creates have a time limit of their own."""
    app = App(Mock(), Mock(), AppSettings(public_url="http://x"), Mock())
    control, data = CONTROL_PREFIXES[0] + "/", DATA_PREFIX.partition("{")[0]
    table = [route for route in app.routes if isinstance(route, Route) and route.path.startswith(control)]
    found = {
        (method, route.path.removeprefix(CONTROL_PREFIXES[0]))
        for route in table
        if not route.path.startswith(data)
        for method in (route.methods or set()) - {"HEAD"}
    }
    return sorted(found - {("POST", "/boxes")})


@attrs.define(eq=False)
class Slowness:
    """Makes what a host does stand still, and not be cancelled, until it may go on."""

    on: bool = False
    stands: trio.Event = attrs.field(factory=trio.Event)
    may_go_on: trio.Event = attrs.field(factory=trio.Event)

    @contextlib.contextmanager
    def of(self, *kinds: type, only: str | None) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for kind in kinds:
                for name, function in vars(kind).items():
                    meant = name == only if only else not name.startswith("_") and name != "shut_down"
                    if meant and inspect.iscoroutinefunction(function):
                        patch.setattr(kind, name, self._slow(function))
            try:
                yield
            finally:
                self.may_go_on.set()

    def _slow(self, function: Any) -> Any:
        @wraps(function)
        async def slow(*arguments: Any, **more: Any) -> Any:
            if not self.on:
                return await function(*arguments, **more)
            with trio.CancelScope(shield=True):
                self.stands.set()
                await self.may_go_on.wait()
                return await function(*arguments, **more)

        return slow


@pytest.mark.parametrize(("method", "path"), _routes(), ids=lambda value: value)
async def test_a_host_that_stands_still(tmp_path: Path, method: str, path: str) -> None:
    slowness = Slowness()
    settings = AppSettings(public_url="", default_snapshot="host", answer_s=ANSWER_S)
    async with site(tmp_path, app=settings) as here, _connection(here) as (stream, read):
        with slowness.of(Host, Registries, LinkKeys, only=SETTLE_LATE.get((method, path))):
            await _scene(here)
            snapshot = (await here.snapshot())["id"]
            names = {"{name}": "mine" if "registries" in path else "box", "{ref:path}": snapshot}
            if "by-name" in path:
                names["{ref:path}"] = "app"
            target = path
            for pattern, name in names.items():
                target = target.replace(pattern, name)
            slowness.on = True
            await _ask(here, stream, method, target, BODIES.get(path) if method in ("POST", "PATCH") else None)
            with trio.fail_after(20):
                await slowness.stands.wait()
                if (method, path) in SETTLE_LATE:
                    await trio.sleep(1.3 * ANSWER_S)
                    slowness.may_go_on.set()
                status, closes = await read()
            slowness.may_go_on.set()
            slowness.on = False
            assert status < 300 if (method, path) in SETTLE_LATE else status in (204, 503)
            with trio.fail_after(20):
                if closes:
                    # It was answered before its body was read, so the connection ends, without a second answer.
                    assert await stream.receive_some() == b""
                    return
                # The connection goes on to work: what was late is passed over.
                await trio.sleep(0.1)
                for _ in range(2):
                    await _ask(here, stream, "GET", "/boxes?limit=1")
                    assert await read() == (200, False)


async def test_a_removal_goes_on_behind_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot whose record is gone is deleted, however long its files take."""
    may_end = trio.Event()
    delete = Host.delete_snapshot

    async def slow(self: Host, snapshot_id: str) -> None:
        await delete(self, snapshot_id)
        with trio.CancelScope(shield=True):
            await may_end.wait()

    monkeypatch.setattr(Host, "delete_snapshot", slow)
    settings = AppSettings(public_url="", default_snapshot="host", answer_s=ANSWER_S)
    async with site(tmp_path, app=settings) as here, _connection(here) as (stream, read):
        made = await here.snapshot()
        await _ask(here, stream, "DELETE", f"/snapshots/{made['id']}")
        try:
            with trio.fail_after(20):
                assert await read() == (204, False)
                assert (await here.acme.get(f"/snapshots/{made['id']}")).status_code == 404
                await _ask(here, stream, "GET", "/boxes")
                assert await read() == (200, False)
        finally:
            may_end.set()


async def test_work_that_fails_behind_its_answer_is_told_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    may_end = trio.Event()

    async def failing(self: Host, *_: Any) -> None:
        with trio.CancelScope(shield=True):
            await may_end.wait()
        raise RuntimeError("behind the answer")

    monkeypatch.setattr(Host, "list_snapshots", failing)
    settings = AppSettings(public_url="", default_snapshot="host", answer_s=ANSWER_S)
    async with site(tmp_path, app=settings) as here:
        try:
            assert (await here.acme.get("/snapshots")).status_code == 503
        finally:
            may_end.set()
        with trio.fail_after(20):
            while "behind the answer" not in caplog.text:
                await trio.sleep(0.01)
        assert (await here.acme.get("/boxes")).status_code == 200


async def _scene(here: Site) -> None:
    await here.box(lease_seconds=None)
    answer = await here.acme.post("/registries", json={**BODIES["/registries"], "name": "mine"})
    assert answer.status_code == 201, answer.text


async def _ask(here: Site, stream: trio.SocketStream, method: str, target: str, body: object = None) -> None:
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {CONTROL_PREFIXES[0]}{target} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: {here.secret}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    await stream.send_all(head.encode() + content)


@contextlib.asynccontextmanager
async def _connection(here: Site) -> AsyncIterator[tuple[trio.SocketStream, Any]]:
    """One connection, and what reads the next answer: its status, and whether the connection ends with it."""
    stream = await trio.open_tcp_stream("127.0.0.1", here.server.port)
    buffer = bytearray()

    async def more() -> None:
        data = await stream.receive_some(65536)
        assert data, f"closed after {bytes(buffer)!r}"
        buffer.extend(data)

    async def read() -> tuple[int, bool]:
        while b"\r\n\r\n" not in buffer:
            await more()
        head, _, _ = bytes(buffer).partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        end = len(head) + 4 + int(headers.get("content-length", 0))
        while len(buffer) < end:
            await more()
        del buffer[:end]
        return int(lines[0].split()[1]), headers.get("connection") == "close"

    async with stream:
        yield stream, read
