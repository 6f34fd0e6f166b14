"""A sample run in its three forms: blocking as it is written, and on trio and asyncio with every call awaited."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import trio

import sandboxrt
import sandboxrt.aio
from tests.readme.transform import asynchronous

SAMPLES = Path(__file__).parent / "samples"


def source_of(name: str) -> str:
    return (SAMPLES / f"{name}.py").read_text(encoding="utf-8")


def blocking(source: str, **names: Any) -> tuple[dict[str, Any], str]:
    with sandboxrt.SandboxClient() as client, redirect_stdout(io.StringIO()) as stdout:
        names["client"] = client
        exec(compile(source, "sample.py", "exec"), names)
    return names, stdout.getvalue()


def _sample(source: str, *parameters: str) -> Callable[..., Any]:
    names: dict[str, Any] = {}
    exec(compile(asynchronous(source, ("client", *parameters)), "sample.py", "exec"), names)
    return names["sample"]  # type: ignore[no-any-return]


def on_trio(source: str, **names: Any) -> tuple[dict[str, Any], str]:
    async def main() -> dict[str, Any]:
        async with sandboxrt.AsyncSandboxClient() as client:
            return await _sample(source, *names)(client, *names.values())  # type: ignore[no-any-return]

    with redirect_stdout(io.StringIO()) as stdout:
        return trio.run(main), stdout.getvalue()


def on_asyncio(source: str, **names: Any) -> tuple[dict[str, Any], str]:
    async def main() -> dict[str, Any]:
        async with sandboxrt.aio.AsyncSandboxClient() as client:
            return await _sample(source, *names)(client, *names.values())  # type: ignore[no-any-return]

    with redirect_stdout(io.StringIO()) as stdout:
        return asyncio.run(main()), stdout.getvalue()


Run = Callable[..., tuple[dict[str, Any], str]]
FORMS = pytest.mark.parametrize("run", [blocking, on_trio, on_asyncio], ids=["blocking", "trio", "asyncio"])
