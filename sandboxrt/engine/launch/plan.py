"""From a container's spec to the launcher's instructions: a pure function, but for looking which folder to cover.

What a container has on its disk (``data`` below): ``upper/@`` for the root, ``upper/@usr`` for layers at ``/usr`` and
so on, with overlayfs's own ``work`` folders beside them, and ``tmp``. What the runtime needs for the moment of the
start (mount points, configuration, the init's program) lies in a tmpfs that covers a folder of the host, in the
launcher's mount namespace alone, so that neither the owner's folders need to be passable for the container's root nor
their names show inside.
"""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import attrs

from sandboxrt.engine.base import ContainerSpec, Layer, upper_name
from sandboxrt.engine.bundle import BLOCK_SIZE, INIT_PATH, BundlePlan, bundle_config
from sandboxrt.engine.cgroups import SandboxCgroups
from sandboxrt.engine.findings import HostFacts
from sandboxrt.engine.runtime_exec.strategy import ExecStrategy
from sandboxrt.errors import EngineUnavailableError, ResourceCreationError
from sandboxrt.models import Limits

__all__ = ["CONTROL_FD", "DATA_FOLDER", "DISK_FD", "INIT_FD", "LOOP_NOTE", "MAPS_FD", "LaunchPlan", "covered_folder"]

CONTROL_FD, INIT_FD, DISK_FD, MAPS_FD = 3, 4, 5, 6
"""Numbers of the descriptors that the launcher is given: the init's socket, its program, the disk image, and, where the
host writes the launcher's own id maps, the socket for that."""
DATA_FOLDER = "data"
"""Where a container without a disk of its own has its files, in its state folder."""
LOOP_NOTE = "loop"
"""In the runtime's record of a container: the number of the loop device that holds, or was about to hold, its disk."""

_BLOCK_SLOT, _DATA_SLOT, _FIRST_LAYER_SLOT, _MAX_LAYERS = 20, 21, 30, 400
_COVERS = ("/mnt", "/media", "/srv", "/opt")
_MAX_OPTIONS = 4000  # mount(2) takes one page
# What the control group counts are the host's tasks, and gVisor's own threads and the stubs in which it runs the
# sandbox's threads are such. Its Go runtime ends, and the sandbox with it, when it gets no thread; so the bound leaves
# room for what the processes that were asked for need, and still bounds what a fork bomb takes from the host.
_GVISOR_TASKS, _GVISOR_TASKS_PER_PROCESS = 256, 4
_MAX_OPEN_FILES = 20_000
_MOUNT_POINTS = ("/dev", "/etc", "/proc", "/sys")
_LAYER_PLACE = re.compile(r"/|(/(?!\.{1,2}(/|$))[A-Za-z0-9._+-]+)+")
_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"
_RESOLV_CONF = "# This sandbox has no network but its own loopback.\n"


def covered_folder(needed: list[Path]) -> str:
    """A folder of the host that can be covered, because nothing that is ``needed`` afterwards lies below it.

    Raises:
        EngineUnavailableError: There is none.
    """
    resolved = [path.resolve() for path in needed]
    for cover in _COVERS:
        if Path(cover).is_dir() and not any(path.is_relative_to(cover) for path in resolved):
            return cover
    raise EngineUnavailableError(f"one of the folders {', '.join(_COVERS)} must exist and not hold the state folder")


