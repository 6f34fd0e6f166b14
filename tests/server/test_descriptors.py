"""Descriptors: a host takes what it may have, and a server that has none left says so in words."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from tests.server.test_guarded import serving

EMBEDDED = """
import resource, sys, trio
from pathlib import Path
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
from sandboxrt.host.config import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state

async def main():
    async with FakeEngine() as engine:
        async with open_host(HostConfig(state_dir=Path("/nonexistent")), engine=engine, state=memory_state()):
            print(*resource.getrlimit(resource.RLIMIT_NOFILE))

trio.run(main)
"""


def test_an_embedded_host_takes_what_it_may_have() -> None:
    done = subprocess.run([sys.executable, "-c", EMBEDDED], capture_output=True, text=True, check=True, timeout=60)
    soft, hard = map(int, done.stdout.split())
    assert soft == min(hard if hard > 0 else soft, 512 * 1024)
    assert soft > 256


@contextlib.contextmanager
def none_left() -> Iterator[None]:
    """Not one descriptor is free, for the length of the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    try:
        # As low as it gets, so that few are enough.
        resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 64, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("path", "status"), [("/healthz", b"200"), ("/boxes", b"503")])
async def test_no_descriptor_for_a_connection(path: str, status: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as place:
        assert (await place.ask()).endswith(b"hello")
        with trio.socket.socket() as client, trio.socket.socket() as again, none_left(), trio.fail_after(20):
            for one in (client, again):
                await one.connect(("127.0.0.1", place.port))
                await one.send(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
                assert (await one.recv(4096)).startswith(b"HTTP/1.1 %b " % status)
        told = [record for record in caplog.records if "turned away" in record.message]
        assert len(told) == 1
        assert not any(record.exc_info for record in caplog.records)
        assert (await place.ask()).endswith(b"hello")


async def test_health_is_told_beyond_the_limit_of_connections() -> None:
    async with serving(max_connections=2) as place:
        held = [await trio.open_tcp_stream("127.0.0.1", place.port) for _ in range(2)]
        for stream in held:
            await stream.send_all(b"GET / HTT")
        await trio.sleep(0.2)
        assert (await place.ask(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert (await place.ask()).startswith(b"HTTP/1.1 503")
        for stream in held:
            await stream.aclose()
