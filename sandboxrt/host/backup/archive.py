"""The file of a backup: a tar archive with a list of contents and a seal at its end.

Any tar shows and unpacks it. Its parts come from GNU tar, one after the other, each without the blocks that end an
archive; the last member is the seal, with the SHA-256 of every byte before it. What has no seal at its very end is not
a whole backup, and what was changed does not agree with it.

Source: POSIX.1-2001 pax archives; the rest is ours.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import attrs
import trio

from sandboxrt.errors import SandboxClientError
from sandboxrt.threads import run_blocking

__all__ = ["FORMAT", "Contents", "Draft", "Item", "Sealed", "TarError", "open_sealed", "tar_command", "unpack"]

FORMAT: Final = 1
_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)
_CONTENTS: Final = "contents.json"
_SEAL: Final = "seal.json"
_SEAL_BYTES: Final = 2 * _BLOCK + len(_END)
_CHUNK: Final = 1 << 20
_MAX_CONTENTS: Final = 256 * 1024**2
_KEEPING: Final = ("--sparse", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner")


class TarError(Exception):
    """What tar said when it failed."""


@attrs.frozen(kw_only=True)
class Item:
    """Something in a backup.

    Attributes:
        kind: ``sandbox`` or ``snapshot``.
        id: Its id.
        name: Its name.
        tenant: Whose it is.
        was: The status that it had: a sandbox that was ``ready`` is ``stopped`` in the backup.
        stood_still_s: For how long a running sandbox's disk stood still; ``None`` where nothing ran.
    """

    kind: str
    id: str
    name: str
    tenant: str = ""
    was: str = "ready"
    stood_still_s: float | None = None


@attrs.frozen(kw_only=True)
class Contents:
    """What a backup says of itself.

    Attributes:
        format: Of the file.
        schema: Of the database in it.
        version: The sandboxrt that made it.
        made_at: ISO-8601, UTC: what was changed later is not in it.
        unpacked_bytes: What it takes on disk, about.
        items: Sandboxes and snapshots.
        left_out: Names of what was there and is not in it, each with the reason.
        needs: Folders of the machine on which snapshots in it lie, and which are not in it.
    """

    format: int
    schema: int
    version: str
    made_at: str
    unpacked_bytes: int
    items: tuple[Item, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    needs: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: bytes) -> Contents:
        """The inverse of ``json.dumps(attrs.asdict(contents))``."""
        values: dict[str, Any] = json.loads(text)
        values["items"] = tuple(Item(**each) for each in values["items"])
        values["left_out"] = tuple((name, why) for name, why in values["left_out"])
        values["needs"] = tuple(values["needs"])
        return cls(**values)


def tar_command() -> tuple[str, ...]:
    """GNU tar; for an ordinary user where the ids of the user's sandboxes can be seen and given.

    Raises:
        SandboxClientError: There is none.
    """
    program = shutil.which("tar")
    if program is None or "GNU tar" not in _said(program, "--version"):
        raise SandboxClientError("Backups need GNU tar; install it with: apt-get install tar")
    if os.geteuid() == 0:
        return (program,)
    unshare = shutil.which("unshare")
    if unshare is None or "--map-auto" not in _said(unshare, "--help"):
        raise SandboxClientError("Backups of an ordinary user need unshare of util-linux 2.38 or newer")
    return unshare, "--user", "--map-root-user", "--map-auto", program


def _said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20).stdout


@attrs.define(eq=False)
class Draft:
    """A backup that is being written. Until it is sealed there is nothing under its name, whoever dies."""

    target: Path
    file: BinaryIO
    tar: tuple[str, ...]
    named: Path | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, target: Path) -> Iterator[Draft]:
        """A draft for the length of the block, which is gone afterwards unless it was sealed. Blocking.

        Raises:
            SandboxClientError: There is something under its name, or it cannot be written.
        """
        tar = tar_command()
        if os.path.lexists(target):
            raise SandboxClientError(f"{target} exists already; name a file that does not, or a folder")
        named = None
        with saying(target):
            try:
                fd = os.open(target.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                    raise
                named = target.with_name(f".{target.name}.partial-{os.getpid()}")
                fd = os.open(named, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "r+b", buffering=0) as file:
            try:
                yield cls(target, file, tar, named)
            finally:
                if named is not None:
                    named.unlink(missing_ok=True)

    def tell(self) -> int:
        """How long it is now."""
        return self.file.seek(0, os.SEEK_END)

    def forget_from(self, length: int) -> None:
        """Take back what was added since."""
        self.file.truncate(length)

    async def add(self, folder: Path, *names: str, prefix: str = "") -> None:
        """Add files and folders of ``folder`` with all that is in them.

        Raises:
            TarError: Something could not be read; nothing of it is in the draft.
            SandboxClientError: It could not be written.

        Cancellation: tar is ended; the draft is of no more use.
        """
        began = self.tell()
        options = ["--create", "--format=posix", "--blocking-factor=1", "--hole-detection=seek", *_KEEPING]
        options += ["--no-wildcards", f"--directory={folder}", "--file=-"]
        if prefix:
            options.append(f"--transform=s,^,{prefix}/,S")
        try:
            await _run((*self.tar, *options, "--", *names), stdout=self.file.fileno())
        except TarError as error:
            self.forget_from(began)
            if "No space left" in str(error) or "Disk quota" in str(error) or "File too large" in str(error):
                raise SandboxClientError(_full(self.target, str(error).rpartition(": ")[2])) from error
            raise
        end = self.tell()
        os.lseek(self.file.fileno(), end - len(_END), os.SEEK_SET)
        if self.file.read(len(_END)) != _END:
            raise TarError("tar did not end its archive as expected")
        self.forget_from(end - len(_END))

    async def seal(self, contents: Contents) -> None:
        """Add the list of contents and the seal, put all of it on the disk, and give it its name.

        Raises:
            SandboxClientError: It cannot be written, or its name was taken meanwhile.

        Cancellation: before the name is given only.
        """
        await run_blocking(None, lambda: self._seal(contents))

    def _seal(self, contents: Contents) -> None:
        with saying(self.target):
            text = json.dumps(attrs.asdict(contents)).encode()
            at = self.tell()
            self._append(_member(_CONTENTS, text))
            length = self.tell()
            seal: dict[str, Any] = {
                "format": FORMAT,
                "bytes": length,
                "contents_at": at + _BLOCK,
                "contents_bytes": len(text),
            }
            seal |= {"contents_bytes": len(text), "sha256": _digest(self.file, length)}
            self._append(_member(_SEAL, json.dumps(seal).encode().ljust(_BLOCK)) + _END)
            os.fsync(self.file.fileno())
            with _folder(self.target.parent) as folder, _folder(Path("/proc/self/fd")) as descriptors:
                if self.named is not None:
                    os.link(self.named, self.target)
                else:
                    # With a folder's descriptor, for Python follows links then alone.
                    os.link(str(self.file.fileno()), self.target, src_dir_fd=descriptors, follow_symlinks=True)
                os.fsync(folder)

    def _append(self, content: bytes) -> None:
        self.file.seek(0, os.SEEK_END)
        view = memoryview(content)
        while view:
            view = view[self.file.write(view) :]


@attrs.frozen
class Sealed:
    """A backup that is whole: every byte is as it was written."""

    path: Path
    contents: Contents


def open_sealed(path: Path) -> Sealed:
    """Check a backup from its first byte to its last. Blocking, for as long as it takes to read it.

    Raises:
        SandboxClientError: It cannot be read, is no backup, is only a part of one, was damaged, or was made by a newer
            sandboxrt in a format that this one does not know.
    """
    with saying(path), open(path, "rb", buffering=0) as file:
        length = file.seek(0, os.SEEK_END) - _SEAL_BYTES
        try:
            if length <= 0:
                raise ValueError
            file.seek(length)
            seal = _read_seal(file.read(_SEAL_BYTES))
        except (ValueError, KeyError, TypeError, tarfile.TarError):
            raise SandboxClientError(
                f"{path} is no whole backup: it has no seal at its end. It is something else, or was cut short"
            ) from None
        if seal["format"] > FORMAT:
            raise SandboxClientError(
                f"{path} has format {seal['format']}, made by a newer sandboxrt; this one knows up to {FORMAT}. "
                "Upgrade sandboxrt"
            )
        if seal["bytes"] != length or _digest(file, length) != seal["sha256"]:
            raise SandboxClientError(f"{path} is damaged: its contents are not what was written (SHA-256 differs)")
        file.seek(seal["contents_at"])
        return Sealed(path, Contents.from_json(file.read(min(seal["contents_bytes"], _MAX_CONTENTS))))


async def unpack(backup: Sealed, folder: Path) -> None:
    """Unpack everything but the list of contents and the seal into a folder.

    Raises:
        TarError: In tar's words.
        SandboxClientError: The file system is full.

    Cancellation: partial; what is there is the caller's to remove.
    """
    options = ["--extract", "--preserve-permissions", "--same-owner", *_KEEPING, f"--directory={folder}", "--file=-"]
    command = (*tar_command(), *options, f"--exclude={_CONTENTS}", f"--exclude={_SEAL}")
    with saying(backup.path):
        source = os.open(backup.path, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.closing(open(source, "rb")) as file:  # noqa: ASYNC230  it is open already
        try:
            await _run(command, stdin=file.fileno())
        except TarError as error:
            if "No space left" in str(error) or "Disk quota" in str(error):
                raise SandboxClientError(_full(folder, str(error).rpartition(": ")[2])) from error
            raise


async def _run(command: tuple[str, ...], *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL) -> None:
    environment = {**os.environ, "LC_ALL": "C", "TAR_OPTIONS": ""}
    done = await trio.run_process(
        command, stdin=stdin, stdout=stdout, capture_stderr=True, check=False, env=environment
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        told = [line for line in lines if "Exiting with failure" not in line] or lines
        raise TarError("; ".join(told[-3:]) or f"tar ended with {done.returncode}")


@contextlib.contextmanager
def saying(path: Path) -> Iterator[None]:
    """Turn the system's errors about a backup's file into words.

    Raises:
        SandboxClientError: With the file's name, and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise SandboxClientError(_full(path, os.strerror(error.errno))) from error
        raise SandboxClientError(f"Cannot use {path}: {error.strerror}") from error


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _full(path: Path, reason: str) -> str:
    return f"There is no room for {path}: {reason}. Free some space, or use another place; nothing was left there"


def _member(name: str, content: bytes) -> bytes:
    head = tarfile.TarInfo(name)
    head.size, head.mode = len(content), 0o600
    padding = bytes(-len(content) % _BLOCK)
    return head.tobuf(tarfile.USTAR_FORMAT) + content + padding


def _read_seal(block: bytes) -> dict[str, Any]:
    with tarfile.open(fileobj=io.BytesIO(block)) as archive:
        member = archive.next()
        file = None if member is None or member.name != _SEAL else archive.extractfile(member)
        if file is None or block[-len(_END) :] != _END:
            raise ValueError("no seal")
        seal = json.loads(file.read())
        return {key: seal[key] for key in ("format", "bytes", "contents_at", "contents_bytes", "sha256")}


def _digest(file: BinaryIO, length: int) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0:
        chunk = file.read(min(_CHUNK, length))
        if not chunk:
            break
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest()
