"""The façades are what the generator writes, and the generator follows the client by itself."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sandboxrt
import sandboxrt.aio
import sandboxrt.sync
from tools import gen_facades

CLASSES = [
    (source.name, node.name)
    for source in map(gen_facades.Source, sorted(gen_facades.CLIENT.glob("*.py")))
    for node in source.classes
]
KINDS = ("sync", "aio")


def test_the_committed_files_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "tools/gen_facades.py", "--check"],
        cwd=gen_facades.ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def _facade(kind: str, module: str, name: str) -> Any:
    generated = importlib.import_module(f"sandboxrt.{kind}.{module}")
    return getattr(generated, name.removeprefix("Async") if kind == "sync" else name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_every_public_member_is_there_with_its_parameters(kind: str, module: str, name: str) -> None:
    inner = getattr(importlib.import_module(f"sandboxrt.client.{module}"), name)
    if kind == "sync" and hasattr(inner, "__await__"):
        return  # where calls block it is what it would become: nothing is left to await
    facade = _facade(kind, module, name)
    for member, value in vars(inner).items():
        if member.startswith("_") and not member.startswith("__"):
            continue
        if (kind, member) == ("sync", "close") and hasattr(inner, "aclose"):
            continue  # the name is that of the one that waits
        if not isinstance(value, property) and not inspect.isfunction(value):
            continue
        if kind == "sync" and isinstance(vars(inner).get(member.removeprefix("get_")), property):
            assert isinstance(inspect.getattr_static(facade, member.removeprefix("get_")), property)
            continue  # where calls block, the property brings itself up to date
        there = gen_facades.BLOCKING_NAMES.get(member, member) if kind == "sync" else member
        if isinstance(value, property):
            assert isinstance(inspect.getattr_static(facade, there), property)
        elif member not in ("__init__", "__repr__", "__del__", "__await__"):
            given = inspect.signature(value).parameters
            assert inspect.signature(getattr(facade, there)).parameters.keys() == given.keys()
            assert [each.default for each in inspect.signature(getattr(facade, there)).parameters.values()] == [
                each.default for each in given.values()
            ]
            expected = kind == "aio" and inspect.iscoroutinefunction(value)
            assert inspect.iscoroutinefunction(getattr(facade, there)) == expected
        if value.__doc__ and not member.startswith("__"):
            assert inspect.getattr_static(facade, there).__doc__


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_the_package_exports_each_class_and_its_blocking_form(module: str, name: str) -> None:
    assert name in sandboxrt.__all__
    assert name in sandboxrt.aio.__all__
    if not hasattr(getattr(sandboxrt, name), "__await__"):
        blocking = name.removeprefix("Async")
        assert blocking in sandboxrt.__all__
        assert getattr(sandboxrt, blocking) is getattr(sandboxrt.sync, blocking)


def test_one_import_line_is_all_that_a_program_changes() -> None:
    public = {name for name in sandboxrt.__all__ if name.startswith("Async") or name.endswith("Error")}
    assert public <= set(sandboxrt.aio.__all__)
    assert sandboxrt.aio.CommandTimeoutError is sandboxrt.CommandTimeoutError


def test_blocking_documentation_speaks_of_nothing_asynchronous() -> None:
    for path in (gen_facades.ROOT / "sandboxrt" / "sync").glob("*.py"):
        text = path.read_text(encoding="utf-8").replace("tools/gen_facades.py", "")
        words = re.sub(r"_trio_\w+(\.\w+)?|\b_inner\.\w+", "", text)
        assert not re.findall(r"\b(?:await|async|asyncio|coroutine)\b|Cancellation:", words), path.name


# -- the generator itself ----------------------------------------------------------------------------------------------

NEW = '''
"""A new part of the client."""
from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from typing import Self, overload

from sandboxrt.client.sandbox import AsyncSandbox

__all__ = ["AsyncTunnel"]

PORT = 80


class AsyncTunnel:
    """A tunnel: ``async with sb.tunnel(80) as tunnel``."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    @property
    def local_port(self) -> int:
        """The port here."""
        return 1

    @property
    def token(self) -> Awaitable[str]:
        """A token."""
        raise AssertionError

    async def move(self, to: AsyncSandbox, *paths: Path, port: int = PORT, **extra: str) -> AsyncTunnel | None:
        """Move it."""

    async def all(self) -> list[AsyncTunnel]:
        """All of them."""
        return []

    async def close(self) -> None:
        """Close it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return False

    async def _private(self) -> None: ...
'''


@pytest.fixture
def sources(tmp_path: Path) -> Any:
    def make(text: str) -> list[gen_facades.Source]:
        (tmp_path / "tunnel.py").write_text(text)
        return [gen_facades.Source(tmp_path / "tunnel.py"), gen_facades.Source(gen_facades.CLIENT / "sandbox.py")]

    return make


def _generated(sources: list[gen_facades.Source], kind: str) -> str:
    files = gen_facades.Writer(kind, sources).files()
    return next(text for path, text in files.items() if path.name == "tunnel.py")


def test_new_classes_appear_by_themselves(sources: Any) -> None:
    blocking = _generated(sources(NEW), "sync")
    assert "class Tunnel(BlockingFacade[_trio_tunnel.AsyncTunnel]):" in blocking
    assert '"""A tunnel: ``with sb.tunnel(80) as tunnel``."""' in blocking
    assert "def move(self, to: Sandbox, *paths: Path, port: int=PORT, **extra: str) -> Tunnel | None:" in blocking
    assert "self._call(lambda: self._inner.move(to._inner, *paths, port=port, **extra))" in blocking
    assert "return [Tunnel._of(each, self._portal) for each in self._call(self._inner.all)]" in blocking
    assert "def token(self) -> str:" in blocking
    assert "return self._exit(error)" in blocking
    assert "_private" not in blocking
    assert "from pathlib import Path" in blocking
    assert "from sandboxrt.client.tunnel import PORT" in blocking
    assert "from sandboxrt.sync.sandbox import Sandbox" in blocking
    aio = _generated(sources(NEW), "aio")
    assert "class AsyncTunnel(AsyncioFacade[_trio_tunnel.AsyncTunnel]):" in aio
    assert "async def move(self, to: AsyncSandbox," in aio
    assert "return Deferred(lambda: self._call(lambda: self._inner.token))" in aio
    assert "async def __aexit__" in aio
    for text in (blocking, aio):
        compile(text, "tunnel.py", "exec")


@pytest.mark.parametrize(
    ("member", "why"),
    [
        ("    async def both(self) -> dict[str, AsyncTunnel]: ...", "cannot translate dict"),
        ("    @classmethod\n    def make(cls) -> AsyncTunnel: ...", "only methods, properties and overloads"),
        ("    def __len__(self) -> int: ...", "teach Writer._special"),
    ],
)
def test_what_it_cannot_translate_it_says(sources: Any, member: str, why: str) -> None:
    with pytest.raises(gen_facades.UnsupportedError, match=re.escape(why)) as caught:
        _generated(sources(f"{NEW}\n{member}\n"), "sync")
    assert "tunnel.AsyncTunnel." in str(caught.value)


def test_stale_missing_and_orphaned_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = gen_facades.generate()
    monkeypatch.setattr(gen_facades, "ROOT", tmp_path)
    moved = {tmp_path / "sandboxrt" / path.parent.name / path.name: text for path, text in files.items()}
    for path, text in moved.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert gen_facades.stale(moved) == []
    folder = tmp_path / "sandboxrt" / "sync"
    (folder / "sandbox.py").write_text(
        (folder / "sandbox.py").read_text().replace("timeout: float=60", "timeout: int=60")
    )
    (folder / "command.py").unlink()
    (folder / "gone.py").write_text("")
    assert gen_facades.stale(moved) == [
        "sandboxrt/sync/command.py is missing",
        "sandboxrt/sync/sandbox.py is not what its source says now",
        "sandboxrt/sync/gone.py has no source any more",
    ]


def test_results_are_awaitable_on_asyncio_and_plain_where_calls_block() -> None:
    hints = {
        module.__name__: inspect.signature(inspect.getattr_static(cls, "result").fget).return_annotation
        for module, cls in (
            (sandboxrt.sync, sandboxrt.CommandHandle),
            (sandboxrt.aio, sandboxrt.aio.AsyncCommandHandle),
        )
    }
    assert hints == {"sandboxrt.sync": "ExecutionResult", "sandboxrt.aio": "Awaitable[ExecutionResult]"}
