"""What ``client.service`` and ``sandbox.service`` do, and their likes for download links.

Source: protocol.md §2.6, §2.7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from sandboxrt.client.grants import GrantKeeper, check_lifetime, check_port
from sandboxrt.client.owner import Owner
from sandboxrt.client.service import AsyncServiceURL
from sandboxrt.protocol.links_wire import MEDIA_TYPE
from sandboxrt.protocol.rest import CreateDownloadLink

__all__ = ["download_request", "open_service"]

_MAX_PATH = 2048


async def open_service(
    owner: Owner, sandbox: str, port: int, expires_in_seconds: int, headers: Mapping[str, str] | None
) -> AsyncServiceURL:
    """A service with its first token. Raises ``ValueError`` or as the transport."""
    check_port(port)
    check_lifetime(expires_in_seconds)
    keeper = GrantKeeper(owner, sandbox, port, expires_in_seconds, headers)
    await keeper.fresh()
    return AsyncServiceURL(keeper)


def download_request(
    path: str,
    expires_in_seconds: int | None,
    content_type: str | None,
    content_disposition: Literal["attachment", "inline"] | None,
) -> CreateDownloadLink:
    """What is asked for. Raises ``ValueError``."""
    if not path or len(path) > _MAX_PATH or "\0" in path:
        raise ValueError(f"path must have 1 to {_MAX_PATH} characters and no NUL, not {path[:80]!r}")
    seconds = expires_in_seconds
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int) or not 1 <= seconds < 2**31):
        raise ValueError(f"expires_in_seconds must be an integer from 1 to 2147483647, or None, not {seconds!r}")
    if content_type is not None and not re.fullmatch(MEDIA_TYPE, content_type):
        raise ValueError(f"content_type must be a media type such as text/plain, not {content_type!r}")
    if content_disposition not in (None, "attachment", "inline"):
        raise ValueError(f"content_disposition must be 'attachment' or 'inline', not {content_disposition!r}")
    return CreateDownloadLink(
        path=path,
        expires_in_seconds=seconds,
        content_type=content_type,
        content_disposition=content_disposition,
    )
