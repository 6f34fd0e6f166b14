"""What a caller may await, or not, without the warning that a forgotten coroutine gives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

import attrs

__all__ = ["Deferred"]

T = TypeVar("T")


@attrs.frozen
class Deferred(Generic[T]):
    """An awaitable that starts its work when, and each time that, it is awaited."""

    _start: Callable[[], Awaitable[T]]

    def __await__(self) -> Generator[Any, Any, T]:
        return self._start().__await__()
