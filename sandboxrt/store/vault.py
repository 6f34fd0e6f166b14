"""What must be kept but not be readable in the database: sealed with a key that is a file beside it.

A copy of the database alone, as backups and bug reports have it, gives nothing away. Who can read the state folder can
read both; that is its owner's user alone.

Source: Fernet (AES-128-CBC and HMAC-SHA256) of the ``cryptography`` package.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Final

import attrs
from cryptography.fernet import Fernet, InvalidToken

__all__ = ["KEY_FILE", "SealError", "Vault"]

KEY_FILE: Final = "secrets.key"
_MAX_KEY_BYTES: Final = 1024


class SealError(Exception):
    """Something cannot be read that was sealed; the message says why, as the end of a sentence."""


@attrs.frozen
class Vault:
    """Seals and opens with the key file of a state folder. Blocking; the key is in memory for the length of a call."""

    state_dir: Path

    def seal(self, content: bytes) -> bytes:
        """Encrypt; the key is made where there is none.

        Raises:
            SealError: The key file holds no key.
            OSError: It cannot be read or written.
        """
        return self._key(self._read() or self._make()).encrypt(content)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt.

        Raises:
            SealError: The key file is missing, holds no key, or another one than this was sealed with.
            OSError: It cannot be read.
        """
        text = self._read()
        if text is None:
            raise SealError(f"the key file {KEY_FILE} is missing from the state folder")
        try:
            return self._key(text).decrypt(sealed)
        except InvalidToken:
            raise SealError(
                f"the key file {KEY_FILE} of the state folder is not the one that it was stored with"
            ) from None

    @property
    def _path(self) -> Path:
        return self.state_dir / KEY_FILE

    def _key(self, text: bytes) -> Fernet:
        try:
            return Fernet(text.strip())
        except ValueError:
            raise SealError(f"the key file {KEY_FILE} of the state folder holds no key") from None

    def _read(self) -> bytes | None:
        try:
            with open(self._path, "rb") as file:
                return file.read(_MAX_KEY_BYTES)
        except FileNotFoundError:
            return None

    def _make(self) -> bytes:
        """A new key, on disk before anything is sealed with it; of two that make one, both use the first."""
        draft = self._path.with_name(f".{KEY_FILE}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(Fernet.generate_key() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, self._path)
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(self.state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return self._path.read_bytes()
