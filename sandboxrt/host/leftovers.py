"""What the containers of dead hosts may have left on this machine: freed before their files are used.

A host that takes over thousands of sandboxes serves at once: this goes on beside it, those first that were running, and
whoever needs one of them earlier frees it then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import trio

from sandboxrt.engine.base import Engine
from sandboxrt.engine.remains import SESSIONS_FOLDER
from sandboxrt.errors import SandboxClientError
from sandboxrt.host.spill import sweep
from sandboxrt.threads import run_blocking

__all__ = ["FREEING_FAILS", "Leftovers"]

_log = logging.getLogger("sandboxrt.host.adoption")
_TELL_EVERY_S: Final = 10.0

FREEING_FAILS: Final = (OSError, RuntimeError, SandboxClientError)
"""What an engine raises when something of a dead owner cannot be freed."""


class Leftovers:
    """Frees what is left of adopted containers, folder by folder.

    Args:
        engine: Who can.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._containers: dict[Path, str] = {}
        self._turns: dict[Path, trio.Lock] = {}
        self._urgent: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        return f"<Leftovers of {len(self._turns)} containers>"

    def add(self, containers: Mapping[Path, str], urgent: Iterable[Path] = ()) -> None:
        """Take note of adopted sandboxes.

        Args:
            containers: The folder of each, and its container's id.
            urgent: Those among them whose containers were running, and so have left something in all likelihood.
        """
        self._urgent = (*self._urgent, *urgent)
        for folder, container_id in containers.items():
            self._containers[folder] = container_id
            self._turns[folder] = trio.Lock()

    async def free(self, folder: Path) -> None:
        """Free what is left of one folder's containers, unless that was done; its files stay.

        Raises:
            OSError, RuntimeError, SandboxClientError: Something could not be freed; the next call tries again.
        """
        if (turn := self._turns.get(folder)) is None:
            return
        async with turn:
            if folder in self._turns:
                await self._engine.release(folder, self._containers[folder])
                if (sessions := folder / SESSIONS_FOLDER).exists():
                    await run_blocking(None, lambda: sweep(sessions))
                del self._turns[folder], self._containers[folder]

    async def free_urgent(self) -> None:
        """Free what is left of the containers that were running. Never raises; it is in the log."""
        for folder in self._urgent:
            await self._try(folder)

    async def run(self) -> None:
        """Free everything. Never raises; what could not be freed is in the log, and tried again when it is needed."""
        await self.free_urgent()
        count = len(self._turns)
        told_at = trio.current_time()
        for number, folder in enumerate(tuple(self._turns)):
            if trio.current_time() >= told_at + _TELL_EVERY_S:
                told_at = trio.current_time()
                _log.info("looked for what %d of %d adopted sandboxes left on this machine", number, count)
            await self._try(folder)

    async def _try(self, folder: Path) -> None:
        try:
            await self.free(folder)
        except FREEING_FAILS as error:
            _log.error("what a dead host left of %s could not be freed: %s", folder.name, error)
