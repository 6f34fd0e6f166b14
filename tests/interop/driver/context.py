"""What a scenario is given: a client of one generation and form, a snapshot, and a way to make the server misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import langsmith.sandbox as ls
from blocking import wrap


@dataclasses.dataclass
class Context:
    """One run of one scenario."""

    generation: tuple[int, ...]
    form: str
    endpoint: str
    key: str | None
    options: dict[str, Any]
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def seed(self) -> bool:
        """The generation of the README."""
        return self.generation < (0, 8)

    @property
    def newest(self) -> bool:
        return self.generation >= (0, 15)

    @contextlib.asynccontextmanager
    async def client(self, **options: Any) -> AsyncIterator[Any]:
        """A client with the endpoint given outright, so that no environment matters, unless ``from_environment``."""
        if not options.pop("from_environment", False):
            base = self.endpoint + ("/v2/sandboxes" if self.seed else "/api/v2/sandboxes")
            options = {"api_endpoint": base, "api_key": self.key, **options}
        client = ls.SandboxClient(**options) if self.form == "sync" else ls.AsyncSandboxClient(**options)
        client = wrap(client) if self.form == "sync" else client
        try:
            yield client
        finally:
            await client.aclose()

    @contextlib.asynccontextmanager
    async def sandbox(self, **options: Any) -> AsyncIterator[Any]:
        """A sandbox, deleted afterwards."""
        async with self.client() as client, await client.sandbox(self.options["snapshot_id"], **options) as sandbox:
            yield sandbox

    async def aside(self, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Start ``work`` beside what follows: on another thread when blocking. Returns what waits for its end."""
        if self.form == "async":
            task = asyncio.ensure_future(work())

            async def join() -> None:
                await asyncio.wait_for(task, 30)

            return join
        trouble: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(work())  # type: ignore[arg-type]
            except BaseException as error:
                trouble.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        async def join_thread() -> None:
            thread.join(30)
            if trouble:
                raise trouble[0]
            check(not thread.is_alive(), "the other thread ends")

        return join_thread

    def faults(self, **what: Any) -> Any:
        """Tell the server how to misbehave, or ask it what it saw: see ``tests/interop/faults.py``."""
        request = urllib.request.Request(
            self.endpoint + "/_faults", json.dumps(what).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


def check(condition: object, what: str) -> None:
    """Raise unless ``condition`` holds; unlike ``assert`` it cannot be switched off."""
    if not condition:
        raise AssertionError(what)


def same(got: object, wanted: object, what: str) -> None:
    """Raise unless both are equal, showing both."""
    if got != wanted:
        raise AssertionError(f"{what}: {short(got)} instead of {short(wanted)}")


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else text[:300] + "..."


async def raises(kind: type[BaseException] | tuple[type[BaseException], ...], doing: Awaitable[Any]) -> Any:
    """The error that ``doing`` raises, which must be of that kind."""
    try:
        got = await doing
    except kind as error:
        return error
    raise AssertionError(f"{kind} was not raised; it returned {short(got)}")
