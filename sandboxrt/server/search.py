"""Searches in the files of a sandbox over HTTP.

Source: protocol.md §3.3.
"""

from __future__ import annotations

from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from sandboxrt.host.host import Host
from sandboxrt.host.search import FoundFiles, FoundLines
from sandboxrt.server.replies import BodyError, read_json

__all__ = ["glob", "grep"]


async def glob(host: Host, sandbox: str, request: Request) -> ASGIApp:
    """The entries whose names match.

    Raises:
        SandboxClientError: The request or the folder is not what it should be.
    """
    fields = await read_json(request)
    return _answer(await host.glob(sandbox, _text(fields, "pattern"), _text(fields, "path"), _limit(fields)))


async def grep(host: Host, sandbox: str, request: Request) -> ASGIApp:
    """The lines with a text.

    Raises:
        SandboxClientError: The request or the folder is not what it should be.
    """
    fields = await read_json(request)
    names = None if fields.get("glob") in (None, "") else _text(fields, "glob")
    return _answer(await host.grep(sandbox, _text(fields, "pattern"), _text(fields, "path"), names, _limit(fields)))


def _answer(found: FoundFiles | FoundLines) -> JSONResponse:
    return JSONResponse({"matches": [attrs.asdict(match) for match in found.matches], "truncated": found.truncated})


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise BodyError(f"'{name}' must be there, as text")
    return value


def _limit(fields: dict[str, Any]) -> int | None:
    value = fields.get("limit")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise BodyError("'limit' must be a whole number")
    return value
