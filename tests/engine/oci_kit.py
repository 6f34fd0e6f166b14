"""What the tests of the OCI engine share: a minimal root folder, specs, commands, and a look at what is left."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import Container, ContainerSpec, ExitStatus, Identity, Layer, ProcessSpec
from sandboxrt.engine.idmap import uid_base
from sandboxrt.models import DEFAULT_REQUIRE, Limits

ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
ROOT = Identity()
USER = Identity(1000, 1000)
_FIRST_BLOCK = 12_000


def make_root(folder: Path) -> Path:
    """A root folder whose programs come from a second layer at /usr."""
    for name in ("usr", "etc", "var/tmp", "root", "opt"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (folder / name).symlink_to(f"usr/{name}")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n")
    (folder / "etc/group").write_text("root:x:0:\nuser:x:1000:\n")
    (folder / "etc/hostname").write_text("from-the-image\n")
    return folder


@attrs.define
class Workplace:
    """A state folder with a root folder, and the containers that were made in it."""

    folder: Path
    ids: list[str] = attrs.field(factory=list)

    @classmethod
    def make(cls, folder: Path) -> Workplace:
        make_root(folder / "root")
        (folder / "sandboxes").mkdir()
        return cls(folder)

    def spec(self, **changes: object) -> ContainerSpec:
        name = secrets.token_hex(16)
        self.ids.append(name)
        state_dir = self.folder / "sandboxes" / name
        state_dir.mkdir()
        base = ContainerSpec(
            id=name,
            hostname="kitchen",
            uid_base=uid_base(_FIRST_BLOCK + os.getpid() % 1000 + len(self.ids)),
            layers=(Layer(self.folder / "root"), Layer(Path("/usr"), "/usr")),
            state_dir=state_dir,
            limits=Limits(disk_bytes=64 * 1024**2),
            require=DEFAULT_REQUIRE,
        )
        return attrs.evolve(base, **changes)

    def left(self) -> list[str]:
        """What these containers have on the host, state folders aside."""
        found = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.folder) in line]
        names = set(self.ids)
        found += [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if names.intersection(folder.split("/"))]
        found += list(self._loops())
        found += [f"process {pid}" for pid in processes_of(self.blocks())]
        return found

    def blocks(self) -> range:
        first = uid_base(_FIRST_BLOCK + os.getpid() % 1000)
        return range(first, first + 65_536 * (len(self.ids) + 1))

    def _loops(self) -> Iterator[str]:
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                text = backing.read_text().strip()
            except OSError:
                continue
            if str(self.folder) in text:
                yield f"{backing}: {text}"


def processes_of(ids: range) -> list[int]:
    """Processes of any of these users."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                uids = entry.joinpath("status").read_text().partition("Uid:")[2].split("\n")[0].split()
                state = entry.joinpath("stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and any(int(uid) in ids for uid in uids):
                found.append(int(entry.name))
    return found


async def settled(workplace: Workplace) -> list[str]:
    """What is left once the kernel had a moment."""
    for _ in range(100):
        if not (left := workplace.left()):
            return []
        await trio.sleep(0.05)
    return left


async def run(
    container: Container, script: str, *, identity: Identity = ROOT, shell: str = "/bin/sh", cwd: str = "/"
) -> tuple[ExitStatus, str]:
    """Run a script to its end; everything it printed."""
    process = await container.spawn(
        ProcessSpec(argv=(shell, "-c", f"exec 2>&1; {script}"), env=ENV, cwd=cwd, identity=identity, stdin=False)
    )
    try:
        printed = bytearray()
        async for chunk in process.stdout:
            printed += chunk
        return await process.wait(), printed.decode()
    finally:
        await process.aclose()


async def output(container: Container, script: str, **how: object) -> str:
    """The output of a script that must succeed."""
    status, printed = await run(container, script, **how)  # type: ignore[arg-type]
    assert status.code == 0, f"{status}: {printed}"
    return printed.strip()
