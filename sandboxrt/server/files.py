"""Files of a sandbox over HTTP: uploads that are parsed as they come, downloads by ranges, neither ever in memory.

Source: protocol.md §3.2, §3.3; RFC 9110 §13, §14; RFC 7578.
"""

from __future__ import annotations

import contextlib
import mimetypes
from collections.abc import AsyncGenerator
from email.message import Message as Headers
from typing import TypeAlias

import attrs
import trio
from multipart import MultipartError, MultipartSegment, PushMultipartParser
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandboxrt.errors import SandboxClientError, SandboxOperationError
from sandboxrt.host.files import SandboxFile
from sandboxrt.host.host import Host
from sandboxrt.protocol.ranges import FileFacts, Part, is_unchanged, part_of
from sandboxrt.server.replies import BodyError, reply

__all__ = ["FileSettings", "download", "upload"]

_PIECE_BYTES = 1024**2
_SEND_BYTES = 256 * 1024
_Pieces: TypeAlias = AsyncGenerator[bytes, None]
_TYPES = mimetypes.MimeTypes()


@attrs.frozen(kw_only=True)
class FileSettings:
    """The bounds of one transfer.

    Attributes:
        max_upload_bytes: The longest file that is taken; the sandbox's disk is the limit before that.
        stall_s: How long a peer may send nothing of a body.
        upload_s: How long one upload may take altogether.
        drain_bytes: How much of a refused upload is still taken, so that its sender gets to read why.
        drain_s: How long that may take.
    """

    max_upload_bytes: int = 1024**4
    stall_s: float = 60.0
    upload_s: float = 3600.0
    drain_bytes: int = 256 * 1024**2
    drain_s: float = 10.0


async def upload(host: Host, sandbox: str, request: Request, settings: FileSettings) -> ASGIApp:
    """Put the part named ``file`` of a form, or a plain body, in the place of a file.

    Raises:
        BodyError: The body is no such form, or breaks off; the old content is still there.
        SandboxClientError: The file cannot be written, likewise.
    """
    body = _Body(request, settings)
    try:
        path = _path(request)
        pieces = body.pieces()
        content = _joined(_file_part(pieces, _boundary(request)) if _is_form(request) else pieces)
        with trio.fail_after(settings.upload_s):
            async with contextlib.aclosing(pieces), contextlib.aclosing(content):
                await host.write_file(sandbox, path, content)
    except trio.TooSlowError:
        raise BodyError(f"The upload took longer than {settings.upload_s:g} s", 408, "RequestTimeout") from None
    except SandboxClientError:
        await body.drain()
        raise
    return JSONResponse({"path": path})


async def download(host: Host, sandbox: str, request: Request) -> ASGIApp:
    """A file, a range of it, or only what is known of it."""
    return _Download(host, sandbox, _path(request), request)


def _path(request: Request) -> str:
    path = request.query_params.get("path")
    if path is None:
        raise BodyError("The query needs a 'path'")
    return path


# -- upload ------------------------------------------------------------------------------------------------------------


def _is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data"


def _boundary(request: Request) -> str:
    header = Headers()
    header["content-type"] = request.headers["content-type"]
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not 0 < len(boundary) <= 200:
        raise BodyError("The form's Content-Type has no usable boundary")
    return boundary


class _Body:
    """The body of a request as it comes."""

    def __init__(self, request: Request, settings: FileSettings) -> None:
        self._receive = request.receive
        self._settings = settings
        self._ended = False

    async def pieces(self) -> _Pieces:
        """All of it.

        Raises:
            BodyError: It is too long, stalls, or breaks off.
        """
        settings, total = self._settings, 0
        while not self._ended:
            try:
                with trio.fail_after(settings.stall_s):
                    message = await self._receive()
            except trio.TooSlowError:
                self._ended = True
                raise BodyError(
                    f"Nothing of the body came for {settings.stall_s:g} seconds", 408, "RequestTimeout"
                ) from None
            piece = self._note(message)
            if message["type"] != "http.request":
                raise BodyError("The body ends before its end")
            total += len(piece)
            if total > settings.max_upload_bytes:
                raise BodyError(f"The body is longer than {settings.max_upload_bytes} bytes", 413, "PayloadTooLarge")
            if piece:
                yield piece

    async def drain(self) -> None:
        """Take the rest of it: its sender may read the answer only when it has sent it all."""
        taken = 0
        with trio.move_on_after(self._settings.drain_s):
            while not self._ended and taken <= self._settings.drain_bytes:
                taken += len(self._note(await self._receive()))

    def _note(self, message: Message) -> bytes:
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        piece: bytes = message.get("body", b"")
        return piece


async def _file_part(body: _Pieces, boundary: str) -> _Pieces:
    """The content of the part named ``file``, once; other parts are passed over."""
    found = inside = False
    try:
        parser = PushMultipartParser(boundary, max_segment_count=16)
        async for chunk in body:
            for event in parser.parse(chunk):
                if isinstance(event, MultipartSegment):
                    inside = event.name == "file" and not found
                    found = found or inside
                elif event and inside:
                    yield bytes(event)
        parser.close()
    except MultipartError as error:
        raise BodyError(f"The body is no multipart form: {error}") from None
    if not found:
        raise BodyError("The form has no part named 'file'")


async def _joined(pieces: _Pieces) -> _Pieces:
    """The same bytes in fewer pieces: each costs a turn of a thread where it is written."""
    async with contextlib.aclosing(pieces):
        held: list[bytes] = []
        size = 0
        async for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _PIECE_BYTES:
                yield b"".join(held)
                held, size = [], 0
        if held:
            yield b"".join(held)


# -- download ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class _Download:
    """The response; the file is open as long as it is sent."""

    host: Host
    sandbox: str
    path: str
    request: Request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.host.open_file(self.sandbox, self.path) as file:
            facts = FileFacts(file.stat.size_bytes, file.etag, file.stat.mtime_ns)
            headers = {
                "etag": facts.etag,
                "last-modified": facts.last_modified,
                "accept-ranges": "bytes",
                "cache-control": "private, no-cache",
                "x-content-type-options": "nosniff",
            }
            if is_unchanged(self.request.headers, facts):
                await _start(send, 304, headers)
                await send({"type": "http.response.body", "body": b""})
                return
            part = part_of(self.request.method, self.request.headers, facts)
            total = facts.size_bytes
            if part is None:
                response = reply(
                    416,
                    "RangeNotSatisfiable",
                    f"The range lies outside of the file, which has {total} bytes",
                    headers={"Content-Range": f"bytes */{total}"},
                )
                await response(scope, receive, send)
                return
            headers["content-type"] = _TYPES.guess_type(self.path)[0] or "application/octet-stream"
            headers["content-length"] = str(part.stop - part.start)
            if not part.whole:
                headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{total}"
            await _start(send, 200 if part.whole else 206, headers)
            if self.request.method != "HEAD":
                await _send_part(send, file, part)
            await send({"type": "http.response.body", "body": b""})


async def _start(send: Send, status: int, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def _send_part(send: Send, file: SandboxFile, part: Part) -> None:
    offset = part.start
    while offset < part.stop:
        data = await file.read(offset, min(_PIECE_BYTES, part.stop - offset))
        if not data:
            # Fewer bytes than were promised: to break the answer off is the only way to say so.
            raise SandboxOperationError(f"'{file.path}' became shorter while it was read", "read", "Truncated")
        for start in range(0, len(data), _SEND_BYTES):
            piece = data[start : start + _SEND_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        offset += len(data)
