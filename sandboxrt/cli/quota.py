"""The options that say what all sandboxes of a key's tenant may take together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from sandboxrt.cli.values import SIZE

__all__ = ["quota_options"]

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS = (
    click.option("--max-sandboxes", type=click.IntRange(min=0), help="Most sandboxes at once, stopped ones too."),
    click.option("--total-cpus", type=click.FloatRange(min=0), help="Most virtual processors of all of them."),
    click.option("--total-memory", type=SIZE, help="Likewise, of memory."),
    click.option("--total-storage", type=SIZE, help="Likewise, of disk."),
)


def quota_options(command: F) -> F:
    """Gives a command the options ``max_sandboxes``, ``total_cpus``, ``total_memory`` and ``total_storage``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
