"""A second ``sandboxrt serve`` on a folder is refused in words, and harms nothing; embedded clients may be there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from sandboxrt.host.config import HostConfig
from sandboxrt.host.opening import open_host
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.server.serve import ServerSettings, open_server
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state
from tests.server.app_kit import API
from tests.serving import serving


def test_the_second_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "state") as server:
        command = [sys.executable, "-m", "sandboxrt", "serve", "--port", "0", "--state-dir", str(server.state_dir)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        for word in (f"process {server.process.pid}", server.url, f"kill {server.process.pid}", "--state-dir"):
            assert word in done.stderr
        assert "Traceback" not in done.stderr
        answer = httpx.get(f"{server.url}{API}/boxes", headers={"X-Api-Key": server.key})
        assert answer.status_code == 200
        server.kill()
        with serving(server.state_dir, key=server.key) as again:
            assert again.stop() == 0


async def test_beside_an_embedded_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = HostConfig(state_dir=tmp_path / "state")
    async with FakeEngine() as engine, open_host(config, engine=engine) as embedded:
        await embedded.create_sandbox(CreateSandbox(name="theirs"))
        settings = ServerSettings(port=0, insecure_no_auth=True, host=config)
        async with open_server(settings, engine=engine) as server:
            assert "1 other processes have sandboxes of their own" in caplog.text
            async with httpx.AsyncClient(base_url=server.url + API) as client:
                assert (await client.get("/boxes")).json()["sandboxes"] == []
        assert [info.name for info in await embedded.list_sandboxes()] == ["theirs"]


async def test_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = HostConfig(state_dir=Path("below/state"))
    assert config.state_dir == tmp_path / "below" / "state"
    async with FakeEngine() as engine, open_host(config, engine=engine, state=memory_state()) as host:
        monkeypatch.chdir("/")
        with trio.fail_after(10):
            assert (await host.create_sandbox(CreateSandbox(name="box"))).status == "ready"
