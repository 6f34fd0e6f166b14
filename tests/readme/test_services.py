"""The samples of the README's *Service URLs*, word for word, embedded and served, in all three forms."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import sandboxrt
import sandboxrt.aio
from tests.readme.transform import asynchronous

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

SAMPLES = Path(__file__).parent / "samples"
SERVER = "python -m http.server 3000"
NAMES = ("client", "snapshot_id")


def _source(name: str) -> str:
    return (SAMPLES / f"service_{name}.py").read_text(encoding="utf-8")


def _with_sandbox(name: str) -> str:
    """A sample that assumes a sandbox and a server in it."""
    body = "".join(f"    {line}\n" for line in _source(name).splitlines())
    start = f'    handle = sb.run("{SERVER}", timeout=0, wait=False)\n    import time; time.sleep(2)\n'
    return f"with client.sandbox(snapshot_id=snapshot_id) as sb:\n{start}{body}    handle.kill()\n"


def _blocking(source: str, snapshot_id: str) -> tuple[dict[str, Any], str]:
    with sandboxrt.SandboxClient() as client:
        names: dict[str, Any] = {"client": client, "snapshot_id": snapshot_id}
        with redirect_stdout(io.StringIO()) as stdout:
            exec(compile(source, "sample.py", "exec"), names)
    return names, stdout.getvalue()


def _async_sample(source: str) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(compile(asynchronous(source, NAMES), "sample.py", "exec"), names)
    return names["sample"]  # type: ignore[no-any-return]


def _on_asyncio(sample: Callable[..., Any], snapshot_id: str) -> tuple[dict[str, Any], str]:
    async def main() -> dict[str, Any]:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            return await sample(client, snapshot_id)  # type: ignore[no-any-return]

    with redirect_stdout(io.StringIO()) as stdout:
        names = asyncio.run(main())
    return names, stdout.getvalue()


async def _on_trio(sample: Callable[..., Any], snapshot_id: str) -> tuple[dict[str, Any], str]:
    async with sandboxrt.AsyncSandboxClient() as client:
        with redirect_stdout(io.StringIO()) as stdout:
            names = await sample(client, snapshot_id)
    return names, stdout.getvalue()


def _check_basic(names: dict[str, Any], stdout: str) -> None:
    status, token, service_url, browser_url = stdout.splitlines()
    assert status == "200"
    assert token.count(".") == 2
    assert service_url.startswith("http://")
    assert token in browser_url
    assert names["resp"].status_code == 501  # what this server says to POST


def test_basic_usage_blocking(readme_snapshot_id: str) -> None:
    _check_basic(*_blocking(_source("basic_usage"), readme_snapshot_id))


async def test_basic_usage_trio(readme_snapshot_id: str) -> None:
    _check_basic(*await _on_trio(_async_sample(_source("basic_usage")), readme_snapshot_id))


def test_basic_usage_asyncio(readme_snapshot_id: str) -> None:
    _check_basic(*_on_asyncio(_async_sample(_source("basic_usage")), readme_snapshot_id))


@pytest.mark.parametrize("name", ["token_ttl", "auto_refresh"])
def test_lifetimes_blocking(name: str, readme_snapshot_id: str) -> None:
    names, _ = _blocking(_with_sandbox(name), readme_snapshot_id)
    assert names["svc"] is not None
    assert name == "token_ttl" or names["resp"].status_code == 404


@pytest.mark.parametrize("name", ["token_ttl", "auto_refresh"])
async def test_lifetimes_trio(name: str, readme_snapshot_id: str) -> None:
    names, _ = await _on_trio(_async_sample(_with_sandbox(name)), readme_snapshot_id)
    assert names["svc"].token
    assert name == "token_ttl" or names["resp"].status_code == 404


@pytest.mark.parametrize("name", ["token_ttl", "auto_refresh"])
def test_lifetimes_asyncio(name: str, readme_snapshot_id: str) -> None:
    names, _ = _on_asyncio(_async_sample(_with_sandbox(name)), readme_snapshot_id)
    assert names["svc"].token
    assert name == "token_ttl" or names["resp"].status_code == 404


def _async_usage() -> Callable[..., Any]:
    names: dict[str, Any] = {}
    body = "".join(f"    {line}\n" for line in _source("async_usage").splitlines())
    exec(f"async def sample(client, snapshot_id):\n{body}    return locals()\n", names)
    return names["sample"]  # type: ignore[no-any-return]


def _check_async(names: dict[str, Any]) -> None:
    assert names["resp"].status_code == 502  # the sample starts no server
    assert names["token"].count(".") == 2
    assert names["url"].startswith("http://")


async def test_async_usage_trio(readme_snapshot_id: str) -> None:
    _check_async((await _on_trio(_async_usage(), readme_snapshot_id))[0])


def test_async_usage_asyncio(readme_snapshot_id: str) -> None:
    _check_async(_on_asyncio(_async_usage(), readme_snapshot_id)[0])
