"""Captures: what a sandbox wrote becomes a layer on those that it was started from.

Layers are shared by reference: a capture has its own folder and a base, whose layers come below. Past a number of
layers the whole is copied into one that stands alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import attrs
import trio

from sandboxrt.engine.base import Captured, Layer, upper_name
from sandboxrt.engine.capture import merge
from sandboxrt.engine.copy.copier import Copier
from sandboxrt.snapshots.content import CaptureSource, Phase, Progress, SnapshotConfig, SnapshotContent
from sandboxrt.snapshots.disk import remove_tree
from sandboxrt.store import run_blocking

__all__ = ["Capture", "CaptureBuilder"]

_TREE = "tree"


@attrs.frozen
class Capture:
    """What was captured, in its build folder.

    Attributes:
        layers: Its own layers, by their paths within the folder.
        used_bytes: What those take on disk.
        stands_alone: Whether they are all that it needs.
        copied: What was copied of the sandbox.
    """

    layers: tuple[Layer, ...]
    used_bytes: int
    stands_alone: bool
    copied: Captured


class CaptureBuilder:
    """Makes one capture in a folder of its own.

    Args:
        config: Bounds.
        tools: The folder of compiled programs.
        draft: An empty private folder; after a failure its owner removes it.
        report: Gets the progress.
        limiter: For blocking work.
    """

    def __init__(
        self,
        config: SnapshotConfig,
        tools: Path,
        draft: Path,
        report: Callable[[Progress], None],
        limiter: trio.CapacityLimiter,
    ) -> None:
        self._config = config
        self._copier = Copier(tools, os.geteuid() == 0)
        self._draft = draft
        self._report = report
        self._limiter = limiter

    async def build(self, source: CaptureSource, base: SnapshotContent) -> Capture:
        """Copy what the sandbox wrote; and what it was started from, where there are too many layers.

        Raises:
            ResourceCreationError: ``DiskFull``, or ``Capture`` with the reason.

        Cancellation: partial; the sandbox runs on, and the draft folder is the caller's to remove.
        """
        self._report(Progress(Phase.COPY))
        copied = await source.copy(self._draft, self._config.reserve_bytes)
        self._report(Progress(Phase.COPY, copied.used_bytes, copied.used_bytes, copied.paused_s))
        layers = await run_blocking(self._limiter, lambda: self._layers(base))
        if len(layers) + len(base.layers) <= self._config.max_layers:
            return Capture(layers, copied.used_bytes, stands_alone=False, copied=copied)
        return await self._flatten(layers, base, copied)

    def _layers(self, base: SnapshotContent) -> tuple[Layer, ...]:
        """The layers that there are now; none where nothing was written in a place."""
        tree = self._draft / _TREE
        places = dict.fromkeys(["/", *(layer.at for layer in base.layers)])
        found = []
        for at in places:
            folder = tree / upper_name(at)
            if at == "/" or any(folder.iterdir()):
                found.append(Layer(Path(_TREE, upper_name(at)), at))
        return tuple(found)

    async def _flatten(self, layers: tuple[Layer, ...], base: SnapshotContent, copied: Captured) -> Capture:
        whole = self._draft / "whole"
        await run_blocking(self._limiter, lambda: whole.mkdir(mode=0o700))
        own = tuple(attrs.evolve(layer, path=self._draft / layer.path) for layer in layers)
        merged = await merge(self._copier, (*own, *base.layers), whole, reserve_bytes=self._config.reserve_bytes)

        await remove_tree(self._draft / _TREE, self._limiter)

        def settle() -> tuple[Layer, ...]:
            (whole / _TREE).rename(self._draft / _TREE)
            whole.rmdir()
            return self._layers(base)

        flat = await run_blocking(self._limiter, settle)
        return Capture(flat, merged.used_bytes, stands_alone=True, copied=copied)
