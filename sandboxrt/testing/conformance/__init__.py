"""What every implementation must do, written once: suites of cases against a small driver interface.

A case is a coroutine function of a :class:`Driver`; :data:`ALL_CASES` has them by name. Scripts keep to the language of
:mod:`sandboxrt.testing.script`, so the same case runs over the fake engine under virtual time and over real
containers. A host is a driver already. Its command settings should have short graces (``term_grace_s`` of 0.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from sandboxrt.engine.base import Feature
from sandboxrt.testing.conformance.captures import CAPTURE_CASES
from sandboxrt.testing.conformance.driver import Case, Driver, Link, Outcome, converse, run
from sandboxrt.testing.conformance.files import FILE_CASES
from sandboxrt.testing.conformance.lifecycle import LIFECYCLE_CASES
from sandboxrt.testing.conformance.registries import REGISTRY_CASES
from sandboxrt.testing.conformance.sessions import SESSION_CASES

__all__ = [
    "ALL_CASES",
    "CAPTURE_CASES",
    "CASE_FEATURES",
    "FILE_CASES",
    "LIFECYCLE_CASES",
    "REGISTRY_CASES",
    "SESSION_CASES",
    "Case",
    "Driver",
    "Link",
    "Outcome",
    "cases_for",
    "converse",
    "run",
]

ALL_CASES: Mapping[str, Case] = MappingProxyType(
    {**SESSION_CASES, **FILE_CASES, **LIFECYCLE_CASES, **CAPTURE_CASES, **REGISTRY_CASES}
)

CASE_FEATURES: Mapping[str, frozenset[Feature]] = MappingProxyType(
    {
        "terminals": frozenset({Feature.OWN_PTY}),
        "a_terminal_knows_end_of_input": frozenset({Feature.OWN_PTY, Feature.TERMINAL_EOF}),
        "a_terminal_knows_interrupt": frozenset({Feature.OWN_PTY}),
        "a_capture_has_files_and_nothing_else": frozenset({Feature.FREEZE}),
        "captures_of_captures": frozenset({Feature.FREEZE}),
        "what_others_lie_on_is_not_deleted": frozenset({Feature.FREEZE}),
    }
)
"""What an exec strategy must have declared for a case to be asked of it; nothing for those not named here."""


def cases_for(features: Iterable[Feature], cases: Mapping[str, Case] | None = None) -> dict[str, Case]:
    """The cases (all of them where left out) that an implementation with these features must pass."""
    declared = frozenset(features)
    chosen = ALL_CASES if cases is None else cases
    return {name: case for name, case in chosen.items() if CASE_FEATURES.get(name, frozenset()) <= declared}
