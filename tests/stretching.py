"""A pytest plugin: multiplies the time limits of tests by the factor of ``tests/stretch.py``, wherever they are set:

* the limit of a whole test (``pytest.mark.timeout``, or the default of ``pyproject.toml``);
* ``trio.fail_after``, and the ``timeout`` of processes, in modules of ``tests``;
* how long clients wait for a sandbox that becomes ready, where a test leaves that to the default;
* deadlines that a test makes from ``time.monotonic()``, if it passes them through ``stretched``.

What belongs to the behaviour that is tested stays as it is: the timeouts of commands, what ``trio.move_on_after``
cancels, and every limit of the product's own.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import trio

from sandboxrt import AsyncSandbox, AsyncSandboxClient, Sandbox, SandboxClient, aio
from tests.stretch import FACTOR, stretched

_CLIENTS = (AsyncSandboxClient, SandboxClient, aio.AsyncSandboxClient, AsyncSandbox, Sandbox, aio.AsyncSandbox)
_WAITS = ("sandbox", "create_sandbox", "start_sandbox", "start", "capture_snapshot")


def pytest_configure(config: pytest.Config) -> None:
    if FACTOR == 1:
        return
    trio.fail_after = _stretching_fail_after(trio.fail_after)
    subprocess.run = _stretching_timeout(subprocess.run)
    subprocess.Popen.wait = _stretching_timeout(subprocess.Popen.wait, position=1)
    subprocess.Popen.communicate = _stretching_timeout(subprocess.Popen.communicate, position=2)
    for client in _CLIENTS:
        for name in _WAITS:
            defaults = getattr(getattr(client, name, None), "__kwdefaults__", None)
            if defaults and "timeout" in defaults:
                defaults["timeout"] = stretched(defaults["timeout"])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if FACTOR == 1:
        return
    for item in items:
        marker = item.get_closest_marker("timeout")
        limit = marker.args[0] if marker and marker.args else float(config.getini("timeout") or 0)
        item.add_marker(pytest.mark.timeout(stretched(limit)), append=False)


def _is_of_tests(depth: int) -> bool:
    return str(sys._getframe(depth + 1).f_globals.get("__name__", "")).startswith("tests.")


def _stretching_fail_after(
    fail_after: Callable[..., AbstractContextManager[trio.CancelScope]],
) -> Callable[..., AbstractContextManager[trio.CancelScope]]:
    @functools.wraps(fail_after)
    def stretching(seconds: float, **options: Any) -> AbstractContextManager[trio.CancelScope]:
        return fail_after(stretched(seconds) if _is_of_tests(1) else seconds, **options)

    return stretching


def _stretching_timeout(function: Callable[..., Any], position: int = sys.maxsize) -> Callable[..., Any]:
    """``function`` with its argument ``timeout``, which may stand at ``position``, stretched where a test calls it."""

    @functools.wraps(function)
    def stretching(*arguments: Any, **options: Any) -> Any:
        if len(arguments) > position:
            options["timeout"] = arguments[position]
            arguments = arguments[:position]
        if options.get("timeout") is not None and _is_of_tests(1):
            options["timeout"] = stretched(options["timeout"])
        return function(*arguments, **options)

    return stretching
