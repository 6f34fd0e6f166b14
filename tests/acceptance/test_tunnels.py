"""Tunnels into real containers, embedded and served: every byte of every connection, both ways, to its end."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

import sandboxrt
import sandboxrt.aio
from sandboxrt import (
    AsyncSandbox,
    AsyncSandboxClient,
    SandboxNotReadyError,
    TunnelConnectionRefusedError,
)
from tests.acceptance.cutting import proxied
from tests.conformance.served_kit import served

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

ECHO = """
import socket, threading
def serve(c):
    while data := c.recv(65536):
        c.sendall(data)
    c.close()
s = socket.create_server(("127.0.0.1", 7000), backlog=512)
print("ready", flush=True)
while True:
    threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"""
ANSWER = """
import hashlib, socket
s = socket.create_server(("::1", 7001), family=socket.AF_INET6)
print("ready", flush=True)
while True:
    c = s.accept()[0]
    seen = hashlib.sha256()
    while data := c.recv(65536):
        seen.update(data)
    c.sendall(seen.hexdigest().encode())
    c.close()
"""


@pytest.fixture(params=["embedded", "served"])
async def client(request: pytest.FixtureRequest, state_dir: Path, tmp_path: Path) -> AsyncIterator[AsyncSandboxClient]:
    if request.param == "embedded":
        async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as embedded:
            yield embedded
    else:
        async with (
            served(tmp_path) as (_, config),
            AsyncSandboxClient(api_endpoint=config.base_url, api_key=config.api_key) as remote,
        ):
            yield remote


@asynccontextmanager
async def speaking(client: AsyncSandboxClient, program: str) -> AsyncIterator[AsyncSandbox]:
    """A sandbox in which a program listens."""
    async with client.sandbox() as sandbox:
        await sandbox.write("/root/program.py", program)
        handle = await sandbox.run("exec python3 /root/program.py", timeout=0, wait=False)
        async for chunk in handle:
            assert chunk.data == "ready\n", chunk
            break
        yield sandbox


async def exchange(port: int, data: bytes) -> None:
    """Send ``data`` to an echo and see it come back whole."""
    seen, expected = hashlib.sha256(), hashlib.sha256(data)
    length = 0
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        while chunk := await stream.receive_some(262144):
            seen.update(chunk)
            length += len(chunk)
    assert (length, seen.digest()) == (len(data), expected.digest())


@pytest.mark.parametrize("connections", [1, 20])
async def test_a_hundred_megabytes_each_way(client: AsyncSandboxClient, connections: int) -> None:
    data = random.Random(1).randbytes(100_000_000 // connections)
    async with speaking(client, ECHO) as sandbox, await sandbox.tunnel(7000) as tunnel:
        assert tunnel.remote_port == 7000 != tunnel.local_port
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(exchange, tunnel.local_port, data)
        assert tunnel.errors == ()


async def test_who_ends_first_gets_the_whole_answer(client: AsyncSandboxClient) -> None:
    data = random.Random(2).randbytes(3_000_000)
    async with (
        speaking(client, ANSWER) as sandbox,
        sandbox.tunnel(7001) as tunnel,
        await trio.open_tcp_stream("127.0.0.1", tunnel.local_port) as stream,
    ):
        await stream.send_all(data)
        await stream.send_eof()
        answer = b"".join([bytes(chunk) async for chunk in stream])
    assert answer.decode() == hashlib.sha256(data).hexdigest()


async def test_nothing_listens(client: AsyncSandboxClient) -> None:
    async with client.sandbox() as sandbox:
        with pytest.raises(TunnelConnectionRefusedError, match="port 4444") as raised:
            await sandbox.tunnel(4444, probe=True)
        assert raised.value.port == 4444
        async with sandbox.tunnel(4444) as tunnel:
            async with await trio.open_tcp_stream("127.0.0.1", tunnel.local_port) as stream:
                with pytest.raises(trio.BrokenResourceError):
                    while await stream.receive_some():
                        pass
            (error,) = tunnel.errors
            assert isinstance(error, TunnelConnectionRefusedError)


async def test_a_port_in_use_here(client: AsyncSandboxClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        async with client.sandbox() as sandbox:
            with pytest.raises(OSError, match=f"Port {port} is already in use") as raised:
                await sandbox.tunnel(80, local_port=port)
            assert raised.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("port", [0, -1, 65536, True, "80"])
async def test_what_is_no_port(client: AsyncSandboxClient, port: int) -> None:
    async with client.sandbox() as sandbox:
        with pytest.raises(ValueError, match="remote_port must be a port, 1 to 65535"):
            sandbox.tunnel(port)
        if port:
            with pytest.raises(ValueError, match="local_port must be a port"):
                sandbox.tunnel(80, local_port=port)


async def test_a_closed_tunnel_takes_no_connections(client: AsyncSandboxClient) -> None:
    async with speaking(client, ECHO) as sandbox:
        tunnel = await sandbox.tunnel(7000)
        stream = await trio.open_tcp_stream("127.0.0.1", tunnel.local_port)
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        await tunnel.aclose()
        await tunnel.aclose()
        with pytest.raises(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        with pytest.raises(OSError, match=r"127\.0\.0\.1"):
            await trio.open_tcp_stream("127.0.0.1", tunnel.local_port)
        assert "closed" in repr(tunnel)


async def test_a_cancelled_opening_leaves_nothing(client: AsyncSandboxClient) -> None:
    async with client.sandbox() as sandbox:
        for ticks in range(12):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def cancel(scope: trio.CancelScope = scope, ticks: int = ticks) -> None:
                        for _ in range(ticks):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(cancel)
                    tunnel = await sandbox.tunnel(7000)
                    await tunnel.aclose()
        await sandbox.run("true")


async def test_it_ends_with_the_sandbox(client: AsyncSandboxClient) -> None:
    async with speaking(client, ECHO) as sandbox, sandbox.tunnel(7000) as tunnel:
        async with await trio.open_tcp_stream("127.0.0.1", tunnel.local_port) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await sandbox.stop()
            # An end or a reset: the program inside had the time to end its side, or had not.
            with trio.fail_after(10), suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
        with pytest.raises(SandboxNotReadyError):
            await sandbox.tunnel(7000)


@pytest.mark.parametrize("connections", [1, 20])
async def test_a_hundred_megabytes_over_a_socket_that_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connections: int
) -> None:
    monkeypatch.setattr("sandboxrt.client.transport.tunnel.reattach_delay", lambda losses: 0.001 * losses)
    data = random.Random(3).randbytes(100_000_000 // connections)
    async with (
        proxied(tmp_path, mean_bytes=2_000_000) as (client, proxy),
        speaking(client, ECHO) as sandbox,
        sandbox.tunnel(7000, max_reconnects=20) as tunnel,
    ):
        proxy.armed = True
        async with trio.open_nursery() as nursery:
            for _ in range(connections):
                nursery.start_soon(exchange, tunnel.local_port, data)
        proxy.armed = False
        assert tunnel.errors == ()
    assert proxy.cuts > 20


def test_blocking_and_without_a_block(state_dir: Path) -> None:
    with sandboxrt.SandboxClient(mode="embedded", state_dir=state_dir) as client, client.sandbox() as sandbox:
        sandbox.write("/root/program.py", ECHO)
        handle = sandbox.run("exec python3 /root/program.py", timeout=0, wait=False)
        assert next(iter(handle)).data == "ready\n"
        tunnel = sandbox.tunnel(remote_port=7000)
        with socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=10) as there:
            there.sendall(b"over and back")
            assert there.recv(100) == b"over and back"
        tunnel.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", tunnel.local_port), timeout=10)
        with sandbox.tunnel(7000) as one, sandbox.tunnel(7000) as other:
            assert one.local_port != other.local_port


def test_asyncio(state_dir: Path) -> None:
    import asyncio

    async def main() -> None:
        async with (
            sandboxrt.aio.AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client,
            client.sandbox() as sandbox,
        ):
            await sandbox.write("/root/program.py", ECHO)
            handle = await sandbox.run("exec python3 /root/program.py", timeout=0, wait=False)
            async for _ in handle:
                break
            async with await sandbox.tunnel(remote_port=7000) as tunnel:
                reader, writer = await asyncio.open_connection("127.0.0.1", tunnel.local_port)
                writer.write(b"over and back")
                assert await reader.readexactly(13) == b"over and back"
                writer.close()
            tunnel = await sandbox.tunnel(7000)
            tunnel.close()
            await tunnel.aclose()

    asyncio.run(main())


@pytest.mark.slow
async def test_two_hundred_connections_a_second_for_a_minute(client: AsyncSandboxClient) -> None:
    """Opened, used and closed; afterwards nothing is open on either side. Embedded, a part of it has to do."""
    seconds = 60 if client.mode == "remote" else 5
    done = 0
    # A machine that is too slow for the rate gets less of it, rather than more connections than a tunnel takes.
    at_once = trio.CapacityLimiter(500)

    async def visit(port: int) -> None:
        nonlocal done
        async with at_once, await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            await stream.send_eof()
            assert await stream.receive_some() == b""
        done += 1

    async with speaking(client, ECHO) as sandbox, sandbox.tunnel(7000) as tunnel:
        before = len(os.listdir("/proc/self/fd"))
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(200 * seconds):
                await trio.sleep_until(began + number / 200)
                nursery.start_soon(visit, tunnel.local_port)
        assert done == 200 * seconds
        assert tunnel.errors == ()
        with trio.fail_after(10):
            while len(os.listdir("/proc/self/fd")) > before:
                await trio.sleep(0.1)
        left = await sandbox.run("cat /proc/net/tcp | grep -c ' 01 '")
        assert left.stdout == "0\n"
