"""Files for whoever has a link: one file, as the link's maker wanted it shown, without a key.

A file may be a page full of scripts, and its address may be below the API's. So it is saved unless the link's maker
wanted it shown, and shown in the browser's own cage, wherever it stands: of an origin that is like no other, without
scripts, forms and plugins. Cookies and keys of the visitor mean nothing here, and none are set.

Source: protocol.md §2.7.
"""

from __future__ import annotations

import mimetypes
import posixpath
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol
from urllib.parse import parse_qs, quote

import h11

from sandboxrt.errors import SandboxClientError
from sandboxrt.gateway.front import Front
from sandboxrt.gateway.refusals import RefusalError, without_file
from sandboxrt.host.files import SandboxFile
from sandboxrt.protocol.ranges import FileFacts, Part, is_unchanged, part_of
from sandboxrt.protocol.service_urls import FilePath, file_target
from sandboxrt.protocol.tokens import DownloadClaims, TokenError, TokenExpiredError, TokenKey, check_download

__all__ = ["send_file"]

_PIECE_BYTES: Final = 1024**2
_SEND_BYTES: Final = 256 * 1024
_TYPES: Final = mimetypes.MimeTypes()


class _Files(Protocol):
    def open_file(self, name: str, path: str) -> AbstractAsyncContextManager[SandboxFile]: ...


async def send_file(
    files: _Files,
    front: Front,
    request: h11.Request,
    asked: FilePath,
    keys: Iterable[TokenKey],
    now: float,
    wake: Callable[[str, str], Awaitable[None]],
) -> None:
    """Answer a request for a file, for a range of it, or for what is known of it.

    Raises:
        RefusalError: 403 for a link that is expired, altered or of another sandbox; 404 where the file is not there.
    """
    if request.method not in (b"GET", b"HEAD"):
        raise RefusalError(405, "MethodNotAllowed", "Only GET and HEAD are possible here", {"allow": "GET, HEAD"})
    claims = _claims(asked, keys, now)
    front.pass_over()
    try:
        await wake(claims.sandbox_id, claims.tenant)
        async with files.open_file(claims.sandbox_id, claims.path) as file:
            await _send(front, request, claims, file)
    except SandboxClientError as error:
        raise without_file(error) from error


def _claims(asked: FilePath, keys: Iterable[TokenKey], now: float) -> DownloadClaims:
    path, _, query = asked.target.partition("?")
    tokens = parse_qs(query, max_num_fields=16).get("token", []) if query.count("&") < 16 else []
    altered = RefusalError(403, "Forbidden", "The link is not one of this server's, or was altered")
    try:
        claims = check_download(tokens[0] if tokens else "", keys, now)
    except TokenExpiredError:
        raise RefusalError(403, "Expired", "The link has expired") from None
    except TokenError:
        raise altered from None
    if claims.sandbox_id != asked.sandbox_id or path != file_target(claims.path):
        raise altered
    return claims


async def _send(front: Front, request: h11.Request, claims: DownloadClaims, file: SandboxFile) -> None:
    facts = FileFacts(file.stat.size_bytes, file.etag, file.stat.mtime_ns)
    headers = {
        "etag": facts.etag,
        "last-modified": facts.last_modified,
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
        "referrer-policy": "no-referrer",
        "content-disposition": _disposition(claims),
        "content-type": claims.content_type or _TYPES.guess_type(claims.path)[0] or "application/octet-stream",
    }
    asked = {name.decode(): value.decode("latin-1") for name, value in request.headers}
    if is_unchanged(asked, facts):
        await front.send(h11.Response(status_code=304, headers=_raw(headers)))
        await front.send(h11.EndOfMessage())
        return
    part = part_of(request.method.decode(), asked, facts)
    total = facts.size_bytes
    if part is None:
        raise RefusalError(
            416,
            "RangeNotSatisfiable",
            f"The range lies outside of the file, which has {total} bytes",
            {"content-range": f"bytes */{total}"},
        )
    headers["content-length"] = str(part.stop - part.start)
    if not part.whole:
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{total}"
    await front.send(h11.Response(status_code=200 if part.whole else 206, headers=_raw(headers)))
    if request.method == b"GET" and not await _send_part(front, file, part):
        return
    await front.send(h11.EndOfMessage())


async def _send_part(front: Front, file: SandboxFile, part: Part) -> bool:
    """Whether all of it was there: a file that shrinks leaves an answer that is too short, which says so."""
    offset = part.start
    while offset < part.stop:
        data = await file.read(offset, min(_PIECE_BYTES, part.stop - offset))
        if not data:
            return False
        for start in range(0, len(data), _SEND_BYTES):
            await front.send(h11.Data(data=data[start : start + _SEND_BYTES]))
        offset += len(data)
    return True


def _disposition(claims: DownloadClaims) -> str:
    name = posixpath.basename(claims.path) or "download"
    plain = "".join(char if char.isascii() and char.isprintable() and char not in '"\\%' else "_" for char in name)
    return f"{claims.disposition}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
