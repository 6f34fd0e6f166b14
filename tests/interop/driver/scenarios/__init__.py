"""Every scenario by its row of the list of interop scenarios; a letter tells parts of one row apart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from context import Context

from scenarios import (
    captures,
    commands,
    control,
    extras,
    faults,
    files,
    lifecycle,
    registries,
    services,
    sessions,
    tunnels,
)

SCENARIOS: dict[str, Callable[[Context], Awaitable[None]]] = {
    **control.SCENARIOS,
    **lifecycle.SCENARIOS,
    **captures.SCENARIOS,
    **commands.SCENARIOS,
    **sessions.SCENARIOS,
    **faults.SCENARIOS,
    **files.SCENARIOS,
    **tunnels.SCENARIOS,
    **extras.SCENARIOS,
    **registries.SCENARIOS,
    **services.SCENARIOS,
}
