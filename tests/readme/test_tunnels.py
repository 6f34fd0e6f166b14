"""The samples of the README's *TCP Tunnel*, word for word, embedded and served, with the real clients that they use.

In the async forms those clients that block have a thread, as their loop is what carries the tunnel; asyncpg needs none.
"""

from __future__ import annotations

import asyncio
import io
import urllib.request
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
import trio

import sandboxrt
import sandboxrt.aio

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

SAMPLES = Path(__file__).parent / "samples"
POSTGRES = "POSTGRES_HOST_AUTH_METHOD=trust docker-entrypoint.sh postgres"
GIB = 1024**3


def _source(name: str) -> str:
    return (SAMPLES / f"tunnel_{name}.py").read_text(encoding="utf-8")


def _run(source: str, names: dict[str, Any]) -> str:
    with redirect_stdout(io.StringIO()) as stdout:
        exec(compile(source, "sample.py", "exec"), names)
    return stdout.getvalue()


def test_postgresql_blocking(readme_host: None) -> None:
    with sandboxrt.SandboxClient() as client:
        printed = _run(_source("postgresql"), {"client": client})
    assert printed.startswith("('PostgreSQL 15")


def test_redis_blocking(readme_host: None) -> None:
    with sandboxrt.SandboxClient() as client:
        assert _run(_source("redis"), {"client": client}) == "b'value'\n"


def test_http_services_blocking(readme_snapshot_id: str) -> None:
    with sandboxrt.SandboxClient() as client:
        assert _run(_source("http_services"), {"client": client, "snapshot_id": readme_snapshot_id}) == "200\n"


def test_multiple_tunnels_and_explicit_lifecycle_blocking(readme_snapshot_id: str) -> None:
    """Both go on with the sandbox of the sample before, and its server on port 3000."""
    before = _source("http_services").partition("\ntry:")[0]
    names: dict[str, Any] = {"snapshot_id": readme_snapshot_id, "urllib": urllib}
    with sandboxrt.SandboxClient() as client:
        names["client"] = client
        _run(before, names)
        _run(_source("multiple"), names)
        assert (names["resp1"].status, names["resp2"].status) == (200, 200)
        assert _run(_source("explicit_lifecycle"), names) == "23002\n"
        client.delete_sandbox(names["sb"].name)


def test_async_usage_asyncio(readme_host: None) -> None:
    names: dict[str, Any] = {}
    body = "".join(f"    {line}\n" for line in _source("async_usage").splitlines())
    # The sample assumes a snapshot of postgres whose server runs; here it is started before the tunnel is used.
    start = f'        handle = await sb.run("{POSTGRES}", timeout=0, wait=False)\n        await ready(sb)\n'
    body = body.replace("as sb:\n", f"as sb:\n{start}").replace(
        "port=t.local_port)",
        'port=t.local_port, user="postgres")\n            version = await conn.fetchval("SELECT '
        'version()")\n            await conn.close()',
    )
    exec(f"import asyncpg\nasync def sample(client, snapshot_id, ready):\n{body}    return version\n", names)

    async def main() -> str:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            snapshot = await client.create_snapshot("pg", docker_image="postgres:16", fs_capacity_bytes=4 * GIB)
            return await names["sample"](client, snapshot.id, _ready)  # type: ignore[no-any-return]

    assert asyncio.run(main()).startswith("PostgreSQL 15")


async def _ready(sandbox: Any) -> None:
    """Wait until the server in a sandbox takes connections, for half a minute at most."""
    waiting = "for i in $(seq 300); do /usr/lib/postgresql/15/bin/pg_isready -q && exit; sleep 0.1; done; exit 1"
    assert (await sandbox.run(waiting)).success


async def test_postgresql_trio(readme_host: None) -> None:
    def version(port: int) -> str:
        connection = psycopg2.connect(host="127.0.0.1", port=port, user="postgres")
        cursor = connection.cursor()
        cursor.execute("SELECT version()")
        (found,) = cursor.fetchone()
        connection.close()
        return str(found)

    async with sandboxrt.AsyncSandboxClient() as client:
        snapshot = await client.create_snapshot("pg", docker_image="postgres:16", fs_capacity_bytes=4 * GIB)
        async with await client.sandbox(snapshot_id=snapshot.id) as sb:
            await sb.run(POSTGRES, timeout=0, wait=False)
            await _ready(sb)
            async with await sb.tunnel(remote_port=5432) as t:
                assert (await trio.to_thread.run_sync(version, t.local_port)).startswith("PostgreSQL 15")


def _store_and_load(port: int) -> bytes:
    connection = redis.Redis(host="127.0.0.1", port=port)
    connection.set("key", "value")
    found: bytes = connection.get("key")
    connection.close()
    return found


async def _redis(client: Any, in_thread: Callable[[Callable[[int], bytes], int], Any]) -> bytes:
    snapshot = await client.create_snapshot("redis", docker_image="redis:7", fs_capacity_bytes=2 * GIB)
    async with await client.sandbox(snapshot_id=snapshot.id) as sb:
        await sb.run("redis-server --daemonize yes", timeout=10)
        async with await sb.tunnel(remote_port=6379) as t:
            return await in_thread(_store_and_load, t.local_port)  # type: ignore[no-any-return]


async def test_redis_trio(readme_host: None) -> None:
    async with sandboxrt.AsyncSandboxClient() as client:
        assert await _redis(client, trio.to_thread.run_sync) == b"value"


def test_redis_asyncio(readme_host: None) -> None:
    async def main() -> bytes:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            return await _redis(client, asyncio.to_thread)

    assert asyncio.run(main()) == b"value"
