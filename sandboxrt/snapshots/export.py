"""Snapshots out: as an OCI image layout, a folder or a tar of it, that skopeo, umoci and podman take.

Every layer of a snapshot becomes one of the image. They are not compressed: tools do that when they push an image, and
unpacking is faster without. What the layout is to be called appears when it is complete.

Source: the OCI image specification, image layout and configuration.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from sandboxrt.engine.base import Layer
from sandboxrt.errors import ResourceCreationError, ValidationError
from sandboxrt.snapshots import pack
from sandboxrt.snapshots.content import ImageConfig, SnapshotContent
from sandboxrt.snapshots.disk import namespace_prefix, remove_tree
from sandboxrt.snapshots.oci_images import MACHINES
from sandboxrt.snapshots.tools import run_tool
from sandboxrt.store import run_blocking

__all__ = ["Exported", "export_image"]

_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_NAME: Final = "org.opencontainers.image.ref.name"
_USR: Final = Path("/usr")


@attrs.frozen
class Exported:
    """An image that was written.

    Attributes:
        path: The folder or file.
        reference: How image tools call it: ``oci:DIR:TAG`` or ``oci-archive:FILE:TAG``.
        digest: Of its manifest.
        size_bytes: Of all its blobs.
        layers: How many it has.
    """

    path: Path
    reference: str
    digest: str
    size_bytes: int
    layers: int


async def export_image(
    content: SnapshotContent, target: Path, *, tag: str, name: str, created_at: str, limiter: trio.CapacityLimiter
) -> Exported:
    """Write a snapshot as an image.

    Args:
        content: Its layers and configuration.
        target: What must not exist: a file where it ends in ``.tar``, else a folder.
        tag: The image's name in the layout.
        name: The snapshot's name, for the history.
        created_at: When it was made, ISO-8601.
        limiter: For blocking work.

    Raises:
        ValidationError: The target exists, or its folder does not.
        ResourceCreationError: ``DiskFull``, or ``Export`` with the reason.

    Cancellation: nothing is left.
    """
    target = await run_blocking(limiter, lambda: _checked(target))
    draft = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        return await _export(content, target, draft, tag, name, created_at, limiter)
    except OSError as error:
        raise _failed(str(error), error.errno) from error
    finally:
        with trio.CancelScope(shield=True):
            await remove_tree(draft, limiter)
            await run_blocking(limiter, lambda: _archive(draft).unlink(missing_ok=True))


async def _export(
    content: SnapshotContent,
    target: Path,
    draft: Path,
    tag: str,
    name: str,
    created_at: str,
    limiter: trio.CapacityLimiter,
) -> Exported:
    blobs = draft / "blobs/sha256"
    await run_blocking(limiter, lambda: blobs.mkdir(parents=True))
    packed = [await _pack(layer, blobs, _mask(layer, content.layers)) for layer in reversed(content.layers)]

    def finish() -> tuple[str, int]:
        manifest = _write_layout(draft, packed, content.config, tag, name, created_at)
        return manifest["digest"], sum(entry.stat().st_size for entry in blobs.iterdir())

    digest, size = await run_blocking(limiter, finish)
    if target.suffix != ".tar":
        await run_blocking(limiter, lambda: draft.rename(target))
        return Exported(target, f"oci:{target}:{tag}", digest, size, len(packed))
    archive = _archive(draft)
    names = ("oci-layout", "index.json", "blobs")
    done = await run_tool(["tar", "--create", "--file", str(archive), "--directory", str(draft), *names])
    if done.exit_code:
        raise _failed(done.stderr.decode(errors="replace").strip()[-400:])
    await run_blocking(limiter, lambda: archive.rename(target))
    return Exported(target, f"oci-archive:{target}:{tag}", digest, size, len(packed))


def _archive(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.tar")


def _checked(target: Path) -> Path:
    target = target.absolute()
    if not target.name:
        raise ValidationError("The export needs a name: a folder, or a file that ends in .tar", "target")
    if os.path.lexists(target):
        raise ValidationError(f"{target} exists; name something new", "target")
    if not target.parent.is_dir():
        raise ValidationError(f"There is no folder {target.parent}", "target")
    return target


def _mask(layer: Layer, layers: Sequence[Layer]) -> Path | None:
    """The mask over this machine's own ``/usr``, for that layer and for the mask itself."""
    if all(each.path != _USR for each in layers):
        return None
    place = next(number for number, each in enumerate(layers) if each.path == _USR)
    mask = next(each.path for each in reversed(layers[:place]) if each.at == layers[place].at)
    return mask if layer.path in (_USR, mask) else None


async def _pack(layer: Layer, blobs: Path, mask: Path | None) -> dict[str, Any]:
    prefix = namespace_prefix()
    shift = "1" if prefix and layer.path != _USR else "0"
    argv = [*prefix, sys.executable, "-I", "-S", pack.__file__, str(layer.path), layer.at, str(blobs), shift]
    done = await run_tool([*argv, *([] if mask is None else [str(mask)])])
    if done.exit_code:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise _failed(reason or f"exit code {done.exit_code}")
    found = json.loads(done.stdout)
    return {"mediaType": _LAYER, "digest": found["digest"], "size": found["size"]}


def _failed(reason: str, number: int | None = None) -> ResourceCreationError:
    is_full = number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in reason
    word = "DiskFull" if is_full else "Export"
    return ResourceCreationError(f"The snapshot could not be exported: {reason}", "snapshot", word)


def _write_layout(
    folder: Path, layers: list[dict[str, Any]], config: ImageConfig, tag: str, name: str, created_at: str
) -> dict[str, Any]:
    def put(value: object, media_type: str) -> dict[str, Any]:
        data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.sha256(data).hexdigest()
        (folder / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    created = _instant(created_at)
    image = {
        "created": created,
        "architecture": MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": _config(config),
        # Nothing is compressed, so what a layer is called by its blob is what it unpacks to.
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        "history": [{"created": created, "created_by": f"sandboxrt snapshot {name}"} for _ in layers],
    }
    manifest = put(
        {"schemaVersion": 2, "mediaType": _MANIFEST, "config": put(image, _CONFIG), "layers": layers}, _MANIFEST
    )
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [{**manifest, "annotations": {_NAME: tag}}]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return manifest


def _config(config: ImageConfig) -> dict[str, Any]:
    found = {
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "User": config.user,
        "WorkingDir": config.work_dir,
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
    }
    return {name: value for name, value in found.items() if value}


def _instant(text: str) -> str:
    return datetime.fromisoformat(text).astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
