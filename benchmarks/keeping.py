"""What it costs to keep a sandbox: to capture it and start from that, to stop it and start it again."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import attrs

from benchmarks.contenders.ours import Ours
from benchmarks.contenders.podman import IMAGE, Podman, PodmanContainer
from benchmarks.programs import run
from benchmarks.report import Measurement
from benchmarks.samples import Case, interleave
from sandboxrt import AsyncSandbox, Snapshot

__all__ = ["captures", "stop_and_start"]

FILES: Final = 2000
FILE_BYTES: Final = 50_000
# Random, so that nobody saves anything by what it holds.
FILL: Final = f"for ((i = 0; i < {FILES}; i++)); do head -c {FILE_BYTES} /dev/urandom > /root/$i; done"
_STOP_S: Final = 10


class _Kept(Protocol):
    """A sandbox with files in it."""

    def capture(self) -> float:
        """Make an image of it, or a snapshot: seconds."""
        ...

    def start_from_it(self) -> float:
        """First output of a new sandbox from the newest capture, all captures removed afterwards: seconds."""
        ...

    def stop(self) -> float:
        """End what runs in it: seconds."""
        ...

    def start(self) -> float:
        """Make it ready again and run ``echo ok``: seconds."""
        ...


@attrs.define
class _Ours:
    ours: Ours
    sandbox: AsyncSandbox
    made: list[Snapshot] = attrs.field(factory=list)

    def capture(self) -> float:
        async def measure() -> float:
            began = time.perf_counter()
            snapshot = await self.sandbox.capture_snapshot("bench")
            taken = time.perf_counter() - began
            self.made.append(snapshot)
            return taken

        return self.ours.on_trio(measure)

    def start_from_it(self) -> float:
        async def measure() -> float:
            began = time.perf_counter()
            sandbox = await self.ours.client.create_sandbox(self.made[-1].id)
            handle = await sandbox.run("echo ok", shell="/bin/sh", wait=False)
            async for _ in handle:
                break
            taken = time.perf_counter() - began
            assert (await handle.result).stdout == "ok\n"
            await sandbox.delete()
            while self.made:
                await self.ours.client.delete_snapshot(self.made.pop().id)
            return taken

        return self.ours.on_trio(measure)

    def stop(self) -> float:
        async def measure() -> float:
            began = time.perf_counter()
            await self.sandbox.stop()
            return time.perf_counter() - began

        return self.ours.on_trio(measure)

    def start(self) -> float:
        async def measure() -> float:
            began = time.perf_counter()
            await self.sandbox.start()
            assert (await self.sandbox.run("echo ok", shell="/bin/sh")).stdout == "ok\n"
            return time.perf_counter() - began

        return self.ours.on_trio(measure)


@attrs.define
class _Theirs:
    podman: Podman
    container: PodmanContainer
    numbers: Iterator[int] = attrs.field(factory=itertools.count)
    made: list[str] = attrs.field(factory=list)

    def capture(self) -> float:
        image = f"localhost/capture:{next(self.numbers)}"
        done = run([*self.podman.argv, "commit", "--quiet", "--pause", self.container.id, image])
        self.made.append(image)
        return done.exit_s

    def start_from_it(self) -> float:
        argv = [self.made[-1] if word == IMAGE else word for word in self.podman.run_argv("--rm")]
        done = run([*argv, "/bin/echo", "ok"])
        assert done.stdout == b"ok\n"
        run([*self.podman.argv, "rmi", "--force", *self.made])
        self.made.clear()
        return done.first_byte_s

    def stop(self) -> float:
        return run([*self.podman.argv, "stop", f"--time={_STOP_S}", self.container.id]).exit_s

    def start(self) -> float:
        started = run([*self.podman.argv, "start", self.container.id]).exit_s
        return started + self.container.round_trip()


@contextmanager
def _kept(contender: Ours | Podman, fill: str = "") -> Iterator[_Kept]:
    if isinstance(contender, Ours):
        sandbox = contender.on_trio(contender.client.create_sandbox)

        async def fill_it() -> None:
            assert (await sandbox.run(fill, shell="/bin/bash", timeout=0)).success

        try:
            contender.on_trio(fill_it)
            yield _Ours(contender, sandbox)
        finally:
            contender.on_trio(sandbox.delete)
        return
    container = contender.make()
    try:
        container.exec("/bin/bash", "-c", fill).finish()
        yield _Theirs(contender, container)
    finally:
        contender.remove(container)


class _Pauses(logging.Handler):
    """Collects how long captured sandboxes stood still, in seconds, from what is logged of each capture."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if (paused_s := getattr(record, "paused_s", None)) is not None:
            self.found.append(paused_s)


@contextmanager
def _pauses() -> Iterator[list[float]]:
    logger, handler = logging.getLogger("sandboxrt.snapshots"), _Pauses()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def captures(ours: Ours, podman: Podman, rounds: int) -> list[Measurement]:
    """A capture of 100 MB in 2,000 files, a start from it, and both together."""
    with _kept(ours, FILL) as mine, _kept(podman, FILL) as theirs, _pauses() as pauses:
        kept: dict[str, _Kept] = {"sandboxrt": mine, "podman": theirs}
        parts: dict[str, dict[str, list[float]]] = {"capture": {}, "start": {}}

        def both(name: str) -> float:
            captured = kept[name].capture()
            started = kept[name].start_from_it()
            parts["capture"].setdefault(name, []).append(1000 * captured)
            parts["start"].setdefault(name, []).append(1000 * started)
            return 1000 * (captured + started)

        whole = interleave({name: Case(lambda name=name: both(name)) for name in kept}, rounds=rounds, warmup=1)  # type: ignore[misc]
    taken = {part: {name: samples[-rounds:] for name, samples in found.items()} for part, found in parts.items()}
    note = f"{FILES} files of {FILE_BYTES} random bytes, in a sandbox that runs. podman: `commit --pause`."
    return [
        Measurement("capture of 100 MB in 2,000 files", "ms", taken["capture"], "faster than podman", note=note),
        Measurement(
            "of that, the sandbox stands still",
            "ms",
            {"sandboxrt": [1000 * pause for pause in pauses[-rounds:]]},
            note="podman does not tell.",
        ),
        Measurement(
            "start from the capture, to first output",
            "ms",
            taken["start"],
            "as fast as from what was built",
            note="`podman run` of the committed image.",
        ),
        Measurement("capture and start from it", "ms", whole, "faster than podman", note="The two together."),
    ]


def stop_and_start(ours: Ours, podman: Podman, rounds: int) -> list[Measurement]:
    """A stop of what idles, and a start of it until it has run a command."""
    with _kept(ours, "true") as mine, _kept(podman, "true") as theirs:
        kept: dict[str, _Kept] = {"sandboxrt": mine, "podman": theirs}
        stops: dict[str, list[float]] = {}

        def cycle(name: str) -> float:
            stops.setdefault(name, []).append(1000 * kept[name].stop())
            return 1000 * kept[name].start()

        starts = interleave({name: Case(lambda name=name: cycle(name)) for name in kept}, rounds=rounds, warmup=1)  # type: ignore[misc]
    stops = {name: samples[-rounds:] for name, samples in stops.items()}
    return [
        Measurement(
            "stop of an idle sandbox",
            "ms",
            stops,
            "faster than podman",
            note=f"SIGTERM, and SIGKILL for what does not end. podman: `stop --time={_STOP_S}`.",
        ),
        Measurement(
            "start of a stopped one, to the end of a command",
            "ms",
            starts,
            "faster than podman",
            note="podman: `start`, then `exec`.",
        ),
    ]
