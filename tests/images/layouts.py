"""Writes layers and OCI image layouts byte by byte, well-formed or hostile."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@attrs.frozen
class Blob:
    """A layer: its compressed bytes and the digest of what they unpack to."""

    data: bytes
    diff_id: str


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def entry(
    name: str,
    content: bytes | str | None = None,
    *,
    mode: int | None = None,
    uid: int = 0,
    gid: int = 0,
    link: str | None = None,
    hard_link: str | None = None,
    device: tuple[bytes, int, int] | None = None,
    xattrs: Mapping[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    """One member of a layer: a file with content, a link, a device, or else a folder. The name is taken as it is."""
    info = tarfile.TarInfo(name)
    info.uid, info.gid, info.mtime = uid, gid, 1_700_000_000
    data = content.encode() if isinstance(content, str) else content or b""
    if link is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, link, 0o777
    elif hard_link is not None:
        info.type, info.linkname = tarfile.LNKTYPE, hard_link
    elif device is not None:
        info.type, info.devmajor, info.devminor = device
    elif content is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.size, info.mode = len(data), 0o644
    if mode is not None:
        info.mode = mode
    info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
    return info, data


def layer(entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Blob:
    """A gzip-compressed layer of these members, in this order."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return compressed(raw.getvalue())


def compressed(raw: bytes) -> Blob:
    return Blob(gzip.compress(raw, 1, mtime=0), digest(raw))


def file_layer(files: Mapping[str, Path], extra: Iterable[tuple[tarfile.TarInfo, bytes]] = ()) -> Blob:
    """A layer of files of this machine, all owned by root, with what ``extra`` adds."""
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    folders: set[str] = set()
    for name, source in sorted(files.items()):
        for parent in reversed(Path(name).parents):
            if str(parent) != "/" and str(parent) not in folders:
                folders.add(str(parent))
                members.append(entry(str(parent).lstrip("/")))
        if source.is_symlink():
            members.append(entry(name.lstrip("/"), link=os.readlink(source)))
        elif source.is_dir():
            if name not in folders:
                folders.add(name)
                members.append(entry(name.lstrip("/")))
        else:
            members.append(entry(name.lstrip("/"), source.read_bytes(), mode=source.stat().st_mode & 0o777))
    return layer([*members, *extra])


def write_layout(
    folder: Path,
    layers: list[Blob],
    config: Mapping[str, Any] | None = None,
    *,
    tag: str = "latest",
    architecture: str = ARCHITECTURE,
    history: bool = True,
) -> Path:
    """Write an image with one manifest as an OCI layout."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    image: dict[str, Any] = {
        "created": "2023-11-14T22:13:20Z",
        "architecture": architecture,
        "os": "linux",
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [blob.diff_id for blob in layers]},
    }
    if history:
        image["history"] = [{"created_by": "test"} for _ in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(blob.data, "application/vnd.oci.image.layer.v1.tar+gzip") for blob in layers],
    }
    descriptor = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder
