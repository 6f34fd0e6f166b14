"""The samples of the system's README, word for word but for the import line, in blocking, trio and asyncio form.

``samples/`` holds them as they are written. The async forms are the same text with every client call awaited
(``transform.py``); the kill sample, which uses a thread, is written again below as an async program would.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import sandboxrt
import sandboxrt.aio
from tests.readme.transform import asynchronous

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

SAMPLES = Path(__file__).parent / "samples"
EXISTING = "# Or use an existing sandbox by name"


@attrs.frozen
class Expected:
    """What a sample leaves behind: what it printed and the names it bound."""

    stdout: str | None = None
    contains: tuple[str, ...] = ()
    stderr_contains: tuple[str, ...] = ()
    result: Callable[[sandboxrt.ExecutionResult], bool] | None = None


EXPECTED = {
    "running_commands": Expected(stdout="Hello, World!\n\n\n0\nTrue\nFalse\n1\n"),
    "callbacks": Expected(contains=("building step", "\nBuild succeeded\n"), stderr_contains=("warning",)),
    "streaming_with_command_handle": Expected(contains=("Command ID: ", "[OUT] ", "[ERR] ", "\nExit code: 0\n")),
    "killing_a_running_command": Expected(stdout="Exit code: 137\n"),
    "sending_stdin_input": Expected(stdout="Name: Hello World\n", result=lambda result: result.success),
    "auto_reconnect": Expected(contains=("building step",), result=lambda result: result.success),
    "manual_reconnect": Expected(contains=("building step",), result=lambda result: "building" in result.stdout),
    "no_timeout": Expected(contains=("Ready",)),
    "session_ttl": Expected(contains=("building step",), result=lambda result: result.success),
    "idle_timeout": Expected(contains=("Ready",)),
    "kill_on_disconnect": Expected(contains=("Ready",)),
    "combining_lifecycle_options": Expected(stdout=""),
    "pty": Expected(result=lambda result: result.success and "PID" in result.stdout),
    "file_operations": Expected(stdout="Hello from file!\n\nprint('Hello from file!')\n"),
    "error_handling": Expected(contains=("Command timed out: ",)),
}


def _source(name: str) -> str:
    return (SAMPLES / f"{name}.py").read_text(encoding="utf-8")


def _check(expected: Expected, stdout: str, stderr: str, names: dict[str, Any]) -> None:
    if expected.stdout is not None:
        assert stdout == expected.stdout
    for text in expected.contains:
        assert text in stdout
    for text in expected.stderr_contains:
        assert text in stderr
    if expected.result is not None:
        assert expected.result(names["result"]), names["result"]


@pytest.mark.parametrize("name", EXPECTED)
def test_blocking(name: str, readme_snapshot_id: str) -> None:
    with sandboxrt.SandboxClient() as client:
        names: dict[str, Any] = {"client": client, "snapshot_id": readme_snapshot_id}
        with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
            exec(compile(_source(name), f"{name}.py", "exec"), names)
    _check(EXPECTED[name], stdout.getvalue(), stderr.getvalue(), names)


def _async_sample(name: str) -> Callable[..., Any]:
    if name == "killing_a_running_command":
        return _kill_sample
    names: dict[str, Any] = {}
    source = asynchronous(_source(name), ("client", "snapshot_id"))
    exec(compile(source, f"{name}.py", "exec"), names)
    return names["sample"]  # type: ignore[no-any-return]


async def _kill_sample(client: Any, snapshot_id: str) -> dict[str, Any]:
    """*Killing a Running Command*, with the thread that kills being an await between two loops."""
    async with await client.sandbox(snapshot_id=snapshot_id) as sb:
        handle = await sb.run("sleep 3600", timeout=7200, wait=False)
        await handle.kill()
        async for chunk in handle:
            print(chunk.data, end="")
        result = await handle.result
        print(f"Exit code: {result.exit_code}")
    return {"result": result}


@pytest.mark.parametrize("name", EXPECTED)
async def test_trio(name: str, readme_snapshot_id: str) -> None:
    sample = _async_sample(name)
    async with sandboxrt.AsyncSandboxClient() as client:
        with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
            names = await sample(client, readme_snapshot_id)
    _check(EXPECTED[name], stdout.getvalue(), stderr.getvalue(), names)


@pytest.mark.parametrize("name", EXPECTED)
def test_asyncio(name: str, readme_snapshot_id: str) -> None:
    sample = _async_sample(name)

    async def main() -> dict[str, Any]:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            return await sample(client, readme_snapshot_id)  # type: ignore[no-any-return]

    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        names = asyncio.run(main())
    _check(EXPECTED[name], stdout.getvalue(), stderr.getvalue(), names)


def test_quick_start_blocking(readme_host: None) -> None:
    before, _, after = _source("quick_start").partition(EXISTING)
    names: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as stdout:
        exec(compile(before, "quick_start.py", "exec"), names)
    try:
        names["client"].create_sandbox(snapshot_id=names["snapshot"].id, name="your-sandbox")
        exec(compile(after, "quick_start.py", "exec"), names)
        names["client"].delete_sandbox("your-sandbox")  # a server would keep it
    finally:
        names["client"].close()
    assert stdout.getvalue() == "4\n\nTrue\n"
    assert names["result"].stdout == "4\n"


def _quick_start_async() -> Callable[..., Any]:
    names: dict[str, Any] = {}
    source = (
        _source("quick_start").replace("client = SandboxClient()\n", "").replace("SandboxClient", "AsyncSandboxClient")
    )
    before, _, after = source.partition(EXISTING)
    existing = 'client.create_sandbox(snapshot_id=snapshot.id, name="your-sandbox")\n'
    deletion = 'client.delete_sandbox("your-sandbox")\n'
    exec(compile(asynchronous(before + existing + after + deletion, ("client",)), "quick_start.py", "exec"), names)
    return names["sample"]  # type: ignore[no-any-return]


async def test_quick_start_trio(readme_host: None) -> None:
    with redirect_stdout(io.StringIO()) as stdout:
        async with sandboxrt.AsyncSandboxClient() as client:
            names = await _quick_start_async()(client)
    assert stdout.getvalue() == "4\n\nTrue\n"
    assert names["result"].stdout == "4\n"


def test_quick_start_asyncio(readme_host: None) -> None:
    async def main() -> dict[str, Any]:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            return await _quick_start_async()(client)  # type: ignore[no-any-return]

    with redirect_stdout(io.StringIO()) as stdout:
        names = asyncio.run(main())
    assert stdout.getvalue() == "4\n\nTrue\n"
    assert names["result"].stdout == "4\n"


def test_async_support_trio(readme_host: None) -> None:
    names: dict[str, Any] = {}
    exec(compile(_source("async_support"), "async_support.py", "exec"), names)
    with redirect_stdout(io.StringIO()) as stdout:
        trio.run(names["main"])
    assert stdout.getvalue() == "2\n\nasync content\n"


def test_async_support_asyncio(readme_host: None) -> None:
    names: dict[str, Any] = {}
    source = _source("async_support").replace("from sandboxrt import", "from sandboxrt.aio import")
    exec(compile(source, "async_support.py", "exec"), names)
    with redirect_stdout(io.StringIO()) as stdout:
        asyncio.run(names["main"]())
    assert stdout.getvalue() == "2\n\nasync content\n"


def _async_streaming() -> Callable[..., Any]:
    names: dict[str, Any] = {}
    body = "".join(f"    {line}\n" for line in _source("async_streaming").splitlines())
    source = f"async def sample(client, snapshot_id):\n{body}    return result\n"
    exec(compile(source, "async_streaming.py", "exec"), names)
    return names["sample"]  # type: ignore[no-any-return]


async def test_async_streaming_trio(readme_snapshot_id: str) -> None:
    with redirect_stdout(io.StringIO()) as stdout:
        async with sandboxrt.AsyncSandboxClient() as client:
            result = await _async_streaming()(client, readme_snapshot_id)
    assert result.success
    assert "building" in stdout.getvalue()


def test_async_streaming_asyncio(readme_snapshot_id: str) -> None:
    async def main() -> sandboxrt.ExecutionResult:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            return await _async_streaming()(client, readme_snapshot_id)  # type: ignore[no-any-return]

    with redirect_stdout(io.StringIO()) as stdout:
        result = asyncio.run(main())
    assert result.success
    assert "building" in stdout.getvalue()


START_STOP_END = 'client.delete_sandbox("my-vm")\n'


@attrs.frozen
class _Snapshot:
    """What the sample knows of the snapshot that an earlier one made."""

    id: str


def test_start_stop_blocking(readme_snapshot_id: str) -> None:
    with sandboxrt.SandboxClient() as client:
        names: dict[str, Any] = {"client": client, "snapshot": _Snapshot(readme_snapshot_id)}
        exec(compile(_source("start_stop") + START_STOP_END, "start_stop.py", "exec"), names)
    assert names["sandbox"].status == "ready"


def _start_stop_async() -> Callable[..., Any]:
    names: dict[str, Any] = {}
    source = asynchronous(_source("start_stop") + START_STOP_END, ("client", "snapshot"))
    exec(compile(source, "start_stop.py", "exec"), names)
    return names["sample"]  # type: ignore[no-any-return]


async def test_start_stop_trio(readme_snapshot_id: str) -> None:
    async with sandboxrt.AsyncSandboxClient() as client:
        names = await _start_stop_async()(client, _Snapshot(readme_snapshot_id))
    assert names["sandbox"].status == "ready"


def test_start_stop_asyncio(readme_snapshot_id: str) -> None:
    async def main() -> dict[str, Any]:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            return await _start_stop_async()(client, _Snapshot(readme_snapshot_id))  # type: ignore[no-any-return]

    assert asyncio.run(main())["sandbox"].status == "ready"
