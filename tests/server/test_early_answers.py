"""Answers to requests of which the server does not read all, for clients that send everything first."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.gateway.test_local import refused
from tests.server.app_kit import site

_NOBODY = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.mark.parametrize("path", ["/v2/sandboxes/boxes", f"/api/v2/sandboxes/dp/{_NOBODY}/upload?path=/a", "/nowhere"])
async def test_a_refusal_reaches_who_sends_everything_first(tmp_path: Path, path: str) -> None:
    async with site(tmp_path) as here, await trio.open_tcp_stream("127.0.0.1", here.server.port) as stream:
        got = await refused(stream, path)
        assert got.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" in got.lower()
        assert got.endswith(b"}")