@attrs.frozen(kw_only=True)
class LaunchPlan:
    """Everything that decides how one container is started.

    Attributes:
        spec: What is wanted.
        facts: What this host can.
        cgroups: The container's control groups, or ``None`` where there are none.
        cover: See :func:`covered_folder`.
        record: The folder that the runtime keeps its record of this container in.
        pid_file: Where the runtime writes the first process's id.
        strategy: How commands get in; without the init, the first process just waits for the end of its input.
        disk_options: How the disk is mounted. With ``discard`` the host has back at once what is removed inside.
    """

    spec: ContainerSpec
    facts: HostFacts
    cgroups: SandboxCgroups | None
    cover: str
    record: Path
    pid_file: Path
    strategy: ExecStrategy = ExecStrategy.INIT
    disk_options: str = "discard"

    @property
    def owner(self) -> int:
        """The container's root, in the ids of the launcher's user namespace."""
        return self.spec.uid_base if self.facts.is_root else 1

    @property
    def has_disk(self) -> bool:
        """Whether the container has a file system of its own size."""
        return self.spec.limits.disk_bytes is not None and self.facts.loop.ok

    def words(self) -> list[str]:
        """The launcher's instructions.

        Raises:
            ResourceCreationError: There are too many layers, or one is in an impossible place.
        """
        stacks = self._stacks()
        return [
            *self._begin(),
            *self._open_layers(stacks),
            *self._stage(stacks),
            *self._mount(stacks),
            *self._execute(),
        ]

    def _stacks(self) -> dict[str, list[tuple[int, Layer]]]:
        """Layers and their slots by place, outer places first."""
        if len(self.spec.layers) > _MAX_LAYERS:
            raise ResourceCreationError(f"a snapshot can have at most {_MAX_LAYERS} layers", "sandbox", "SandboxConfig")
        stacks: dict[str, list[tuple[int, Layer]]] = {"/": []}
        for slot, layer in enumerate(self.spec.layers, _FIRST_LAYER_SLOT):
            if not _LAYER_PLACE.fullmatch(layer.at):
                raise ResourceCreationError(f"layers cannot appear at {layer.at!r}", "sandbox", "SandboxConfig")
            stacks.setdefault(layer.at, []).append((slot, layer))
        return dict(sorted(stacks.items(), key=lambda item: item[0].count("/") if item[0] != "/" else 0))

    def _begin(self) -> Iterator[str]:
        yield from ("ns",) if self.facts.is_root else ("userns", str(MAPS_FD))
        yield from self._limits()
        instances = self.spec.limits.inotify_instances
        inotify = str(instances) if instances is not None and self.facts.inotify.ok else ""
        yield from ("block", str(_BLOCK_SLOT), str(self.owner), str(BLOCK_SIZE), inotify)

    def _limits(self) -> Iterator[str]:
        """Here and not by the runtime, which needs rights for it that even root does not have everywhere."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = _MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(_MAX_OPEN_FILES, hard)
        yield from ("limit", str(resource.RLIMIT_NOFILE), str(files), "limit", str(resource.RLIMIT_CORE), "0")

    def _open_layers(self, stacks: dict[str, list[tuple[int, Layer]]]) -> Iterator[str]:
        for slot, layer in (each for stack in stacks.values() for each in stack):
            yield from ("clone", str(slot), str(layer.path))
            if self.facts.is_root:
                yield from ("idmap", str(slot), str(_BLOCK_SLOT))
        if not self.has_disk:
            yield from ("open", str(_DATA_SLOT), str(self.spec.state_dir / DATA_FOLDER))

    def _stage(self, stacks: dict[str, list[tuple[int, Layer]]]) -> Iterator[str]:
        """The tmpfs: mount points and files that lie on top of the layers, so that none has to be made on the disk."""
        owner = str(self.owner)
        yield from ("cover", self.cover, "copy", "init", "755", str(INIT_FD), "pin", "userns", str(_BLOCK_SLOT))
        for slot, _ in (each for stack in stacks.values() for each in stack):
            yield from ("attach", str(slot))
        for folder in ("root", "data", "tmp", "empty"):
            yield from ("dir", folder, "755", "0")
        yield from ("dir", "bundle", "700", "0")
        yield from ("file", "bundle/config.json", "600", "0", json.dumps(self._bundle(), separators=(",", ":")))
        yield from ("dir", "top", "755", owner, "dir", "top/tmp", "1777", owner)
        for place in dict.fromkeys((*_MOUNT_POINTS, *(each for at in stacks for each in _with_parents(at)))):
            yield from ("dir", f"top{place}", "755", owner)
        hostname = self.spec.hostname
        texts = {"hostname": f"{hostname}\n", "hosts": _HOSTS.format(hostname=hostname), "resolv.conf": _RESOLV_CONF}
        for name, text in texts.items():
            yield from ("file", f"top/etc/{name}", "644", owner, text)

    def _mount(self, stacks: dict[str, list[tuple[int, Layer]]]) -> Iterator[str]:
        owner = str(self.owner)
        if self.has_disk:
            yield from ("disk", "data", str(DISK_FD), self.disk_options, str(self.record / LOOP_NOTE))
        else:
            yield from ("bind", "data", str(_DATA_SLOT))
        yield from ("dir", "data/upper", "755", "0", "dir", "data/work", "755", "0", "dir", "data/tmp", "1777", owner)
        for at, stack in stacks.items():
            lower = [f"layers/{slot}" for slot, _ in stack]
            yield from self._overlay("root" if at == "/" else f"root{at}", at, ["top", *lower] if at == "/" else lower)
        if not self.has_disk:
            # Not a bind mount of the folder itself: that would show its name on the host.
            options = self._options(["empty"], "data/tmp", "data/work/tmp")
            yield from ("dir", "data/work/tmp", "700", owner, "overlay", "tmp", options)

    def _overlay(self, target: str, at: str, lower: list[str]) -> Iterator[str]:
        upper, work = f"data/upper/{upper_name(at)}", f"data/work/{upper_name(at)}"
        yield from ("dir", upper, "755", str(self.owner), "dir", work, "755", str(self.owner))
        yield from ("overlay", target, self._options(lower, upper, work))

    def _options(self, lower: list[str], upper: str, work: str) -> str:
        """Relative names: nothing here is a path of the host, for the container can read it.

        An upper folder must be complete in itself to be captured, so no redirects and no metadata-only copies.
        """
        features = "redirect_dir=off,metacopy=off,index=off" if self.facts.is_root else "userxattr"
        options = f"lowerdir={':'.join(lower)},upperdir={upper},workdir={work},{features}"
        if len(options) > _MAX_OPTIONS:
            raise ResourceCreationError("this snapshot has more layers than can be mounted", "sandbox", "SandboxConfig")
        return options

    def _bundle(self) -> dict[str, object]:
        path = self._runtime_path
        controllers = self.facts.hierarchy.controllers if path is not None else frozenset()
        limits = self.spec.limits
        return bundle_config(
            BundlePlan(
                hostname=self.spec.hostname,
                rootfs=f"{self.cover}/root",
                tmp_source=f"{self.cover}/{'data/tmp' if self.has_disk else 'tmp'}",
                init_source=f"{self.cover}/init",
                init_argv=(INIT_PATH,) if self.is_init_served else (INIT_PATH, "hold"),
                id_map=(self.owner, BLOCK_SIZE),
                # runsc is a Go program through and through, and a process with threads cannot enter one.
                user_namespace=None if self.facts.runtime.kind == "runsc" else f"{self.cover}/userns",
                cgroup_path=path,
                limits=Limits(
                    mem_bytes=limits.mem_bytes if "memory" in controllers else None,
                    pids=limits.pids if "pids" in controllers else None,
                    vcpus=limits.vcpus if "cpu" in controllers else None,
                ),
                swap_limit=self.facts.swap_limit,
            )
        )

    @property
    def _runtime_path(self) -> str | None:
        """The group that the runtime is told of, for the limits and the first process; there may be none."""
        return None if self.cgroups is None else self.cgroups.runtime_path

    def _execute(self) -> Iterator[str]:
        if self.cgroups is not None:
            if self.facts.runtime.kind == "runsc":
                yield from self._limit_words(self.cgroups)
            for path in self.cgroups.join_paths:
                yield from ("put", str(path), "0")
        if self.facts.hide_unified:
            yield from ("hide" if self.facts.is_root else "veil", self.facts.unified_mount)
        yield from ("devices", str(self.owner))
        if not self.is_init_served:
            yield from ("stdio", str(CONTROL_FD), "1")
        yield from self._runtime("run", "--detach", *(("--preserve-fds", "1") if self.is_init_served else ()))
        yield from ("--pid-file", str(self.pid_file), "--bundle", f"{self.cover}/bundle", self.spec.id)

    def _limit_words(self, cgroups: SandboxCgroups) -> Iterator[str]:
        """The limits, for runsc, which takes a group that is there already for one that has them."""
        limits = self.spec.limits
        if limits.pids is not None:
            limits = attrs.evolve(limits, pids=_GVISOR_TASKS + _GVISOR_TASKS_PER_PROCESS * limits.pids)
        for path, text in cgroups.limit_files(limits, swap=self.facts.swap_limit):
            yield from ("put", str(path), text)

    def _runtime(self, *words: str) -> Iterator[str]:
        runtime = self.facts.runtime
        assert runtime.path is not None
        yield from ("exec", runtime.path, *runtime.flags(with_cgroups=self._runtime_path is not None))
        yield from ("--root", str(self.record), *words)

    @property
    def is_init_served(self) -> bool:
        """Whether the first process takes orders through a socket."""
        return self.strategy is ExecStrategy.INIT

    @property
    def detaches_exec(self) -> bool:
        """Whether the runtime's own exec gives its standard streams away only when it does not wait."""
        return self.facts.runtime.kind == "runc"

    def exec_words(self, stdio: int, process_file: Path) -> list[str]:
        """The launcher's instructions for the runtime's own exec in the running container.

        Args:
            stdio: Numbers of the descriptors for standard input and, one higher, output.
            process_file: What to execute, as the runtime wants it described.
        """
        assert self.facts.is_root
        hide = ("hide", self.facts.unified_mount) if self.facts.hide_unified else ()
        # runc enters the root folder by its name before it enters the container: a folder of that name must be there.
        stand_in = ("cover", self.cover, "dir", "root", "700", "0")
        stdio_words = ("stdio", str(stdio), str(stdio + 1))
        detach = ("--detach",) if self.detaches_exec else ()
        run = self._runtime("exec", *detach, "--process", str(process_file), self.spec.id)
        return ["ns", *hide, *stand_in, *self._limits(), *stdio_words, *run]


def _with_parents(at: str) -> list[str]:
    """``/a/b`` and what is above it, from the top; nothing for ``/``."""
    parts = [part for part in at.split("/") if part]
    return ["/" + "/".join(parts[: number + 1]) for number in range(len(parts))]
