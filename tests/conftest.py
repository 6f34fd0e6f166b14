from __future__ import annotations

import pytest

pytest_plugins = ["tests.images.fixtures", "tests.stretching"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-compatibility", action="store_true", help="write docs/compatibility.md from this run")
