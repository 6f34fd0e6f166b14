"""The OpenAPI document is true: generated requests find no answer that it does not describe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import schemathesis
import trio
from schemathesis.specs.openapi.checks import positive_data_acceptance

from sandboxrt.server.app import AppSettings
from sandboxrt.server.limits import KeyLimits
from tests.server.app_kit import site

_EXAMPLES = 30


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server in a thread of its own; its URL and a key."""
    folder: Path = tmp_path_factory.mktemp("state")
    ready, told = threading.Event(), []
    stop = trio.Event()

    async def serve() -> None:
        app = AppSettings(
            public_url="", default_snapshot="host", key_limits=KeyLimits(requests_per_s=10_000, burst=10_000)
        )
        async with site(folder, app=app) as here:
            told.extend((here.server.url, here.secret, trio.lowlevel.current_trio_token()))
            await here.box("box")
            await here.snapshot("app")
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(30)
        yield told[0], told[1]
    finally:
        told[2].run_sync_soon(stop.set)
        thread.join(30)


def test_schemathesis_finds_nothing(served: tuple[str, str]) -> None:
    url, key = served
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        tried += 1

        @hypothesis.seed(20)
        @hypothesis.settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            answer = case.call(base_url=url, headers={"X-Api-Key": key}, timeout=20)
            # A sandbox that is not ready in the time that was given is told so; nothing is wrong with the request.
            late = answer.status_code == 408 and answer.json()["detail"]["error"] == "Timeout"
            case.validate_response(answer, excluded_checks=[positive_data_acceptance] if late else [])

        check()
    assert tried >= 12
