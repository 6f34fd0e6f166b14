"""Which exec strategy a container gets: the init where descriptors can be passed, the runtime's exec elsewhere."""

from __future__ import annotations

import enum
import os

from sandboxrt.engine.bundle import CAPABILITIES, INIT_PATH
from sandboxrt.engine.findings import GUEST_KERNEL_RUNTIMES, HostFacts
from sandboxrt.errors import EngineUnavailableError

__all__ = ["STRATEGY_VARIABLE", "ExecStrategy", "choose_strategy", "relay_process"]

STRATEGY_VARIABLE = "SANDBOXRT_EXEC_STRATEGY"
"""Environment variable with the name of a strategy, for those who compare them."""


class ExecStrategy(enum.Enum):
    """How commands get into a container."""

    INIT = "init"
    """The first process starts them; the host passes it descriptors."""
    RUNTIME = "runtime"
    """The runtime's own ``exec`` starts them, one at a time."""


def choose_strategy(asked: ExecStrategy | None, facts: HostFacts) -> ExecStrategy:
    """The strategy for this runtime and user.

    Args:
        asked: What was asked for; the environment, then what fits the runtime, where left out.
        facts: The host and its runtime.

    Raises:
        EngineUnavailableError: What was asked for, or the only one that fits, cannot work here.
    """
    if asked is None and (name := os.environ.get(STRATEGY_VARIABLE)):
        try:
            asked = ExecStrategy(name)
        except ValueError:
            known = " or ".join(repr(each.value) for each in ExecStrategy)
            raise EngineUnavailableError(f"{STRATEGY_VARIABLE} is {name!r}; it can be {known}, or unset") from None
    kind = facts.runtime.kind
    has_guest_kernel = kind in GUEST_KERNEL_RUNTIMES
    strategy = asked or (ExecStrategy.RUNTIME if has_guest_kernel else ExecStrategy.INIT)
    if strategy is ExecStrategy.INIT and has_guest_kernel:
        raise EngineUnavailableError(
            f"{kind} passes no descriptors into its containers, which the exec strategy 'init' needs; "
            f"unset {STRATEGY_VARIABLE}, or use --runtime crun"
        )
    if strategy is ExecStrategy.RUNTIME and not facts.is_root:
        why = f"commands get into containers of {kind} by its own exec" if has_guest_kernel else "it was asked for"
        raise EngineUnavailableError(
            f"the exec strategy 'runtime' needs root ({why}): run as root, e.g. with sudo, or use --runtime crun"
        )
    return strategy


def relay_process(oom_score_adj: int) -> dict[str, object]:
    """What the runtime's ``exec`` is given as ``--process``: the relay, with the rights of the first process."""
    capabilities = list(CAPABILITIES)
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "umask": 0o022},
        "args": [INIT_PATH, "relay"],
        "env": [],
        "cwd": "/",
        "noNewPrivileges": True,
        "oomScoreAdj": oom_score_adj,
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    }
