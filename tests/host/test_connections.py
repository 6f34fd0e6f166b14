"""Connections to ports inside: errors, rules, activity, and that they end with their sandbox."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from sandboxrt.errors import (
    ResourceNotFoundError,
    SandboxNotReadyError,
    SandboxOperationError,
    TunnelConnectionRefusedError,
    TunnelPortNotAllowedError,
)
from sandboxrt.host.connections import ConnectionSettings, PortRules, PortStream
from sandboxrt.host.host import Host
from sandboxrt.protocol.exec import Execute
from sandboxrt.protocol.rest import CreateSandbox, UpdateSandbox
from sandboxrt.testing.conformance import converse
from sandboxrt.testing.fake import FakeEngine, Faults

from .conftest import OpenFake


@contextlib.asynccontextmanager
async def listening(host: Host, port: int, habit: str = "echo") -> AsyncIterator[None]:
    async with converse(host, "box", Execute(command=f"listen {port} {habit}", kill_on_disconnect=True)) as reader:
        await reader.until("listening")
        yield


async def read_all(stream: PortStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def test_data_goes_both_ways_and_each_way_ends_by_itself(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), listening(host, 80), listening(host, 81, "reverse"):
        async with await host.connect("box", 80) as stream:
            await stream.send_all(b"abc")
            assert await stream.receive_some() == b"abc"
        async with await host.connect("box", 81) as stream:
            await stream.send_all(b"abc")
            await stream.send_eof()
            assert await read_all(stream) == b"cba"


@pytest.mark.parametrize("port", [0, -1, 65536, True, "80", None])
async def test_what_is_no_port_is_refused(fake_host: OpenFake, port: int) -> None:
    async with fake_host() as (host, _):
        with pytest.raises(ValueError, match="a port must be 1 to 65535"):
            await host.connect("box", port)


async def test_every_reason_has_its_error(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    settings = ConnectionSettings(ports=PortRules.parse("80,8000-8001"), max_open=1)
    async with fake_host(connections=settings) as (host, engine), listening(host, 80):
        with pytest.raises(ResourceNotFoundError):
            await host.connect("other", 80)
        with pytest.raises(TunnelPortNotAllowedError, match="80,8000-8001") as forbidden:
            await host.connect("box", 7999)
        assert forbidden.value.port == 7999
        with pytest.raises(TunnelConnectionRefusedError, match="Nothing listens") as refused:
            await host.connect("box", 8001)
        assert refused.value.port == 8001
        async with await host.connect("box", 80):
            with pytest.raises(SandboxOperationError, match="its limit; close some"):
                await host.connect("box", 80)
        engine.faults.connect_delay_s = 60
        with pytest.raises(TunnelConnectionRefusedError, match="accepted nothing in 10 s"):
            await host.connect("box", 80)
        engine.faults.connect_delay_s = 0
        await host.stop_sandbox("box")
        with pytest.raises(SandboxNotReadyError, match="stopped"):
            await host.connect("box", 80)


@pytest.mark.parametrize("end", ["stop", "delete", "death"])
async def test_connections_end_with_their_sandbox(
    fake_host: OpenFake, end: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, engine):
        streams = []
        async with listening(host, 80, "mute"):
            streams = [await host.connect("box", 80) for _ in range(3)]
            engine.faults.connect_delay_s = 5

            async def read(stream: PortStream) -> None:
                # The program inside is gone first, or the stream is.
                with contextlib.suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                    assert await stream.receive_some() == b""

            async def connect() -> None:
                with pytest.raises((SandboxNotReadyError, SandboxOperationError, TunnelConnectionRefusedError)):
                    await host.connect("box", 80)

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for stream in streams:
                        nursery.start_soon(read, stream)
                    nursery.start_soon(connect)
                    await trio.sleep(1)
                    if end == "stop":
                        await host.stop_sandbox("box")
                    elif end == "delete":
                        await host.delete_sandbox("box")
                    else:
                        next(iter(engine.containers.values())).die()
        for stream in streams:
            assert stream.socket.fileno() == -1
        if end == "stop":
            engine.faults.connect_delay_s = 0
            await host.start_sandbox("box")
            async with listening(host, 80), await host.connect("box", 80) as stream:
                await stream.send_all(b"again")
                assert await stream.receive_some() == b"again"


async def test_open_connections_keep_an_idle_sandbox_and_nothing_else_does(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _):
        await host.create_sandbox(CreateSandbox(name="idle", idle_ttl_seconds=60))
        sandbox = await host.find("idle")
        handle = await host.attach("idle", Execute(command="listen 80 & true"))
        await handle.aclose()
        await trio.sleep(5)
        stream = await host.connect("idle", 80)
        await trio.sleep(500)
        assert sandbox.status.value == "ready"
        await stream.aclose()
        await stream.aclose()
        await trio.sleep(55)
        assert sandbox.status.value == "ready"
        await host.update_sandbox("idle", UpdateSandbox(idle_ttl_seconds=120))
        await trio.sleep(125)
        assert sandbox.removed.is_set()


async def test_a_cancelled_connection_is_none(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    async with fake_host(engine=FakeEngine(Faults(connect_delay_s=5))) as (host, _), listening(host, 80):
        with trio.move_on_after(1):
            await host.connect("box", 80)
        assert len((await host.find("box"))._connections) == 0


def test_rules_as_text() -> None:
    assert str(PortRules()) == "1-65535"
    assert PortRules.parse("1-65535") == PortRules()
    assert str(PortRules.parse(" 22, 80-90")) == "22,80-90"
    assert not PortRules.parse("none").allow(80)
    assert str(PortRules.parse("none")) == "none"
    for wrong in ("", "a", "1-", "-1", "0", "70000", "5-4", "1,,2", "1--2", "٣"):
        with pytest.raises(ValueError, match="ports"):
            PortRules.parse(wrong)
