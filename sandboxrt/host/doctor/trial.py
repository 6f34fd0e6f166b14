"""Makes one real sandbox and does with it what sandboxes are for, so that nothing has to be concluded.

What it takes is what every create takes: the engine, the state folder, layers, limits and requirements. It differs in
that no database knows of it, so that a server beside it is not disturbed and a state folder need not have one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import (
    Container,
    ContainerSpec,
    ExecFailedError,
    Feature,
    FileError,
    Identity,
    Layer,
    Process,
    ProcessSpec,
    SpawnFailedError,
)
from sandboxrt.engine.causes import explain
from sandboxrt.engine.idmap import UID_BLOCK_COUNT, uid_base
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.engine.probe import HostProbe, probe_host
from sandboxrt.engine.remove_tree import remove_tree
from sandboxrt.errors import SandboxClientError
from sandboxrt.models import Isolation, Limits
from sandboxrt.threads import run_blocking

__all__ = ["Tried", "try_sandbox"]

_TIMEOUT_S = 120.0
_STEP_TIMEOUT_S = 20.0
_ABANDONED_AFTER_S = 300.0
_PREFIX = "probe-"
_ROOT = Identity()
_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_FILE = "/root/trial"
_UNUSED_PORT = 1
_PAGE_BYTES = 4096


@attrs.frozen
class Tried:
    """What came of a trial.

    Attributes:
        done: What worked, in order.
        failed: What did not; ``None`` when everything did.
        words: Why not.
        fix: What helps, where the words do not say it.
    """

    done: tuple[str, ...] = ()
    failed: str | None = None
    words: str = ""
    fix: str | None = None

    @property
    def ok(self) -> bool:
        """Whether everything worked."""
        return self.failed is None


class _WrongError(Exception):
    """Something came out that must not."""


async def try_sandbox(
    engine: OciEngine, *, limits: Limits, require: frozenset[Isolation], allow_unenforced_limits: bool = False
) -> Tried:
    """Make a sandbox in the engine's state folder, use it, and remove it.

    Args:
        engine: Entered.
        limits: What it gets.
        require: What it has to have.
        allow_unenforced_limits: Whether limits that this host cannot enforce may be left out.

    Returns:
        What worked, and what did not and why. Nothing is left behind, but by a kill of this process; what that left
        is removed by the next trial in the folder.

    Cancellation: leaves nothing behind. Bounded by two minutes.
    """
    probe = await probe_host(engine.runtime, engine.state_dir)
    trial = _Trial(engine, probe, limits)
    try:
        with trio.fail_after(_TIMEOUT_S):
            async with _scratch(engine) as folder:
                spec = trial.spec(folder, require, allow_unenforced_limits)
                await trial.run(spec)
    except (SandboxClientError, OSError, RuntimeError, trio.TooSlowError) as error:
        return trial.failed(error)
    except (SpawnFailedError, ExecFailedError, FileError, _WrongError) as error:
        return trial.failed(error)
    return Tried(tuple(trial.done))


@attrs.define
class _Trial:
    engine: OciEngine
    probe: HostProbe
    limits: Limits
    done: list[str] = attrs.field(factory=list)
    step: str = "folder"

    def spec(self, folder: Path, require: frozenset[Isolation], allow_unenforced_limits: bool) -> ContainerSpec:
        """A sandbox on this machine's own programs, with a root folder of the state folder's file system."""
        is_root = self.probe.facts.is_root
        return ContainerSpec(
            id=_id(folder),
            hostname="trial",
            uid_base=uid_base(UID_BLOCK_COUNT - 2) if is_root else 0,
            layers=(Layer(_make_root(folder / "root")), Layer(Path("/usr"), "/usr")),
            state_dir=folder / "sandbox",
            limits=self.limits,
            require=require,
            allow_unenforced_limits=allow_unenforced_limits,
        )

    async def run(self, spec: ContainerSpec) -> None:
        """All steps, until one fails."""
        self.step = "start"
        container = await self.engine.create(spec)
        try:
            self.done.append(self.step)
            steps: dict[str, Callable[[OciContainer], Awaitable[None]]] = {
                "command": _command,
                "limits": self._limits,
                "tree kill": _tree_kill,
                "files": _files,
                "port": _port,
                "terminal": _terminal,
            }
            for self.step, step in steps.items():
                with trio.fail_after(_STEP_TIMEOUT_S):
                    await step(container)
                self.done.append(self.step)
        finally:
            await container.close()
        self.step = "end"
        await self.engine.discard(spec.state_dir, spec.id)
        self.done.append(self.step)

    async def _limits(self, container: OciContainer) -> None:
        """Whether the kernel has them, as far as this host was said to enforce them."""
        cgroups, guest = container.cgroups, Feature.TERMINAL_EOF not in container.features
        # gVisor's own tasks are counted, too, so it gets more of them.
        limits = attrs.evolve(self.limits, pids=None) if guest else self.limits
        if cgroups is not None:
            for path, wanted in cgroups.limit_files(limits, swap=False):
                found = path.read_text().strip()
                if found != wanted and not (found.isdigit() and 0 <= int(wanted) - int(found) < _PAGE_BYTES):
                    raise _WrongError(f"{path.name} is {found}, not {wanted}")
        if self.limits.disk_bytes is not None and container.report.has(Isolation.DISK_LIMIT):
            size = int(await _output(container, "stat -f -c '%b %S' / | { read b s; echo $((b * s)); }"))
            if size > self.limits.disk_bytes:
                raise _WrongError(f"its disk has {size} bytes, not {self.limits.disk_bytes} at most")

    def failed(self, error: Exception) -> Tried:
        """What came of it."""
        words = "it took too long" if isinstance(error, trio.TooSlowError) else str(error) or repr(error)
        cause = None if isinstance(error, SandboxClientError) else explain(words, self.probe.facts.around)
        return Tried(tuple(self.done), self.step, words, None if cause is None else cause.fix)


@contextlib.asynccontextmanager
async def _scratch(engine: OciEngine) -> AsyncIterator[Path]:
    """A locked folder in the state folder; those of killed trials are removed before."""
    for abandoned in await run_blocking(None, lambda: list(_abandoned(engine.state_dir))):
        await _remove(engine, abandoned)
    folder = engine.state_dir / f"{_PREFIX}{secrets.token_hex(16)}"
    folder.mkdir(mode=0o700)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "sandbox").mkdir(mode=0o700)
        yield folder
    finally:
        os.close(fd)
        with trio.CancelScope(shield=True):
            await _remove(engine, folder)


def _id(folder: Path) -> str:
    """The container's id is in the folder's name, so that whoever finds the folder finds it."""
    return folder.name.removeprefix(_PREFIX)


async def _remove(engine: OciEngine, folder: Path) -> None:
    await engine.discard(folder / "sandbox", _id(folder))
    await remove_tree(folder)


def _abandoned(state_dir: Path) -> Iterator[Path]:
    """Folders of trials whose process is gone. A young one may not have been locked yet."""
    for folder in state_dir.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime < _ABANDONED_AFTER_S:
                continue
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield folder
            finally:
                os.close(fd)


def _make_root(root: Path) -> Path:
    for name in ("root", "etc", "usr", "var/tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    return root


@contextlib.asynccontextmanager
async def _started(container: Container, script: str, *, pty: tuple[int, int] | None = None) -> AsyncIterator[Process]:
    process = await container.spawn(
        ProcessSpec(argv=("/bin/sh", "-c", script), env=_ENV, cwd="/", identity=_ROOT, stdin=False, pty=pty)
    )
    try:
        yield process
    finally:
        await process.aclose()


async def _output(container: Container, script: str, *, pty: tuple[int, int] | None = None) -> str:
    async with _started(container, script, pty=pty) as process:
        printed = bytearray()
        async for chunk in process.stdout:
            printed += chunk
        code = (await process.wait()).exit_code
    if code != 0:
        raise _WrongError(f"a command ended with {code}: {printed.decode(errors='replace').strip()[-200:]}")
    return printed.decode(errors="replace").strip()


async def _command(container: OciContainer) -> None:
    said = await _output(container, "echo $(id -u) $(hostname)")
    if said != "0 trial":
        raise _WrongError(f"a command printed {said!r}")


async def _tree_kill(container: OciContainer) -> None:
    if Feature.TREE_KILL not in container.features:
        return
    async with _started(container, "setsid sleep 60 & echo up; sleep 60") as process:
        await process.stdout.receive_some(16)
        await process.kill_tree()
        await process.wait_tree()


async def _files(container: OciContainer) -> None:
    content = secrets.token_bytes(64)

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    await container.replace_file(_FILE, pieces(), _ROOT)
    file = await container.open_file(_FILE, _ROOT)
    try:
        if await file.read(0, 128) != content:
            raise _WrongError(f"{_FILE} has other content than was written")
    finally:
        await file.aclose()


async def _port(container: OciContainer) -> None:
    """Nothing listens, and that is what the sandbox's own network has to say."""
    try:
        stream = await container.connect(_UNUSED_PORT)
    except ConnectionRefusedError:
        return
    await stream.aclose()
    raise OSError(errno.EISCONN, "something else than the sandbox's own network answered")


async def _terminal(container: OciContainer) -> None:
    said = await _output(container, "tty", pty=(80, 24))
    if not said.startswith("/dev/pts/"):
        raise _WrongError(f"the terminal is {said!r}")
