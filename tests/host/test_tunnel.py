"""The tunnel actor over the fake engine: what it answers to each stream, and how it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from sandboxrt.errors import ResourceNotFoundError, SandboxNotReadyError
from sandboxrt.host.connections import ConnectionSettings, PortRules
from sandboxrt.host.host import Host
from sandboxrt.host.tunnel import Tunnel
from sandboxrt.protocol.exec import Execute
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import converse
from sandboxrt.tunnels.mux import Mux, MuxStream
from tests.host.conftest import OpenFake
from tests.tunnels.test_mux import line


@asynccontextmanager
async def tunnelled(host: Host) -> AsyncIterator[tuple[Mux, Tunnel]]:
    """A tunnel into ``box``, where an echo listens on port 7000."""
    near, far = line()
    async with converse(host, "box", Execute(command="listen 7000", timeout_s=0)) as reader:
        await reader.started()
        await reader.until("listening")
        tunnel = await host.open_tunnel("box", far)
        async with trio.open_nursery() as nursery:
            mux = Mux("client", near)
            nursery.start_soon(mux.run)
            yield mux, tunnel
            nursery.cancel_scope.cancel()
        near.cut()
        with trio.fail_after(10):
            await tunnel.ended.wait()


async def opened(mux: Mux, header: bytes) -> tuple[MuxStream, bytes]:
    stream = mux.open()
    await stream.send_all(header)
    return stream, await stream.receive_some(1)


async def test_a_stream_is_a_connection(autojump_clock: trio.testing.MockClock, fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), tunnelled(host) as (mux, _):
        stream, status = await opened(mux, b"\x01\x1b\x58hello")
        assert status == b"\0"
        assert await stream.receive_some() == b"hello"
        await stream.send_eof()
        assert await stream.receive_some() == b""


@pytest.mark.parametrize(
    ("header", "status"),
    [(b"\x01\x11\x5c", 2), (b"\x02\x1b\x58", 3), (b"\x01\x00\x00", 1), (b"\x00\x1b\x58", 3)],
    ids=["nobody listens", "another version", "port 0", "version 0"],
)
async def test_what_cannot_be_is_said(
    autojump_clock: trio.testing.MockClock, fake_host: OpenFake, header: bytes, status: int
) -> None:
    async with fake_host() as (host, _), tunnelled(host) as (mux, _):
        stream, answer = await opened(mux, header)
        assert answer == bytes([status])
        assert await stream.receive_some() == b""


async def test_ports_that_the_rules_exclude(autojump_clock: trio.testing.MockClock, fake_host: OpenFake) -> None:
    connections = ConnectionSettings(ports=PortRules.parse("80,443"))
    async with fake_host(connections=connections) as (host, _), tunnelled(host) as (mux, _):
        assert (await opened(mux, b"\x01\x1b\x58"))[1] == b"\x01"


async def test_a_stream_that_does_not_say_where_to(autojump_clock: trio.testing.MockClock, fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), tunnelled(host) as (mux, _):
        stream = mux.open()
        await stream.send_all(b"\x01")
        with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()


async def test_it_ends_with_the_sandbox(autojump_clock: trio.testing.MockClock, fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), tunnelled(host) as (mux, tunnel):
        stream, _ = await opened(mux, b"\x01\x1b\x58")
        await host.stop_sandbox("box")
        with trio.fail_after(10):
            await tunnel.ended.wait()
        near, far = line()
        with pytest.raises(SandboxNotReadyError):
            await host.open_tunnel("box", far)
        near.cut()
        stream.reset()


async def test_traffic_keeps_a_sandbox_that_would_idle(
    autojump_clock: trio.testing.MockClock, fake_host: OpenFake
) -> None:
    async with fake_host(box=False) as (host, _):
        await host.create_sandbox(CreateSandbox(name="box", idle_ttl_seconds=60))
        async with tunnelled(host) as (mux, _):
            stream, _ = await opened(mux, b"\x01\x1b\x58")
            await trio.sleep(600)
            await stream.send_all(b"still there")
            assert await stream.receive_some() == b"still there"
            await stream.aclose()
        await trio.sleep(1000)
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("box")
