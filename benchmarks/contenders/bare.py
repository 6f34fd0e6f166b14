"""The OCI runtime alone, with the configuration that sandboxes get: what a container costs without this project.

The mounts (disk image, idmapped layers, overlays) are made by the same launcher, because nobody could make them faster
by hand; the container's first process is the command itself, started by ``crun run``, further ones by ``crun exec``.
Control groups are made before the clock starts and removed after it stopped, in the rival's favour.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import attrs
import trio

from benchmarks.contenders.base import Idle, Living
from benchmarks.programs import Running, start
from sandboxrt.engine.base import ContainerSpec, Layer
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.disk import DiskTemplates
from sandboxrt.engine.idmap import uid_base
from sandboxrt.engine.launch.plan import DISK_FD, INIT_FD, LaunchPlan, covered_folder
from sandboxrt.engine.probe import HostProbe
from sandboxrt.models import DEFAULT_REQUIRE, Limits

__all__ = ["Bare"]

T = TypeVar("T")
FIRST_BLOCK = 9000


def _wait(work: Callable[[], Awaitable[T]]) -> T:
    """Run trio code of the engine that has no blocking form, outside of any run."""
    return trio.run(work)


@attrs.define
class Box:
    """One container: its folder, its instructions and its control groups."""

    bare: Bare
    spec: ContainerSpec
    plan: LaunchPlan
    cgroups: SandboxCgroups
    disk: int = -1

    def words(self, command: Sequence[str], *, detach: bool) -> list[str]:
        words = self.plan.words()
        at = words.index("bundle/config.json")
        config = json.loads(words[at + 3])
        config["process"]["args"] = list(command)
        words[at + 3] = json.dumps(config)
        if not detach:
            cut = words.index("--detach")
            del words[cut : words.index("--bundle")]
        return words

    def run(self, command: Sequence[str], *, detach: bool = False) -> Running:
        """``crun run`` with this box's disk, which is made now."""
        image = self.spec.state_dir / "disk.img"
        self.bare.clone(image)
        self.disk = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        text = "".join(f"{word}\0" for word in self.words(command, detach=detach)).encode()
        fds = {DISK_FD: self.disk, INIT_FD: self.bare.init}
        return start([str(self.bare.launcher)], stdin=text, pass_fds=fds, mute=detach)

    def exec(self, command: Sequence[str]) -> Running:
        """``crun exec``; on a host with both hierarchies it must not see the second one."""
        facts = self.plan.facts
        assert facts.runtime.path is not None
        argv = [facts.runtime.path, "--root", str(self.plan.record), "exec", self.spec.id, *command]
        if not facts.hide_unified:
            return start(argv)
        text = "".join(f"{word}\0" for word in ("ns", "hide", facts.unified_mount, "exec", *argv)).encode()
        return start([str(self.bare.launcher)], stdin=text)

    def round_trip(self) -> float:
        done = self.exec(["/bin/sh", "-c", "echo ok"]).finish()
        assert done.stdout == b"ok\n", done
        return done.exit_s

    def stream(self, command: str, expected_bytes: int) -> float:
        done = self.exec(["/bin/sh", "-c", command]).finish(keep=False)
        assert done.length == expected_bytes, done.length
        return done.exit_s

    def remove(self) -> None:
        async def free() -> None:
            await self.cgroups.kill_all()
            await self.cgroups.wait_empty()
            await self.cgroups.remove()

        _wait(free)
        if self.disk >= 0:
            os.close(self.disk)
        shutil.rmtree(self.spec.state_dir)


@attrs.define
class Bare:
    """``crun`` driven by itself, on the layers of the built-in snapshot."""

    folder: Path
    probe: HostProbe
    layers: Sequence[Layer]
    launcher: Path
    init_program: Path
    name: str = "bare crun"
    init: int = -1
    made: int = 0
    templates: DiskTemplates = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.name = f"bare {self.probe.facts.runtime.kind}"
        self.init = os.open(self.init_program, os.O_RDONLY | os.O_CLOEXEC)
        self.templates = DiskTemplates(self.folder / "templates")

    def clone(self, image: Path) -> None:
        """The engine's own copy of a prepared disk, without its thread."""
        limits = Limits()
        assert limits.disk_bytes is not None
        self.templates.clone_blocking(limits.disk_bytes, image)

    def make(self) -> Box:
        """A box that is ready to be run."""
        name = secrets.token_hex(16)
        self.made += 1
        state_dir = self.folder / name
        record = state_dir / f"run.{name}"
        record.mkdir(parents=True)
        spec = ContainerSpec(
            id=name,
            hostname="bench",
            uid_base=uid_base(FIRST_BLOCK + self.made % 4000),
            layers=tuple(self.layers),
            state_dir=state_dir,
            limits=Limits(),
            require=DEFAULT_REQUIRE,
        )
        cgroups = SandboxCgroups(self.probe.facts.hierarchy, name)
        plan = LaunchPlan(
            spec=spec,
            facts=self.probe.facts,
            cgroups=cgroups,
            cover=covered_folder([state_dir, *(layer.path for layer in self.layers)]),
            record=record,
            pid_file=record / "pid",
        )
        _wait(cgroups.prepare)
        return Box(self, spec, plan, cgroups)

    def first_output(self) -> float:
        box = self.make()
        try:
            began = time.perf_counter()
            running = box.run(["/bin/sh", "-c", "echo ok"])
            before = running.started - began
            done = running.finish()
            assert done.stdout == b"ok\n", done
            return before + done.first_byte_s
        finally:
            box.remove()

    @contextmanager
    def living(self) -> Iterator[Living]:
        box = self.make()
        try:
            box.run(["/bin/sleep", "infinity"], detach=True).finish()
            yield box
        finally:
            box.remove()

    def _one_of_burst(self, box: Box) -> None:
        assert box.run(["/bin/sh", "-c", "echo ok"]).finish().stdout == b"ok\n"

    def burst(self, count: int, concurrency: int) -> float:
        boxes = [self.make() for _ in range(count)]
        try:
            began = time.perf_counter()
            with ThreadPoolExecutor(concurrency) as pool:
                list(pool.map(self._one_of_burst, boxes))
            return time.perf_counter() - began
        finally:
            for box in boxes:
                box.remove()

    @contextmanager
    def idle(self, count: int) -> Iterator[Idle]:
        boxes = [self.make() for _ in range(count)]
        try:
            for box in boxes:
                box.run(["/bin/sleep", "infinity"], detach=True).finish()
            yield Idle(count, [int(box.plan.pid_file.read_text()) for box in boxes])
        finally:
            for box in boxes:
                box.remove()

    def close(self) -> None:
        os.close(self.init)
