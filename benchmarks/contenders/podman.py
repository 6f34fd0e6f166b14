"""``podman`` as root, in a storage and a mount namespace of its own, removed at the end."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import attrs

from benchmarks.contenders.base import Idle, Living
from benchmarks.contenders.tree import pack_tree
from benchmarks.programs import ProgramFailedError, Running, run, start

__all__ = ["Podman", "podman"]

REMOVE_TRIES = 5
CGROUP = "sandboxrt-bench-podman"
CGROUPS = Path("/sys/fs/cgroup")
IMAGE = "localhost/bench:1"
UNIFIED = Path("/sys/fs/cgroup/unified")


def ulimits() -> list[str]:
    """Podman asks for more than a root without CAP_SYS_RESOURCE may have: ask for less than there is."""
    wanted = (("nofile", resource.RLIMIT_NOFILE, 20000), ("nproc", resource.RLIMIT_NPROC, 30000))
    return [f"--ulimit={name}={value}:{value}" for name, number, most in wanted for value in [at_most(number, most)]]


def at_most(number: int, most: int) -> int:
    hard = resource.getrlimit(number)[1]
    return most if hard == resource.RLIM_INFINITY else min(hard, most)


@contextmanager
def mount_namespace() -> Iterator[int]:
    """A process that holds a private mount namespace, in which crun accepts a host with both cgroup hierarchies.

    Podman's own mounts stay in there too, and go with it.
    """
    hide = f"umount {UNIFIED}; " if UNIFIED.is_mount() else ""
    script = f"{hide}echo ready; exec sleep infinity"
    holder = start(["unshare", "--mount", "--propagation", "private", "sh", "-c", script])
    try:
        if os.read(holder.stdout, 16) != b"ready\n":
            raise ProgramFailedError(f"no mount namespace: {os.pread(holder.stderr, 4096, 0).decode()}")
        yield holder.pid
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.finish(expect=[-signal.SIGKILL])


@contextmanager
def podman(folder: Path, runtime: str) -> Iterator[Podman]:
    """Podman with everything it keeps under ``folder``, which exists and is empty."""
    with mount_namespace() as holder:
        argv = ["nsenter", f"--mount=/proc/{holder}/ns/mnt", "podman", "--cgroup-manager=cgroupfs"]
        argv += [
            f"--root={folder}/storage",
            f"--runroot={folder}/run",
            f"--tmpdir={folder}/tmp",
            f"--runtime={runtime}",
        ]
        contender = Podman(argv, folder)
        archive = folder / "tree.tar"
        pack_tree(archive)
        run([*argv, "import", "--quiet", str(archive), IMAGE])
        archive.unlink()
        try:
            yield contender
        finally:
            run([*argv, "rm", "--all", "--force", "--ignore", "--time=0"])
            run([*argv, "rmi", "--all", "--force"])
            remove_cgroups()


def remove_cgroups() -> None:
    """Podman removes a container's cgroup, not the folder that it is in, nor its monitors'."""
    for parent in CGROUPS.glob(f"*/{CGROUP}"):
        for folder, _, _ in os.walk(parent, topdown=False):
            os.rmdir(folder)


@attrs.frozen
class PodmanContainer:
    """A running container."""

    argv: list[str]
    id: str

    def exec(self, *command: str) -> Running:
        return start([*self.argv, "exec", self.id, *command])

    def round_trip(self) -> float:
        done = self.exec("/bin/sh", "-c", "echo ok").finish()
        assert done.stdout == b"ok\n"
        return done.exit_s

    def stream(self, command: str, expected_bytes: int) -> float:
        done = self.exec("/bin/sh", "-c", command).finish(keep=False)
        assert done.length == expected_bytes, done.length
        return done.exit_s


@attrs.frozen
class Podman:
    """Containers with the limits that ours have by default, and no network."""

    argv: list[str]
    folder: Path
    name: str = "podman"

    def run_argv(self, *options: str) -> list[str]:
        limits = ["--network=none", "--memory=1g", "--cpus=1", "--pids-limit=256", *ulimits()]
        limits += ["--uidmap=0:1000000000:65536", f"--cgroup-parent=/{CGROUP}"]
        return [*self.argv, "run", *options, *limits, IMAGE]

    def first_output(self) -> float:
        done = run([*self.run_argv("--rm"), "/bin/echo", "ok"])
        assert done.stdout == b"ok\n"
        return done.first_byte_s

    def make(self, _number: int = 0) -> PodmanContainer:
        # As the first process, sleep would not hear SIGTERM; nothing waits for it then when it is stopped.
        options = ("--detach", "--log-driver=none", "--stop-signal=SIGKILL")
        done = run([*self.run_argv(*options), "/bin/sleep", "infinity"])
        return PodmanContainer(self.argv, done.stdout.decode().strip())

    def remove(self, container: PodmanContainer) -> None:
        """Remove it, again when podman's own clean-up was at it in the same moment ("device or resource busy")."""
        for attempt in range(REMOVE_TRIES):
            last = attempt == REMOVE_TRIES - 1
            try:
                run([*self.argv, "rm", "--force", "--ignore", "--time=0", container.id])
                return
            except ProgramFailedError:
                if last:
                    raise

    @contextmanager
    def living(self) -> Iterator[Living]:
        container = self.make()
        try:
            yield container
        finally:
            self.remove(container)

    def one_of_burst(self, number: int) -> None:
        container = self.make(number)
        container.round_trip()
        self.remove(container)

    def burst(self, count: int, concurrency: int) -> float:
        began = time.perf_counter()
        with ThreadPoolExecutor(concurrency) as pool:
            list(pool.map(self.one_of_burst, range(count)))
        return time.perf_counter() - began

    @contextmanager
    def idle(self, count: int) -> Iterator[Idle]:
        made: list[PodmanContainer] = []
        try:
            for _ in range(count):
                made.append(self.make())  # noqa: PERF401 - what was made before a failure is removed
            yield Idle(count, self.pids(made))
        finally:
            for container in made:
                self.remove(container)

    def pids(self, containers: list[PodmanContainer]) -> list[int]:
        """Each container's first process and its monitor (conmon), which lives as long."""
        template = "{{.State.Pid}} {{.State.ConmonPid}}"
        done = run([*self.argv, "inspect", "--format", template, *(container.id for container in containers)])
        return [int(word) for word in done.stdout.split()]
