"""Rows 35 and 36: TCP tunnels."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

from context import Context, check, raises, same

ECHO = """
import socket, threading
def serve(c):
    while data := c.recv(65536):
        c.sendall(data)
    c.close()
s = socket.create_server(("127.0.0.1", 7000), backlog=128)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""
WAIT = """
import socket, time
for port in (3000, 7000):
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.1)
    else:
        raise SystemExit(f"nobody listens on {port}")
print("listening")
"""
BIG = 100_000_000


@contextlib.asynccontextmanager
async def echoing(context: Context) -> AsyncIterator[Any]:
    """A sandbox with an echo on port 7000 and a web server on port 3000."""
    async with context.sandbox() as sandbox:
        await sandbox.write("/srv/www/index.html", "hello from inside")
        await sandbox.write("/srv/echo.py", ECHO)
        await sandbox.write("/srv/wait.py", WAIT)
        started = await sandbox.run(
            "cd /srv/www; python3 -m http.server 3000 >/dev/null 2>&1 & python3 /srv/echo.py >/dev/null 2>&1 & "
            "python3 /srv/wait.py",
            timeout=30,
        )
        same((started.stdout, started.exit_code), ("listening\n", 0), "both are there")
        yield sandbox


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def exchange(port: int, data: bytes) -> None:
    """Send ``data`` to the echo and see it come back. The other end is closed last: official clients know no half."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        for at in range(0, len(data), 1 << 20):
            writer.write(data[at : at + (1 << 20)])
            await writer.drain()

    sending = asyncio.ensure_future(send())
    seen, length = hashlib.sha256(), 0
    while length < len(data):
        chunk = await reader.read(1 << 18)
        check(chunk, f"the connection ended after {length} bytes")
        seen.update(chunk)
        length += len(chunk)
    await sending
    writer.close()
    same(seen.hexdigest(), hashlib.sha256(data).hexdigest(), "what came back")


async def reached(context: Context) -> None:
    """Row 35: a web server, an echo, twenty connections at once, and a port where nobody listens."""
    async with echoing(context) as sandbox:
        tunnel = await sandbox.tunnel(remote_port=3000, local_port=free_port())
        url = f"http://127.0.0.1:{tunnel.local_port}/"
        body = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=20).read())
        same(body, b"hello from inside", "the page")
        tunnel.close()
        tunnel = await sandbox.tunnel(remote_port=7000, local_port=free_port())
        data = [random.Random(seed).randbytes(300_000) for seed in range(20)]
        await asyncio.gather(*(exchange(tunnel.local_port, each) for each in data))
        tunnel.close()
        tunnel = await sandbox.tunnel(remote_port=4444, local_port=free_port())
        reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
        with contextlib.suppress(ConnectionResetError):
            same(await asyncio.wait_for(reader.read(), 20), b"", "what comes from where nobody listens")
        writer.close()
        tunnel.close()


async def much(context: Context) -> None:
    """Row 35: 100 MB each way."""
    async with echoing(context) as sandbox:
        tunnel = await sandbox.tunnel(remote_port=7000, local_port=free_port())
        await exchange(tunnel.local_port, random.Random(1).randbytes(BIG))
        tunnel.close()


async def cut(context: Context) -> None:
    """Row 35: the tunnel's WebSocket goes; later connections find another one."""
    async with echoing(context) as sandbox:
        tunnel = await sandbox.tunnel(remote_port=7000, local_port=free_port())
        await exchange(tunnel.local_port, b"before")
        context.faults(drop_tunnels=True)
        for attempt in range(20):
            try:
                await exchange(tunnel.local_port, b"after")
                break
            except (AssertionError, ConnectionError):
                check(attempt < 19, "connections work again")
                await asyncio.sleep(0.5)
        tunnel.close()


async def in_use(context: Context) -> None:
    """Row 36: the local port is taken."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        async with context.sandbox() as sandbox:
            await raises(OSError, sandbox.tunnel(remote_port=7000, local_port=other.getsockname()[1]))


SCENARIOS = {"35": reached, "35 much": much, "35 cut": cut, "36": in_use}
