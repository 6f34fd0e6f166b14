"""The official client on asyncio; runs in its own environment. The orders are those of ``ours.py``."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
import warnings
from typing import Any

warnings.simplefilter("ignore")

from langsmith.sandbox import AsyncSandboxClient  # noqa: E402

TUNNELS: list[Any] = []


async def round_trip(sandbox: Any) -> float:
    began = time.perf_counter()
    assert (await sandbox.run("echo ok")).stdout == "ok\n"
    return time.perf_counter() - began


async def stream(sandbox: Any, command: str, size: int) -> float:
    began = time.perf_counter()
    assert len((await sandbox.run(command, timeout=0)).stdout) == size
    return time.perf_counter() - began


async def concurrent(sandbox: Any, count: int) -> float:
    began = time.perf_counter()
    await asyncio.gather(*(round_trip(sandbox) for _ in range(count)))
    return time.perf_counter() - began


async def upload(sandbox: Any, size: int) -> float:
    data = bytes(size)
    began = time.perf_counter()
    await sandbox.write("/root/file", data, timeout=120)
    return time.perf_counter() - began


async def download(sandbox: Any, size: int) -> float:
    began = time.perf_counter()
    assert len(await sandbox.read("/root/file", timeout=120)) == size
    return time.perf_counter() - began


async def prepare(sandbox: Any, command: str) -> bool:
    result = await sandbox.run(command, timeout=60)
    assert result.exit_code == 0, result.stderr
    return True


async def tunnel(sandbox: Any, port: int) -> int:
    """A tunnel that stays; its local port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        local = listener.getsockname()[1]
    TUNNELS.append(await sandbox.tunnel(port, local_port=local))
    return int(local)


async def listing(client: Any, count: int, word: str | None = None) -> float:
    """A page of snapshots, which must have ``count``."""
    began = time.perf_counter()
    assert len(await client.list_snapshots(name_contains=word)) == count
    return time.perf_counter() - began


async def main(url: str, key: str) -> None:
    actions: dict[str, Any] = {
        each.__name__: each for each in (round_trip, stream, concurrent, upload, download, prepare, tunnel)
    }
    client = AsyncSandboxClient(api_endpoint=url, api_key=key)
    async with await client.sandbox() as sandbox:
        while line := await asyncio.to_thread(sys.stdin.readline):
            order = json.loads(line)
            name = order.pop("action")
            took = await (listing(client, **order) if name == "listing" else actions[name](sandbox, **order))
            print(json.dumps(took), flush=True)


asyncio.run(main(*sys.argv[1:]))
