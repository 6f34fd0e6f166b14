"""Links to services and files as JSON: what is asked for and what is answered.

Source: protocol.md §2.6, §2.7.
"""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

from sandboxrt.errors import SandboxAPIError
from sandboxrt.models import DownloadURL
from sandboxrt.protocol.rest import CreateDownloadLink, ServiceGrant
from sandboxrt.protocol.rest_fields import FilePath, LinkSeconds, Name, Port, fault, structure

__all__ = [
    "DEFAULT_SERVICE_S",
    "MAX_SERVICE_S",
    "MEDIA_TYPE",
    "download_link_from_json",
    "download_link_to_json",
    "download_request_to_json",
    "download_url_from_json",
    "service_from_json",
    "service_grant_from_json",
    "service_to_json",
]

DEFAULT_SERVICE_S: Final = 600
MAX_SERVICE_S: Final = 86400
MEDIA_TYPE: Final = r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(?:; ?[ -~]{1,200})?"
"""What a media type looks like, as a regular expression."""
_DISPOSITIONS: Final = ("attachment", "inline")


@attrs.frozen(kw_only=True)
class _ServiceBody:
    port: Port
    expires_in_seconds: LinkSeconds | None = None


@attrs.frozen(kw_only=True)
class _DownloadBody:
    path: FilePath
    expires_in_seconds: Any = None
    content_type: Name | None = None
    content_disposition: Name | None = None
    csp_sandbox: Any = None


def service_from_json(body: object) -> tuple[int, int]:
    """Port and seconds of a request for a service. Raises ``ValidationError``."""
    found = structure(_ServiceBody, body, ("access", "embed_origins"))
    return found.port, DEFAULT_SERVICE_S if found.expires_in_seconds is None else found.expires_in_seconds


def service_to_json(grant: ServiceGrant) -> dict[str, Any]:
    """The answer."""
    return attrs.asdict(grant)


def service_grant_from_json(body: object) -> ServiceGrant:
    """The same at the client. Raises ``SandboxAPIError`` where a field is missing."""
    return ServiceGrant(**_texts(body, "browser_url", "service_url", "token", "expires_at"))


def download_link_from_json(body: object) -> CreateDownloadLink:
    """A request for a link to a file. Raises ``ValidationError``."""
    found = structure(_DownloadBody, body, ("csp_sandbox_flags", "csp_source_bundles"))
    seconds, kind, shown = found.expires_in_seconds, found.content_type, found.content_disposition
    faults: list[tuple[tuple[str | int, ...], str]] = []
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds < 2**31):
        faults.append((("expires_in_seconds",), "must be an integer between 1 and 2147483647"))
    if kind is not None and not re.fullmatch(MEDIA_TYPE, kind):
        faults.append((("content_type",), "must be a media type such as text/plain"))
    if shown not in (None, *_DISPOSITIONS):
        faults.append((("content_disposition",), "must be attachment or inline"))
    if found.csp_sandbox not in (None, True):
        faults.append((("csp_sandbox",), "is not supported by this server but as true; leave it out"))
    if faults:
        raise fault(faults)
    return CreateDownloadLink(
        path=found.path,
        expires_in_seconds=seconds,
        content_type=kind,
        content_disposition=shown,  # type: ignore[arg-type]
    )


def download_request_to_json(request: CreateDownloadLink) -> dict[str, Any]:
    """The request as a client sends it: only what was given."""
    return {name: value for name, value in attrs.asdict(request).items() if value is not None}


def download_link_to_json(link: DownloadURL) -> dict[str, Any]:
    """The answer."""
    return attrs.asdict(link)


def download_url_from_json(body: object) -> DownloadURL:
    """The same at the client. Raises ``SandboxAPIError`` where a field is missing."""
    found = _texts(body, "download_url", "token")
    expires_at = body.get("expires_at") if isinstance(body, dict) else None
    return DownloadURL(**found, expires_at=expires_at if isinstance(expires_at, str) else None)


def _texts(body: object, *names: str) -> dict[str, str]:
    found = {name: body.get(name) for name in names} if isinstance(body, dict) else {}
    missing = [name for name in names if not isinstance(found.get(name), str)]
    if missing:
        raise SandboxAPIError(f"The server's answer has no {', '.join(missing)}")
    return {name: str(text) for name, text in found.items()}
