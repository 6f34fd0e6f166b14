"""What only real containers can show of the host: the kernel's limits, deaths from outside, throughput's bounds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from sandboxrt.errors import TunnelConnectionRefusedError
from sandboxrt.host.blame import blame
from sandboxrt.host.command import CommandSettings
from sandboxrt.host.connections import PortStream
from sandboxrt.host.host import Host, HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.models import Limits
from sandboxrt.protocol.exec import Execute, Exit, Reconnect
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.testing.conformance import converse, run

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture
async def host(state_dir: Path) -> AsyncIterator[Host]:
    settings = CommandSettings(term_grace_s=0.3, replay_memory_bytes=4 * 1024**2)
    async with open_host(HostConfig(state_dir=state_dir, command=settings)) as opened:
        yield opened


async def test_out_of_memory_is_reported(host: Host) -> None:
    limits = Limits(mem_bytes=64 * 1024**2)
    await host.create_sandbox(CreateSandbox(name="oom", limits=limits))
    hog = "exec python3 -c 'x = bytearray(500_000_000); print(len(x))'"
    assert (await run(host, "oom", hog)).end == Exit(137, oom_killed=True, reason=blame(137, limits.mem_bytes))
    assert (await run(host, "oom", "true")).end == Exit(0)
    assert (await run(host, "oom", "kill -KILL $$")).end == Exit(137)


async def test_a_full_process_table_is_explained(host: Host) -> None:
    await host.create_sandbox(CreateSandbox(name="pids", limits=Limits(pids=12)))
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do sleep 30 & done; echo full; sleep 30"
    async with converse(host, "pids", Execute(command=script)) as reader:
        await reader.started()
        with trio.fail_after(20):
            while "processes is reached" not in getattr((await run(host, "pids", "true")).end, "error", ""):
                await trio.sleep(0.1)


async def test_a_container_killed_from_outside_fails_its_sandbox_only(host: Host) -> None:
    await host.create_sandbox(CreateSandbox(name="victim"))
    await host.create_sandbox(CreateSandbox(name="neighbour"))
    async with converse(host, "victim", Execute(command="echo one; sleep 30")) as reader:
        await reader.until("one")
        # As root inside, the first process cannot be signalled; the host's kernel can end it all the same.
        container = (await host.find("victim"))._container
        assert container is not None
        with trio.fail_after(20):
            await container.close()
            outcome = await reader.to_end()
    assert outcome.error.error_type == "SandboxDied"
    assert (await host.sandbox_status("victim")).status == "failed"
    assert (await run(host, "neighbour", "echo fine")).stdout == "fine\n"
    await host.delete_sandbox("victim")


async def test_forty_megabytes_arrive_whole_twice(host: Host) -> None:
    await host.create_sandbox(CreateSandbox(name="flood"))
    script = "python3 -c 'import sys; [sys.stdout.write(f\"{i:079d}\\n\") for i in range(500_000)]'"
    expected = hashlib.sha256(b"".join(b"%079d\n" % i for i in range(500_000))).hexdigest()
    first = await run(host, "flood", script, command_id="f")
    assert first.exit_code == 0
    assert hashlib.sha256(first.stdout.encode()).hexdigest() == expected
    async with converse(host, "flood", Reconnect("f")) as reader:
        again = await reader.to_end()
    again.check_offsets()
    assert hashlib.sha256(again.stdout.encode()).hexdigest() == expected


async def test_a_long_line_of_bad_bytes_has_exact_offsets(host: Host) -> None:
    await host.create_sandbox(CreateSandbox(name="bytes"))
    script = (
        "python3 -c 'import sys, random; r = random.Random(1); w = sys.stdout.buffer.write\n"
        'data = r.randbytes(3_000_000).replace(b"\\n", b"x") + "€é😀".encode() * 300_000 + b"\\xf0\\x9f"\n'
        "[w(data[i:i+997]) for i in range(0, len(data), 997)]'"
    )
    outcome = await run(host, "bytes", script)

    raw = random.Random(1).randbytes(3_000_000).replace(b"\n", b"x") + "€é😀".encode() * 300_000 + b"\xf0\x9f"
    assert outcome.stdout == raw.decode(errors="replace")


LISTENER = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.create_server((sys.argv[1], int(sys.argv[2])), family=family)
print("listening", flush=True)
while True:
    c, _ = s.accept()
    got = b""
    while piece := c.recv(65536):
        got += piece
    c.sendall(got[::-1])
    c.close()
"""


@pytest.mark.parametrize("runtime", ["crun", "runsc"])
async def test_ports_are_reached_on_either_loopback_and_end_with_the_sandbox(tmp_path: Path, runtime: str) -> None:
    require = frozenset() if runtime == "runsc" else HostConfig().require
    async with open_host(HostConfig(state_dir=tmp_path, runtime=runtime, require=require)) as host:
        await host.create_sandbox(CreateSandbox(name="ports", limits=Limits()))
        addresses = {"127.0.0.1": 8001} if runtime == "runsc" else {"127.0.0.1": 8001, "::1": 8002}
        for address, port in addresses.items():
            script = f"exec python3 -c '{LISTENER}' {address} {port}"
            async with converse(host, "ports", Execute(command=script)) as reader:
                await reader.until("listening")
            data = random.Random(port).randbytes(3_000_000)
            with trio.fail_after(30):
                async with await host.connect("ports", port) as stream, trio.open_nursery() as nursery:

                    async def send(stream: PortStream = stream, data: bytes = data) -> None:
                        await stream.send_all(data)
                        await stream.send_eof()

                    nursery.start_soon(send)
                    assert b"".join([bytes(piece) async for piece in stream]) == data[::-1]
        with pytest.raises(TunnelConnectionRefusedError):
            await host.connect("ports", 8003)
        open_one = await host.connect("ports", 8001)
        await host.delete_sandbox("ports")
        assert open_one.socket.fileno() == -1
