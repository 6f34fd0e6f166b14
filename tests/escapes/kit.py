"""Real containers with nothing in them but the probe, and ways to ask it many things at once.

What runs in here must work for an unprivileged user too: the rootless tests import it in a process of their own.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import Identity, Layer, Process, ProcessSpec
from sandboxrt.engine.bundle import INIT_PATH
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.models import Limits
from tests.engine.oci_kit import Workplace

ROOT = Identity()
USER = Identity(uid=1000, gid=1000)
SOURCES = Path(__file__).with_name("probe")
PROBE = "/bin/probe"
SETUID_PROBE = "/bin/probe-setuid"
HOSTNAME = "escapes"
LIMITS = Limits(vcpus=1, mem_bytes=256 * 1024**2, pids=64, disk_bytes=64 * 1024**2, inotify_instances=32)
NO_ADDRESS = "198.51.100.1"
"""Stands for the host's address where it has none beyond loopback."""
ANSWER_S = 60.0
MAX_OUTPUT_BYTES = 16 * 1024**2


def build_probe(folder: Path) -> Path:
    """Compile the probe statically."""
    program = folder / "probe"
    sources = sorted(str(path) for path in SOURCES.glob("*.c"))
    subprocess.run(
        ["cc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(program), *sources], check=True, timeout=120
    )
    return program


def build_layer(folder: Path, probe: Path) -> Layer:
    """A root folder with the probe and a copy of it that is setuid root."""
    for name in ("bin", "root", "opt"):
        (folder / name).mkdir(parents=True)
    for name, mode in ((PROBE, 0o755), (SETUID_PROBE, 0o4755)):
        target = folder / name.lstrip("/")
        target.write_bytes(probe.read_bytes())
        target.chmod(mode)
    folder.chmod(0o755)
    return Layer(folder)


def workplace(folder: Path) -> Workplace:
    """A state folder for containers."""
    (folder / "sandboxes").mkdir(parents=True, exist_ok=True)
    return Workplace(folder)


@asynccontextmanager
async def running(
    engine: OciEngine, place: Workplace, layer: Layer, limits: Limits = LIMITS, **changes: object
) -> AsyncIterator[OciContainer]:
    """A container, closed and discarded afterwards."""
    spec = place.spec(hostname=HOSTNAME, layers=(layer,), limits=limits, **changes)
    try:
        container = await engine.create(spec)
        try:
            yield container
        finally:
            await container.close()
    finally:
        with trio.CancelScope(shield=True):
            await engine.discard(spec.state_dir, spec.id)


async def start(container: OciContainer, *argv: str, identity: Identity = ROOT, cwd: str = "/tmp") -> Process:
    """Start the probe with an open standard input: what it took it holds until that is closed."""
    return await container.spawn(ProcessSpec(argv=(PROBE, *argv), env={}, cwd=cwd, identity=identity))


async def first_line(process: Process) -> str:
    """The first line it prints, or what there is of it when it ends."""
    text = b""
    with trio.fail_after(ANSWER_S):
        while b"\n" not in text and (chunk := await process.stdout.receive_some(65536)):
            text += chunk
    return text.decode(errors="replace").split("\n")[0]


@asynccontextmanager
async def holding(container: OciContainer, *argv: str, identity: Identity = ROOT) -> AsyncIterator[str]:
    """The probe's first line while it holds what it took; its whole tree is killed at the end."""
    process = await start(container, *argv, identity=identity)
    try:
        yield await first_line(process)
    finally:
        await process.aclose()


async def ask(container: OciContainer, *argv: str, identity: Identity = ROOT) -> str:
    """Everything that the probe prints, at its end."""
    process = await start(container, *argv, identity=identity)
    try:
        assert process.stdin is not None
        await process.stdin.aclose()
        return (await _everything(process)).decode(errors="replace").strip()
    finally:
        await process.aclose()


async def ask_all(container: OciContainer, questions: Iterable[str], identity: Identity = ROOT) -> dict[str, str]:
    """The verdict for each ``NAME,ARG...``."""
    process = await start(container, "batch", *questions, identity=identity)
    try:
        return parse_batch(await _everything(process))
    finally:
        await process.aclose()


async def _everything(process: Process) -> bytes:
    text = bytearray()
    with trio.fail_after(ANSWER_S):
        while (chunk := await process.stdout.receive_some(65536)) and len(text) < MAX_OUTPUT_BYTES:
            text += chunk
    return bytes(text)


def host_pid(container: OciContainer) -> int:
    """The first process's id on the host."""
    assert container._remains.init is not None
    info = Path(f"/proc/self/fdinfo/{container._remains.init}").read_text()
    return next(int(line.split()[1]) for line in info.splitlines() if line.startswith("Pid:"))


def parse_batch(text: bytes) -> dict[str, str]:
    """What ``probe batch`` printed."""
    verdicts = {}
    while text:
        head, _, rest = text.partition(b"\n")
        name, _, length = head.decode().rpartition(" ")
        verdicts[name] = rest[: int(length)].decode(errors="replace").strip()
        text = rest[int(length) + 1 :]
    return verdicts


@attrs.frozen
class HostCanary:
    """Things of the host that no sandbox may reach, one for each way of reaching.

    Attributes:
        file: A file that everyone may read, with a folder for scratch beside it.
        pid: A process with an open descriptor 3.
        port: Where something listens, on all addresses.
        unix_path: A listening socket's file.
        abstract: A listening socket's name.
        address: The host's own address beyond loopback.
    """

    file: Path
    pid: int
    port: int
    unix_path: Path
    abstract: str
    address: str

    def inside(self, question: str) -> str:
        """The question for a container."""
        return self._fill(question, init="1", program=INIT_PATH, scratch="/tmp/scratch")

    def outside(self, question: str) -> str:
        """The same question where its answer should be yes: the process stands for the container's first."""
        beside = self.file.parent
        return self._fill(
            question, init=str(self.pid), program=str(beside / "program"), scratch=str(beside / "scratch")
        )

    def _fill(self, question: str, **values: str) -> str:
        values |= {
            "canary": str(self.file),
            "pid": str(self.pid),
            "port": str(self.port),
            "unix": str(self.unix_path),
            "abstract": self.abstract,
            "address": self.address,
        }
        for name, value in values.items():
            question = question.replace(f"{{{name}}}", value)
        return question
