"""Imports run one way, as docs/design.md draws it, and ``protocol`` is pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sandboxrt"
LEVELS = {
    "_version": 0,
    "errors": 0,
    "models": 1,
    "protocol": 2,
    "http_pool": 2,
    "sockets": 2,
    "threads": 3,
    "room": 3,
    "tunnels": 3,
    "actors": 3,
    "engine": 4,
    "snapshots": 4,
    "store": 4,
    "host": 5,
    "gateway": 6,
    "client": 7,
    "bridge": 8,
    "server": 8,
    "cli": 9,
    "testing": 8,
}
"""A module may import from a lower level, and from its own part."""
SAME_LEVEL = {("snapshots", "store"), ("snapshots", "engine"), ("room", "threads")}
IMPURE = {"asyncio", "logging", "select", "socket", "subprocess", "threading", "time", "trio"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: import from sandboxrt.… in full"
            yield node.module


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in {"__init__", "__main__", "sync", "aio"}:
        return
    for module in _imports(path):
        imported = _part(module)
        if not module.startswith("sandboxrt.") or imported == part:
            continue
        allowed = LEVELS[imported] < LEVELS[part] or (part, imported) in SAME_LEVEL
        assert allowed, f"{part} imports {module}"
        if part == "client" and imported in ("host", "gateway"):
            assert path.name in ("local.py", "shared.py"), f"{path.name} imports {module}; only embedded transports may"


@pytest.mark.parametrize("path", sorted((PACKAGE / "protocol").glob("*.py")), ids=lambda path: path.name)
def test_protocol_is_pure(path: Path) -> None:
    assert not {module.split(".")[0] for module in _imports(path)} & IMPURE
