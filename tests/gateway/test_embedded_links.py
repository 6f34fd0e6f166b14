"""Download links of embedded clients, one of each form, fetched as any program of this machine would."""

from __future__ import annotations

import asyncio
import urllib.request

import httpx
import pytest
import trio

import sandboxrt
import sandboxrt.aio

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

_PATH = "/srv/a file.txt"


def _fetched(url: str) -> tuple[bytes, bytes]:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read(), httpx.get(url, timeout=20).content


def test_blocking() -> None:
    with sandboxrt.SandboxClient() as client, client.sandbox() as sandbox:
        sandbox.write(_PATH, "for everybody")
        link = sandbox.generate_download_url(_PATH, expires_in_seconds=60)
        shown = client.generate_download_url(sandbox.name, _PATH, content_disposition="inline")
        for url in (link.download_url, shown.download_url):
            assert _fetched(url) == (b"for everybody",) * 2


def test_asyncio() -> None:
    async def main() -> tuple[bytes, bytes]:
        async with sandboxrt.aio.AsyncSandboxClient() as client, await client.sandbox() as sandbox:
            await sandbox.write(_PATH, "for everybody")
            link = await sandbox.generate_download_url(_PATH)
            return await asyncio.to_thread(_fetched, link.download_url)

    assert asyncio.run(main()) == (b"for everybody",) * 2


async def test_trio() -> None:
    async with sandboxrt.AsyncSandboxClient() as client, client.sandbox() as sandbox:
        await sandbox.write(_PATH, "for everybody")
        link = await sandbox.generate_download_url(_PATH)
        assert await trio.to_thread.run_sync(_fetched, link.download_url) == (b"for everybody",) * 2
