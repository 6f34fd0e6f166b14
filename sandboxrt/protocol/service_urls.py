"""Where services and downloads are found: names of hosts and paths, written and read.

A program gets a path on the server's own address. A browser gets an origin of its own for each port of each sandbox,
``<port>--<sandbox id>.<domain>``, because pages that share an origin can read one another. Files have both: a path, and
``dl--<sandbox id>.<domain>``, which is what links name where the domain is one that programs can resolve.

Source: protocol.md §6 (official shapes); these shapes are ours.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

import attrs

__all__ = [
    "AUTH_PATH",
    "FILE_PATH",
    "SERVICE_PATH",
    "TOKEN_HEADER",
    "FileHost",
    "FilePath",
    "ServiceHost",
    "ServicePath",
    "ServiceSite",
    "Target",
    "Unknown",
    "default_site",
    "file_target",
]

TOKEN_HEADER: Final = "x-langsmith-sandbox-service-token"  # noqa: S105  a name
"""Carries a service's token; it never reaches the service."""
SERVICE_PATH: Final = "/api/v2/sandboxes/svc"
"""Services for programs are below it: ``/<sandbox id>/<port>/``."""
FILE_PATH: Final = "/api/v2/sandboxes/dl"
"""Files for programs are below it: ``/<sandbox id>/<the file's path>``."""
AUTH_PATH: Final = "/_svc/auth"
"""On a service's own origin, exchanges a token for a cookie."""

_ID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SERVICE_LABEL: Final = re.compile(rf"([1-9][0-9]{{0,4}})--({_ID})")
_FILE_LABEL: Final = re.compile(rf"dl--({_ID})")
_PATH: Final = re.compile(rf"{SERVICE_PATH}/({_ID})/([1-9][0-9]{{0,4}})(?=[/?]|$)")
_FILE: Final = re.compile(rf"{FILE_PATH}/({_ID})(?=[/?]|$)")
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:]*)(?::[0-9]{1,5})?")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@attrs.frozen
class ServiceHost:
    """A request to a service's own origin."""

    sandbox_id: str
    port: int


@attrs.frozen
class FileHost:
    """A request to the origin of a sandbox's files."""

    sandbox_id: str


@attrs.frozen
class Unknown:
    """A request to a name of the service domain that means nothing; it must not reach anything else."""


@attrs.frozen
class ServicePath:
    """A request to a service by path.

    Attributes:
        sandbox_id: Which sandbox.
        port: Which port.
        prefix: The path that stands before the service's own, as clients see it; no slash at its end.
        target: What the service is asked for: path and query.
    """

    sandbox_id: str
    port: int
    prefix: str
    target: str


@attrs.frozen
class FilePath:
    """A request for a file by path.

    Attributes:
        sandbox_id: Which sandbox.
        target: What is asked for there: the file's path and the query.
    """

    sandbox_id: str
    target: str


Target: TypeAlias = ServiceHost | FileHost | ServicePath | FilePath | Unknown


@attrs.frozen(kw_only=True)
class ServiceSite:
    """The addresses of one server's services.

    Attributes:
        base_url: How clients reach the server, without a slash at its end.
        domain: Each service's origin is a name below it.
        port: The port of those origins.
    """

    base_url: str
    domain: str
    port: int

    @property
    def scheme(self) -> str:
        """``http`` or ``https``, for every origin."""
        return urlsplit(self.base_url).scheme

    def service_url(self, sandbox_id: str, port: int) -> str:
        """A service's address for programs."""
        return f"{self.base_url}{SERVICE_PATH}/{sandbox_id}/{port}/"

    def origin(self, label: str) -> str:
        """The origin of a name below the domain."""
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{label}.{self.domain}{port}"

    def browser_url(self, sandbox_id: str, port: int, token: str) -> str:
        """What a browser opens to get a cookie and then the service."""
        return f"{self.origin(f'{port}--{sandbox_id}')}{AUTH_PATH}?{urlencode({'token': token})}"

    def download_url(self, sandbox_id: str, path: str, token: str) -> str:
        """A file's address, which programs can resolve: on an origin of its own only where that has a real name."""
        # Names below localhost are known to browsers alone: to most systems' resolvers they mean nothing.
        is_local = f".{self.domain}".endswith(".localhost")
        files = f"{self.base_url}{FILE_PATH}/{sandbox_id}" if is_local else self.origin(f"dl--{sandbox_id}")
        return f"{files}{file_target(path)}?{urlencode({'token': token})}"

    def of_host(self, host: str) -> ServiceHost | FileHost | Unknown | None:
        """What a ``Host`` header means here; ``None`` = it is none of these origins."""
        found = _HOST.fullmatch(host.strip().lower().rstrip("."))
        name = found[1].rstrip(".") if found else ""
        label, dot, domain = name.partition(".")
        if not name.endswith("." + self.domain) or name == (urlsplit(self.base_url).hostname or ""):
            return None
        if dot and domain == self.domain:
            if (service := _SERVICE_LABEL.fullmatch(label)) and int(service[1]) < 65536:
                return ServiceHost(service[2], int(service[1]))
            if file := _FILE_LABEL.fullmatch(label):
                return FileHost(file[1])
        return Unknown()

    def of_target(self, target: str) -> ServicePath | FilePath | None:
        """What a request's target means, when its host says nothing; ``None`` = it is no service's and no file's."""
        if file := _FILE.match(target):
            return FilePath(file[1], _rest(target, file))
        found = _PATH.match(target)
        if found is None or int(found[2]) > 65535:
            return None
        prefix = urlsplit(self.base_url).path.rstrip("/") + found[0]
        return ServicePath(found[1], int(found[2]), prefix, _rest(target, found))


def default_site(base_url: str) -> ServiceSite:
    """The addresses where nobody has named a domain: to browsers every name below ``localhost`` is their machine."""
    parts = urlsplit(base_url)
    return ServiceSite(
        base_url=base_url.rstrip("/"), domain="localhost", port=parts.port or _DEFAULT_PORTS[parts.scheme]
    )


def file_target(path: str) -> str:
    """The path of a file's address: the file's own, so that what is saved has its name; without ``.`` and ``..``.

    Clients resolve those before they ask (RFC 3986 §5.2.4). Which file is meant, the token says.
    """
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    return quote("/" + "/".join(kept).lstrip("/"))


def _rest(target: str, found: re.Match[str]) -> str:
    rest = target[found.end() :]
    return rest if rest.startswith("/") else "/" + rest
