"""What every implementation must do, written once: suites of cases against a small driver interface.

A case is a coroutine function of a :class:`Driver`; :data:`ALL_CASES` has them by name. Scripts keep to the language of
:mod:`sandboxrt.testing.script`, so the same case runs over the fake engine under virtual time and over real
containers. A host is a driver already. Its command settings should have short graces (``term_grace_s`` of 0.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sandboxrt.testing.conformance.driver import Case, Driver, Outcome, converse, run
from sandboxrt.testing.conformance.files import FILE_CASES
from sandboxrt.testing.conformance.lifecycle import LIFECYCLE_CASES
from sandboxrt.testing.conformance.sessions import SESSION_CASES

__all__ = [
    "ALL_CASES",
    "FILE_CASES",
    "LIFECYCLE_CASES",
    "SESSION_CASES",
    "Case",
    "Driver",
    "Outcome",
    "converse",
    "run",
]

ALL_CASES: Mapping[str, Case] = MappingProxyType({**SESSION_CASES, **FILE_CASES, **LIFECYCLE_CASES})
