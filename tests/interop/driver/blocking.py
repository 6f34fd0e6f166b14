"""Makes a blocking client look like an asyncio one, so that every scenario is written once.

Runs inside an official client's own environment: only the standard library may be imported here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

_PLAIN = (str, bytes, bytearray, int, float, bool, type(None), list, tuple, dict, set)
_AWAITED = {"result"}
"""Properties that the asyncio form gives as awaitables."""


class Blocking:
    """An object of a blocking client with ``async`` methods."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        if name in _AWAITED:
            return self._get(name)
        value = getattr(self._wrapped, name)
        if not callable(value):
            return wrap(value)

        async def call(*args: Any, **options: Any) -> Any:
            return wrap(value(*args, **options))

        return call

    async def _get(self, name: str) -> Any:
        return wrap(getattr(self._wrapped, name))

    async def __aenter__(self) -> Any:
        entered = self._wrapped.__enter__()
        return self if entered is self._wrapped else wrap(entered)

    async def __aexit__(self, *exc: Any) -> Any:
        return self._wrapped.__exit__(*exc)

    async def aclose(self) -> None:
        with contextlib.suppress(AttributeError):
            self._wrapped.close()

    def __aiter__(self) -> BlockingIterator:
        return BlockingIterator(iter(self._wrapped))


class BlockingIterator:
    """An iterator of a blocking client as an asynchronous one."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> BlockingIterator:
        return self

    async def __anext__(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None


def wrap(value: Any) -> Any:
    """Wrap clients, sandboxes and handles; values stay what they are."""
    module = type(value).__module__
    if isinstance(value, _PLAIN) or not module.startswith("langsmith"):
        return value
    if any(hasattr(value, name) for name in ("run", "kill", "create_sandbox", "retrieve")):
        return Blocking(value)
    return value
