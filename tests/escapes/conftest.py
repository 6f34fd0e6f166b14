from __future__ import annotations

import contextlib
import fcntl
import secrets
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sandboxrt.engine.base import Layer
from sandboxrt.engine.oci import OciEngine
from tests.engine.oci_kit import Workplace, settled
from tests.escapes.kit import NO_ADDRESS, HostCanary, build_layer, build_probe, workplace

_SIOCGIFADDR = 0x8915


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    for each in (folder, *folder.parents[:2]):
        each.chmod(each.stat().st_mode | 0o011)  # an ordinary user runs it too
    return build_probe(folder)


@pytest.fixture(scope="session")
def layer(probe: Path) -> Layer:
    return build_layer(probe.parent / "root", probe)


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostCanary]:
    folder = tmp_path_factory.mktemp("canary")
    for each in (folder, *folder.parents[:2]):
        each.chmod(each.stat().st_mode | 0o011)  # nothing but the walls may stop an ordinary user
    file = folder / "canary"
    file.write_text("host")
    (folder / "program").write_text("program")
    abstract = f"sandboxrt-canary-{secrets.token_hex(8)}"
    sleeper = subprocess.Popen(["sh", "-c", 'exec sleep 600 3<"$0"', str(file)], cwd="/", env={"SECRET": "host"})
    try:
        with (
            socket.create_server(("0.0.0.0", 0), backlog=100) as tcp,
            socket.socket(socket.AF_UNIX) as named,
            socket.socket(socket.AF_UNIX) as nameless,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route,
        ):
            named.bind(str(folder / "socket"))
            (folder / "socket").chmod(0o777)
            nameless.bind(f"\0{abstract}")
            named.listen(100)
            nameless.listen(100)
            address = _own_address(route)
            yield HostCanary(file, sleeper.pid, tcp.getsockname()[1], folder / "socket", abstract, address)
    finally:
        sleeper.kill()
        sleeper.wait()


def _own_address(datagrams: socket.socket) -> str:
    """This host's address beyond loopback, of whatever interface: it need not have a route to the world."""
    for _, name in socket.if_nameindex():
        with contextlib.suppress(OSError):
            found = fcntl.ioctl(datagrams, _SIOCGIFADDR, struct.pack("16s24x", name.encode()))
            address = socket.inet_ntoa(found[20:24])
            if not address.startswith("127."):
                return address
    return NO_ADDRESS  # nothing to reach, and still no route from inside


@pytest.fixture(scope="session")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests, so that what is prepared once (programs, disk templates) is prepared once."""
    return tmp_path_factory.mktemp("escapes") / "state"


@pytest.fixture
def place(state_dir: Path) -> Workplace:
    return workplace(state_dir)


@pytest.fixture(params=["crun", "runc"])
async def engine(request: pytest.FixtureRequest, place: Workplace) -> AsyncIterator[OciEngine]:
    async with OciEngine(place.folder, request.param) as engine:
        yield engine
    assert await settled(place) == []
