"""A command that is killed for lack of memory says so, in every form of the client and on the command line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from sandboxrt import AsyncSandboxClient, SandboxClient, aio
from sandboxrt.models import ExecutionResult
from tests.serving import Serving, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

MEM_BYTES = 64 * 1024**2
HOG = "exec python3 -c 'print(len(bytearray(500_000_000)))'"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("state"), "--default-snapshot", "host") as found:
        yield found


@pytest.fixture(params=["embedded", "served"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """What a client is made with."""
    if request.param == "embedded":
        return {"mode": "embedded", "state_dir": tmp_path}
    server: Serving = request.getfixturevalue("server")
    return {"api_endpoint": f"{server.url}/v2/sandboxes", "api_key": server.key}


def check(result: ExecutionResult) -> None:
    assert (result.exit_code, result.oom_killed) == (137, True)
    assert result.reason is not None
    assert "64 MiB (mem_bytes=67108864)" in result.reason
    assert "create it with more" in repr(result)


def test_blocking(options: dict[str, Any]) -> None:
    with (
        SandboxClient(**options) as client,
        client.sandbox(mem_bytes=MEM_BYTES) as sandbox,
    ):
        check(sandbox.run(HOG))
        assert sandbox.run("true").reason is None


def test_trio(options: dict[str, Any]) -> None:
    async def main() -> ExecutionResult:
        async with (
            AsyncSandboxClient(**options) as client,
            client.sandbox(mem_bytes=MEM_BYTES) as sandbox,
        ):
            return await sandbox.run(HOG)

    check(trio.run(main))


def test_asyncio(options: dict[str, Any]) -> None:
    async def main() -> ExecutionResult:
        async with (
            aio.AsyncSandboxClient(**options) as client,
            client.sandbox(mem_bytes=MEM_BYTES) as sandbox,
        ):
            return await sandbox.run(HOG)

    check(asyncio.run(main()))


def test_the_servers_log(server: Serving) -> None:
    with (
        SandboxClient(api_endpoint=f"{server.url}/v2/sandboxes", api_key=server.key) as client,
        client.sandbox(mem_bytes=MEM_BYTES) as sandbox,
    ):
        sandbox.run(HOG)
        told = [line for line in (server.state_dir / "server.log").read_text().splitlines() if sandbox.name in line]
    assert "Killed for lack of memory" in told[-1]


def test_command_line(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "sandboxrt", "run", "--state-dir", str(tmp_path), "--memory", "64m", "--"]
    program = "print(len(bytearray(500_000_000)))"
    done = subprocess.run(
        [*argv, "python3", "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (137, "")
    assert done.stderr.startswith("sandboxrt: Killed for lack of memory: the sandbox used up its 64 MiB")
    assert done.stderr.endswith("; here it is --memory SIZE\n")
