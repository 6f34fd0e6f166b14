"""A connection that is cut again and again, both ways: every byte arrives, in order, once; the command runs once."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from sandboxrt import AsyncSandboxClient
from tests.conformance.served_kit import served

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(300)]

OUTPUT_BYTES = 50_000_000
INPUT_BYTES = 2_000_000
CUTS = 500
LINE = "zeile {:07d} häns 世界 😀 ∑ и так далее\n"
"""A line in which most characters take several bytes."""


@attrs.define
class CuttingProxy:
    """Passes connections on, and cuts them at random places after random amounts, until it has made all its cuts."""

    port: int
    random: random.Random
    mean_bytes: int
    cuts: int = 0
    armed: bool = False

    async def serve(self, client: trio.SocketStream) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with client, await trio.open_tcp_stream("127.0.0.1", self.port) as server:
                # One of the two directions is cut, whichever comes first.
                down = self.random.expovariate(1 / self.mean_bytes)
                up = self.random.expovariate(1 / (self.mean_bytes / 8))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, client, server, up, nursery.cancel_scope)
                    nursery.start_soon(self._copy, server, client, down, nursery.cancel_scope)

    async def _copy(
        self, source: trio.SocketStream, target: trio.SocketStream, limit: float, scope: trio.CancelScope
    ) -> None:
        left = int(limit)
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                cut = self.armed and self.cuts < CUTS and len(data) > left
                await target.send_all(data[:left] if cut else data)
                left -= len(data)
                if cut:
                    self.cuts += 1
                    for stream in (source, target):
                        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
        scope.cancel()


@contextlib.asynccontextmanager
async def proxied(state_dir: Path, mean_bytes: int) -> AsyncIterator[tuple[AsyncSandboxClient, CuttingProxy]]:
    """A client whose every connection goes through the proxy."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with served(state_dir, public_url=url) as (server, config), trio.open_nursery() as nursery:
        proxy = CuttingProxy(server.port, random.Random(20_261_124), mean_bytes)
        nursery.start_soon(partial(trio.serve_listeners, proxy.serve, listeners))
        async with AsyncSandboxClient(api_endpoint=f"{url}/v2/sandboxes", api_key=config.api_key) as client:
            yield client, proxy
        nursery.cancel_scope.cancel()


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hundred times the usual delays would take many minutes."""
    monkeypatch.setattr("sandboxrt.client.transport.link.reattach_delay", lambda losses: 0.001 * losses)
    monkeypatch.setattr("sandboxrt.client.transport.link.start_delay", lambda *_: 0.001)


@pytest.mark.usefixtures("_no_patience")
async def test_output_over_five_hundred_cuts(tmp_path: Path) -> None:
    lines = OUTPUT_BYTES // len(LINE.format(0).encode())
    program = f"import sys\nfor n in range({lines}): sys.stdout.write({LINE!r}.format(n))"
    expected = hashlib.sha256()
    for number in range(lines):
        expected.update(LINE.format(number).encode())
    async with proxied(tmp_path, mean_bytes=60_000) as (client, proxy), client.sandbox() as sandbox:
        await sandbox.write("/root/talk.py", program)
        proxy.armed = True
        handle = await sandbox.run("echo once >> /root/count; python3 /root/talk.py", wait=False, timeout=0)
        seen, offset = hashlib.sha256(), 0
        async for chunk in handle:
            assert (chunk.stream, chunk.offset) == ("stdout", offset)
            data = chunk.data.encode()
            offset += len(data)
            seen.update(data)
        result = await handle.result
        proxy.armed = False
        assert (result.exit_code, result.stderr) == (0, "")
        assert seen.digest() == expected.digest()
        assert handle.last_stdout_offset == offset == len(result.stdout.encode())
        assert proxy.cuts == CUTS
        assert await sandbox.read("/root/count") == b"once\n"


@pytest.mark.usefixtures("_no_patience")
async def test_input_over_five_hundred_cuts(tmp_path: Path) -> None:
    lines = INPUT_BYTES // len(LINE.format(0).encode())
    text = "".join(LINE.format(number) for number in range(lines))
    async with proxied(tmp_path, mean_bytes=24_000) as (client, proxy), client.sandbox() as sandbox:
        proxy.armed = True
        handle = await sandbox.run("echo once >> /root/count; tee /root/got | sha256sum", wait=False, timeout=0)
        for start in range(0, len(text), 777):
            await handle.send_input(text[start : start + 777])
        await handle.close_input()
        result = await handle.result
        proxy.armed = False
        assert result.exit_code == 0
        assert result.stdout.split()[0] == hashlib.sha256(text.encode()).hexdigest()
        assert await sandbox.read("/root/got") == text.encode()
        assert proxy.cuts > 200
        assert await sandbox.read("/root/count") == b"once\n"
