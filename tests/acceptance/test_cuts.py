"""A connection that is cut again and again, both ways: every byte arrives, in order, once; the command runs once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.acceptance.cutting import CUTS, proxied

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.timeout(300)]

OUTPUT_BYTES = 50_000_000
INPUT_BYTES = 2_000_000
LINE = "zeile {:07d} häns 世界 😀 ∑ и так далее\n"
"""A line in which most characters take several bytes."""


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hundred times the usual delays would take many minutes."""
    monkeypatch.setattr("sandboxrt.client.transport.link.reattach_delay", lambda losses: 0.001 * losses)
    monkeypatch.setattr("sandboxrt.client.transport.link.start_delay", lambda *_: 0.001)


@pytest.mark.usefixtures("_no_patience")
async def test_output_over_five_hundred_cuts(tmp_path: Path) -> None:
    lines = OUTPUT_BYTES // len(LINE.format(0).encode())
    program = f"import sys\nfor n in range({lines}): sys.stdout.write({LINE!r}.format(n))"
    expected = hashlib.sha256()
    for number in range(lines):
        expected.update(LINE.format(number).encode())
    async with proxied(tmp_path, mean_bytes=60_000) as (client, proxy), client.sandbox() as sandbox:
        await sandbox.write("/root/talk.py", program)
        proxy.armed = True
        handle = await sandbox.run("echo once >> /root/count; python3 /root/talk.py", wait=False, timeout=0)
        seen, offset = hashlib.sha256(), 0
        async for chunk in handle:
            assert (chunk.stream, chunk.offset) == ("stdout", offset)
            data = chunk.data.encode()
            offset += len(data)
            seen.update(data)
        result = await handle.result
        proxy.armed = False
        assert (result.exit_code, result.stderr) == (0, "")
        assert seen.digest() == expected.digest()
        assert handle.last_stdout_offset == offset == len(result.stdout.encode())
        assert proxy.cuts == CUTS
        assert await sandbox.read("/root/count") == b"once\n"


@pytest.mark.usefixtures("_no_patience")
async def test_input_over_five_hundred_cuts(tmp_path: Path) -> None:
    lines = INPUT_BYTES // len(LINE.format(0).encode())
    text = "".join(LINE.format(number) for number in range(lines))
    async with proxied(tmp_path, mean_bytes=24_000) as (client, proxy), client.sandbox() as sandbox:
        proxy.armed = True
        handle = await sandbox.run("echo once >> /root/count; tee /root/got | sha256sum", wait=False, timeout=0)
        for start in range(0, len(text), 777):
            await handle.send_input(text[start : start + 777])
        await handle.close_input()
        result = await handle.result
        proxy.armed = False
        assert result.exit_code == 0
        assert result.stdout.split()[0] == hashlib.sha256(text.encode()).hexdigest()
        assert await sandbox.read("/root/got") == text.encode()
        assert proxy.cuts > 200
        assert await sandbox.read("/root/count") == b"once\n"
