"""The conformance suites over each runtime and exec strategy; cases ask for what was declared, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.base import ContainerSpec, Feature
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.engine.runtime_exec import ExecStrategy
from sandboxrt.errors import SandboxNotReadyError
from sandboxrt.host.command import CommandSettings
from sandboxrt.host.config import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.rest import CaptureSnapshot, CreateSandbox
from sandboxrt.testing.conformance import (
    ALL_CASES,
    CAPTURE_CASES,
    FILE_CASES,
    LIFECYCLE_CASES,
    SESSION_CASES,
    Case,
    cases_for,
)
from tests.conformance.test_oci import children, leftovers

pytestmark = [pytest.mark.container, pytest.mark.timeout(110)]

CASES_AT_ONCE = 4
GUEST_KERNEL = frozenset({Feature.OWN_PTY, Feature.PORTS})
NATIVE = frozenset(Feature)


class Observed(OciEngine):
    """An engine that remembers what its containers declared."""

    declared: frozenset[Feature] | None = None

    async def create(self, spec: ContainerSpec) -> OciContainer:
        """As the engine's."""
        container = await super().create(spec)
        self.declared = container.features
        return container


@pytest.mark.parametrize(
    ("runtime", "strategy", "declared", "cases"),
    [
        ("runc", ExecStrategy.INIT, NATIVE, {**SESSION_CASES, **FILE_CASES}),
        ("crun", ExecStrategy.RUNTIME, NATIVE, {**SESSION_CASES, **FILE_CASES}),
        ("runc", ExecStrategy.RUNTIME, NATIVE, FILE_CASES),
        ("runsc", None, GUEST_KERNEL, {**SESSION_CASES, **FILE_CASES}),
    ],
    ids=["runc-init", "crun-exec", "runc-exec", "runsc-exec"],
)
async def test_sessions_and_files(
    runtime: str,
    strategy: ExecStrategy | None,
    declared: frozenset[Feature],
    cases: Mapping[str, Case],
    tmp_path: Path,
) -> None:
    """All cases against one host, a few at a time: they mostly wait."""
    before = children()
    asked = cases_for(declared, cases)
    assert len(cases) - len(asked) <= 1, "declared so little that hardly anything is asked"
    failed: dict[str, Exception] = {}
    limiter = trio.CapacityLimiter(CASES_AT_ONCE)
    config = HostConfig(state_dir=tmp_path, runtime=runtime, command=CommandSettings(term_grace_s=0.3))

    async def ask(name: str, case: Case) -> None:
        async with limiter:
            try:
                await case(host)
            except Exception as error:
                failed[name] = error

    engine = Observed(tmp_path, runtime, strategy)
    async with engine, open_host(config, engine=engine) as host:
        async with trio.open_nursery() as nursery:
            for name, case in asked.items():
                nursery.start_soon(ask, name, case)
        assert await host.list_sandboxes() == []
    assert engine.declared == declared
    for name, error in failed.items():
        raise AssertionError(f"{name}, and {len(failed) - 1} more of {sorted(failed)}") from error
    assert list(leftovers(tmp_path)) == []
    assert children() <= before


@pytest.mark.parametrize(("runtime", "declared"), [("runc", NATIVE), ("runsc", GUEST_KERNEL)])
async def test_captures(runtime: str, declared: frozenset[Feature], tmp_path: Path) -> None:
    """Those that the runtime can do; what runs and cannot be frozen is refused with the way out."""
    before = children()
    config = HostConfig(state_dir=tmp_path, runtime=runtime, command=CommandSettings(term_grace_s=0.3))
    async with open_host(config) as host:
        for case in cases_for(declared, CAPTURE_CASES).values():
            await case(host)
        if Feature.FREEZE not in declared:
            await host.create_sandbox(CreateSandbox(name="runs"))
            with pytest.raises(SandboxNotReadyError, match="Stop it first, then capture it"):
                await host.capture_snapshot("runs", CaptureSnapshot(name="x"))
            await host.delete_sandbox("runs")
    assert list(leftovers(tmp_path)) == []
    assert children() <= before


@pytest.mark.parametrize("runtime", ["runc", "runsc"])
async def test_lifecycle(runtime: str, tmp_path: Path) -> None:
    """With the strategy that the runtime has by itself."""
    before = children()
    config = HostConfig(state_dir=tmp_path, runtime=runtime, command=CommandSettings(term_grace_s=0.3))
    for case in LIFECYCLE_CASES.values():
        async with open_host(config) as host:
            await case(host)
            assert await host.list_sandboxes() == []
    assert list(leftovers(tmp_path)) == []
    assert children() <= before


def test_only_what_depends_on_a_feature_may_be_left_out() -> None:
    assert cases_for(Feature) == dict(ALL_CASES)
    assert set(ALL_CASES) - set(cases_for(())) == {
        "terminals",
        "a_terminal_knows_end_of_input",
        "a_terminal_knows_interrupt",
        "a_capture_has_files_and_nothing_else",
        "captures_of_captures",
        "what_others_lie_on_is_not_deleted",
    }
