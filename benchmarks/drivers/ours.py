"""Our client on trio. Arguments: the control plane's URL and a key. See ``benchmarks/served.py`` for the orders."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

import trio

from sandboxrt import AsyncSandbox, AsyncSandboxClient


async def round_trip(sandbox: AsyncSandbox) -> float:
    began = time.perf_counter()
    assert (await sandbox.run("echo ok")).stdout == "ok\n"
    return time.perf_counter() - began


async def stream(sandbox: AsyncSandbox, command: str, size: int) -> float:
    began = time.perf_counter()
    assert len((await sandbox.run(command, timeout=0)).stdout) == size
    return time.perf_counter() - began


async def concurrent(sandbox: AsyncSandbox, count: int) -> float:
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(round_trip, sandbox)
    return time.perf_counter() - began


async def upload(sandbox: AsyncSandbox, size: int) -> float:
    data = bytes(size)
    began = time.perf_counter()
    await sandbox.write("/root/file", data, timeout=120)
    return time.perf_counter() - began


async def download(sandbox: AsyncSandbox, size: int) -> float:
    began = time.perf_counter()
    assert len(await sandbox.read("/root/file", timeout=120)) == size
    return time.perf_counter() - began


async def prepare(sandbox: AsyncSandbox, command: str) -> bool:
    result = await sandbox.run(command, timeout=60)
    assert result.exit_code == 0, result.stderr
    return True


async def tunnel(sandbox: AsyncSandbox, port: int) -> int:
    """A tunnel that stays; its local port."""
    opened = await sandbox.tunnel(port)
    return opened.local_port


async def crowd(client: AsyncSandboxClient, sandboxes: int, count: int, command: str, size: int) -> list[float]:
    """How long each of ``count`` commands in each sandbox took, all at once; each must give ``size`` characters."""
    took: list[float] = []

    async def one(sandbox: AsyncSandbox) -> None:
        result = await sandbox.run(command, timeout=0)
        assert (len(result.stdout), result.exit_code) == (size, 0), result.stderr
        took.append(time.perf_counter() - began)

    made = [await client.create_sandbox() for _ in range(sandboxes)]
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for sandbox in made * count:
            nursery.start_soon(one, sandbox)
    for sandbox in made:
        await sandbox.delete()
    return took


async def listing(client: AsyncSandboxClient, count: int, word: str | None = None) -> float:
    """A page of snapshots, which must have ``count``."""
    began = time.perf_counter()
    assert len(await client.list_snapshots(name_contains=word)) == count
    return time.perf_counter() - began


async def rush(url: str, key: str, count: int) -> float:
    """The longest pause of the loop while a fresh client has so many calls to make at once."""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await trio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    async with AsyncSandboxClient(api_endpoint=url, api_key=key) as client, trio.open_nursery() as watching:
        watching.start_soon(watch)
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(client.list_sandboxes)
        watching.cancel_scope.cancel()
    return longest


async def main(url: str, key: str) -> None:
    actions: dict[str, Any] = {
        each.__name__: each for each in (round_trip, stream, concurrent, upload, download, prepare, tunnel)
    }
    overall: dict[str, Any] = {each.__name__: each for each in (crowd, listing)}
    async with AsyncSandboxClient(api_endpoint=url, api_key=key) as client, client.sandbox() as sandbox:
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            order = json.loads(line)
            name = order.pop("action")
            if name == "rush":
                action: Any = partial(rush, url, key)
            else:
                action = partial(overall[name], client) if name in overall else partial(actions[name], sandbox)
            print(json.dumps(await action(**order)), flush=True)


trio.run(main, *sys.argv[1:])
