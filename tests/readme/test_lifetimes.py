"""The README's samples of lifetimes, of sandboxes found again, and of creation that is not waited for.

Embedded and served, in all three forms. Names that the README makes up are put in their place.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import trio

import sandboxrt
from tests.readme.forms import FORMS, Run, blocking, on_trio, source_of

pytestmark = [pytest.mark.container, pytest.mark.timeout(180)]

BEFORE = 'client.create_sandbox(snapshot_id=snapshot_id, name="my-sandbox", ttl_seconds=7200)\n'
AFTER = "client.delete_sandbox(sb.name)\n"


@FORMS
def test_sandbox_lifetime(run: Run, readme_snapshot_id: str) -> None:
    # The second of them is lost to its name being bound anew, and would be idle for ten minutes.
    source = source_of("sandbox_lifetime").replace("\n# Combine", "\nclient.delete_sandbox(sb.name)\n# Combine") + AFTER
    names, stdout = run(source, snapshot_id=readme_snapshot_id)
    ttl, idle_ttl, expires_at = stdout.splitlines()
    assert (ttl, idle_ttl) == ("7200", "900")
    left = datetime.fromisoformat(expires_at) - datetime.now(UTC)
    assert timedelta(seconds=800) < left <= timedelta(seconds=900)
    assert names["result"].stdout == "hello\n"


@FORMS
def test_updating_ttl(run: Run, readme_snapshot_id: str) -> None:
    names, _ = run(BEFORE + source_of("updating_ttl") + AFTER, snapshot_id=readme_snapshot_id)
    sb = names["sb"]
    assert (sb.name, sb.ttl_seconds, sb.idle_ttl_seconds) == ("my-sandbox-v2", 3600, 1800)
    assert sb.expires_at


@FORMS
def test_reusing_existing_sandboxes(run: Run, readme_snapshot_id: str) -> None:
    source = source_of("reusing_existing_sandboxes").replace('"sandbox-abc123"', "name")
    source = source.replace("print(sb.name)", "name = sb.name\nprint(sb.name)")
    names, stdout = run(source, snapshot_id=readme_snapshot_id)
    assert re.fullmatch(r"sandbox-[0-9a-z-]+\n", stdout)
    assert names["result"].stdout == "Still running!\n"


@FORMS
def test_async_sandbox_creation(run: Run, readme_snapshot_id: str) -> None:
    names, stdout = run(source_of("async_sandbox_creation") + AFTER, snapshot_id=readme_snapshot_id)
    assert stdout == "provisioning\nready\n"
    assert names["result"].stdout == "hello\n"


@FORMS
def test_async_sandbox_creation_by_hand(run: Run, readme_snapshot_id: str) -> None:
    pause: Callable[[float], Any] = time.sleep
    if run is on_trio:
        pause = trio.sleep
    elif run is not blocking:
        pause = asyncio.sleep
    source = source_of("async_sandbox_creation_by_hand") + 'result = sb.run("echo hello")\n' + AFTER
    names, stdout = run(source, snapshot_id=readme_snapshot_id, time=SimpleNamespace(sleep=pause))
    assert (names["sb"].status, names["result"].stdout, stdout) == ("ready", "hello\n", "")


def test_what_is_not_ready_is_not_used(readme_snapshot_id: str) -> None:
    with sandboxrt.SandboxClient() as client:
        sandbox = client.create_sandbox(readme_snapshot_id, wait_for_ready=False)
        try:
            for use in (
                lambda: sandbox.run("true"),
                lambda: sandbox.write("/root/file", "text"),
                lambda: sandbox.read("/root/file"),
            ):
                with pytest.raises(sandboxrt.SandboxNotReadyError):
                    use()
        finally:
            client.wait_for_sandbox(sandbox.name, timeout=60)
            client.delete_sandbox(sandbox.name)
