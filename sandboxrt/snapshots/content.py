"""What a snapshot consists of, and how its library is set up."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import attrs

from sandboxrt.engine.base import Captured, Layer

__all__ = ["DEFAULT_PATH", "CaptureSource", "ImageConfig", "Phase", "Progress", "SnapshotConfig", "SnapshotContent"]

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@attrs.frozen(kw_only=True)
class ImageConfig:
    """How an image wants its programs to run.

    Attributes:
        env: Environment variables.
        user: ``USER[:GROUP]``, names or numbers; ``None`` means root.
        work_dir: Working directory; ``None`` means ``/``.
        entrypoint: Recorded; commands of a sandbox do not go through it.
        cmd: Recorded likewise.

    Source: the OCI image specification's ``config`` object.
    """

    env: Mapping[str, str] = attrs.field(factory=dict)
    user: str | None = None
    work_dir: str | None = None
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()


@attrs.frozen
class SnapshotContent:
    """What a sandbox is started from: read-only layers, topmost first, and the image's configuration."""

    layers: tuple[Layer, ...]
    config: ImageConfig

    def to_json(self, folder: Path) -> str:
        """For the store; layers within ``folder`` are noted relative to it, so that a state folder can be moved."""
        layers = [{"path": _relative(layer.path, folder), "at": layer.at} for layer in self.layers]
        return json.dumps({"layers": layers, "config": attrs.asdict(self.config)})

    @classmethod
    def from_json(cls, text: str, folder: Path) -> SnapshotContent:
        """The inverse of :meth:`to_json`."""
        values = json.loads(text)
        config = values["config"]
        return cls(
            layers=tuple(Layer(folder / layer["path"], layer["at"]) for layer in values["layers"]),
            config=ImageConfig(
                env=config["env"],
                user=config["user"],
                work_dir=config["work_dir"],
                entrypoint=tuple(config["entrypoint"]),
                cmd=tuple(config["cmd"]),
            ),
        )


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


class Phase:
    """What a build is doing: the values of :attr:`Progress.phase`."""

    WAIT: Final = "wait"
    PULL: Final = "pull"
    COPY: Final = "copy"
    UNPACK: Final = "unpack"
    CHECK: Final = "check"
    DONE: Final = "done"
    FAILED: Final = "failed"


@attrs.frozen
class Progress:
    """How far a build is.

    Attributes:
        phase: ``wait`` (for its turn), ``pull``, ``unpack``, ``copy`` (of a sandbox's files), ``check``, ``done`` or
            ``failed``.
        done_bytes: What the phase has written so far.
        total_bytes: What it will have written at the end, where that is known.
        paused_s: For how long a captured sandbox stood still, once that is known.
    """

    phase: str
    done_bytes: int = 0
    total_bytes: int | None = None
    paused_s: float | None = None


@attrs.frozen(kw_only=True)
class CaptureSource:
    """A sandbox whose files are to become a snapshot.

    Attributes:
        sandbox_id: Which.
        snapshot_id: What it was made from.
        fs_capacity_bytes: The size of its disk; ``None`` where it has none of its own.
        copy: Copies what it wrote into an empty private folder, where ``reserve_bytes`` must stay free; see
            :meth:`sandboxrt.engine.base.Engine.capture`.
    """

    sandbox_id: str
    snapshot_id: str
    fs_capacity_bytes: int | None
    copy: Callable[[Path, int], Awaitable[Captured]]


def _path_from_environment() -> Path | None:
    for name in ("SANDBOXRT_REGISTRIES_CONF", "CONTAINERS_REGISTRIES_CONF"):
        told = os.environ.get(name, "").strip()
        if told:
            return Path(told)
    return None


@attrs.frozen(kw_only=True)
class SnapshotConfig:
    """The settings of a snapshot library.

    Attributes:
        registries_conf: A containers-registries.conf to use instead of the machine's own; it says where short names
            go, which mirrors to try and which registries have no TLS. If unset, from the environment:
            ``SANDBOXRT_REGISTRIES_CONF``, else ``CONTAINERS_REGISTRIES_CONF``.
        registry_mirrors: ``HOST[:PORT][/PREFIX]`` of mirrors of docker.io, tried in order before docker.io itself.
            Not together with ``registries_conf``.
        insecure_registries: ``HOST[:PORT]`` of registries, or mirrors, without TLS or with an unknown certificate.
            Not together with ``registries_conf``.
        certs_dir: A folder with further CA certificates (``*.crt``) for registries.
        max_builds: Builds at once; more wait their turn.
        max_pull_bytes: Largest image as it comes over the network.
        max_unpacked_bytes: Largest image unpacked: the defence against decompression bombs.
        min_free_bytes: What every build leaves free on the file system; the host's low-water mark where left out.
        build_timeout_s: When a build is given up.
        capture_timeout_s: When a capture is given up. A running sandbox stands still for a part of that.
        max_layers: A capture with more layers is made into one that stands alone, with one layer in each place.
    """

    registries_conf: Path | None = attrs.field(factory=_path_from_environment)
    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    certs_dir: Path | None = None
    max_builds: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    max_pull_bytes: int = 32 * 1024**3
    max_unpacked_bytes: int = 64 * 1024**3
    min_free_bytes: int | None = None
    build_timeout_s: float = 3600.0
    capture_timeout_s: float = 600.0
    max_layers: int = attrs.field(default=100, validator=attrs.validators.in_(range(2, 181)))

    @property
    def reserve_bytes(self) -> int:
        """What every build leaves free, where that was said."""
        return self.min_free_bytes or 0
