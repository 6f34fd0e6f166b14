"""A whole server on a real port over the fake engine, and what its clients say to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx

from sandboxrt.host.config import HostConfig
from sandboxrt.server.app import AppSettings
from sandboxrt.server.guarded import ConnectionLimits
from sandboxrt.server.serve import RunningServer, ServerSettings, open_server
from sandboxrt.store import KeyRecords, Store
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state

API = "/api/v2/sandboxes"
LIMITS = ConnectionLimits(drain_s=1.0, linger_s=1.0)


@attrs.frozen
class Site:
    """A server, its engine, and a client for each of two tenants, and one without a key."""

    server: RunningServer
    engine: FakeEngine
    keys: KeyRecords
    acme: httpx.AsyncClient
    other: httpx.AsyncClient
    nobody: httpx.AsyncClient
    secret: str

    async def box(self, name: str = "box", client: httpx.AsyncClient | None = None, **fields: Any) -> dict[str, Any]:
        answer = await (client or self.acme).post("/boxes", json={"name": name, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    async def snapshot(self, name: str = "app", **fields: Any) -> dict[str, Any]:
        body = {"name": name, "docker_image": "alpine:3.20", "fs_capacity_bytes": 2**30, **fields}
        answer = await self.acme.post("/snapshots", json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()


@asynccontextmanager
async def site(
    state_dir: Path, *, engine: FakeEngine | None = None, app: AppSettings | None = None, **settings: Any
) -> AsyncIterator[Site]:
    """A server with a default snapshot; leaving stops it politely."""
    told = ServerSettings(
        port=0,
        host=HostConfig(state_dir=state_dir),
        app=app or AppSettings(public_url="", default_snapshot="host"),
        connections=settings.pop("connections", LIMITS),
        **settings,
    )
    async with AsyncExitStack() as stack:
        keys = KeyRecords(await stack.enter_async_context(Store.open(state_dir)))
        first, second = await keys.create("acme"), await keys.create("other")
        fake = await stack.enter_async_context(engine or FakeEngine())
        server = await stack.enter_async_context(open_server(told, engine=fake, state=memory_state()))

        async def client(key: str | None) -> httpx.AsyncClient:
            headers = {} if key is None else {"X-Api-Key": key}
            url = f"http://127.0.0.1:{server.port}{API}"
            return await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers=headers, timeout=20))

        yield Site(
            server,
            fake,
            keys,
            await client(first.secret),
            await client(second.secret),
            await client(None),
            first.secret,
        )


def detail(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The standard error body of an answer with that status."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    found = answer.json()["detail"]
    assert set(found) >= {"error", "message"}
    assert found["error"] and found["message"]
    return found


def faults(answer: httpx.Response) -> dict[str, str]:
    """The faults of a 422 by the path of their field."""
    assert answer.status_code == 422, f"{answer.status_code}: {answer.text}"
    entries = answer.json()["detail"]
    assert all(set(entry) == {"loc", "msg", "type"} and entry["type"] == "value_error" for entry in entries)
    return {".".join(map(str, entry["loc"])): entry["msg"] for entry in entries}
