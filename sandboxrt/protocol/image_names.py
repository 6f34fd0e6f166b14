"""Whose an image is: hosts in the names of images and in the addresses of registries.

Credentials go to the host that is found here and to no other, so names are read as image tools read them.

Source: the reference grammar of the OCI distribution tools; ours for what a registry's address may be.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

__all__ = ["DOCKER_HUB", "PLAIN_REFERENCE", "RegistryAddress", "image_host", "parse_registry_url"]

DOCKER_HUB: Final = "docker.io"
"""Whose names without a host are, and under which credentials for it are filed."""
PLAIN_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@\-\[\]]{0,1023}")
"""The characters of a reference that may reach a command line."""

_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io"})
_HUB_API: Final = frozenset({"v1", "v2"})
_HOST: Final = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?")
_PATH: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@attrs.frozen
class RegistryAddress:
    """Where a registry is.

    Attributes:
        host: Its name with its port, as names of images have it.
        path: What its images' names begin with, without slashes at the ends; may be empty.
        plain: Whether it is spoken to without TLS.
    """

    host: str
    path: str = ""
    plain: bool = False

    @property
    def prefix(self) -> str:
        """What a name without a host is put behind."""
        return f"{self.host}/{self.path}" if self.path else self.host

    @property
    def origin(self) -> str:
        """What two addresses of one registry have in common: the scheme, and the host with its port."""
        return f"{'http' if self.plain else 'https'}://{_with_port(self.host, self.plain)}"

    def has(self, host: str) -> bool:
        """Whether an image's host is this registry's."""
        return _with_port(host, self.plain) == _with_port(self.host, self.plain)


def parse_registry_url(url: str) -> RegistryAddress:
    """An address as people write it: ``HOST[:PORT][/PATH]``, with ``https://`` or ``http://`` if they like.

    Docker Hub has several names, and a path that is no part of any image's name; all mean the one that images have.

    Raises:
        ValueError: It is none; the message says what it should be.
    """
    scheme, separator, rest = url.rpartition("://")
    host, _, path = rest.rstrip("/").partition("/")
    found = _HOST.fullmatch(host)
    if (
        (separator and scheme.lower() not in ("http", "https"))
        or found is None
        or ".." in host
        or not 0 < int(found[1] or 443) < 65536
        or (path and not _PATH.fullmatch(path))
        or len(url) > 512
    ):
        raise ValueError("must be HOST[:PORT][/PATH] of at most 512 characters, with https:// or http:// if you like")
    plain = scheme.lower() == "http"
    if host.lower() in _HUB_NAMES:
        return RegistryAddress(DOCKER_HUB, "" if path in _HUB_API else path, plain)
    return RegistryAddress(host, path, plain)


def image_host(reference: str) -> str | None:
    """The host in an image's name, ``None`` for a name without one; the name itself is not checked."""
    host, slash, _ = reference.removeprefix("docker://").partition("/")
    # Upper case cannot be in a repository's name, so image tools take it for a host.
    if not slash or not (host == "localhost" or "." in host or ":" in host or host != host.lower()):
        return None
    return DOCKER_HUB if host == "index.docker.io" else host


def _with_port(host: str, plain: bool) -> str:
    host = host.lower()
    return host if re.search(r":[0-9]+$", host) and not host.endswith("]") else f"{host}:{80 if plain else 443}"
