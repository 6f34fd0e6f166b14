"""TLS: our client reaches a server by https and wss, and trusts nobody whom it was not told to."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from sandboxrt.client.transport.websocket import SocketLimits, open_socket, socket_url
from sandboxrt.errors import SandboxClientError, SandboxConnectionError
from sandboxrt.host.config import HostConfig
from sandboxrt.server.app import AppSettings
from sandboxrt.server.guarded import ConnectionLimits
from sandboxrt.server.serve import ServerSettings, open_server
from sandboxrt.store import KeyRecords, Store
from sandboxrt.testing.fake import FakeEngine
from sandboxrt.testing.state import memory_state


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def make_certificate(folder: Path) -> tuple[Path, Path]:
    found = folder / "server.pem", folder / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-out", str(found[0]),
         "-keyout", str(found[1])],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return found


async def test_https_and_wss(tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServerSettings(
        port=0,
        certificate=certificate[0],
        private_key=certificate[1],
        host=HostConfig(state_dir=tmp_path),
        app=AppSettings(public_url="", default_snapshot="host"),
        connections=ConnectionLimits(drain_s=1.0, linger_s=1.0),
    )
    async with Store.open(tmp_path) as store, FakeEngine() as engine:
        key = (await KeyRecords(store).create("acme")).secret
        async with open_server(settings, engine=engine, state=memory_state()) as server:
            assert server.url.startswith("https://")
            endpoint = server.url + "/v2/sandboxes"
            async with AsyncSandboxClient(api_endpoint=endpoint, api_key=key, max_retries=0) as stranger:
                with pytest.raises(SandboxConnectionError, match=r"(?i)certificate"):
                    await stranger.list_sandboxes()
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
            async with AsyncSandboxClient(api_endpoint=endpoint, api_key=key) as client, client.sandbox() as sandbox:
                with trio.fail_after(30):
                    assert (await sandbox.run("echo over TLS")).stdout == "over TLS\n"
                    await sandbox.write("/tmp/file", "content")
                    assert await sandbox.read("/tmp/file") == b"content"
            monkeypatch.delenv("SSL_CERT_FILE")
            socket = socket_url(endpoint)
            with trio.fail_after(30), pytest.raises(SandboxConnectionError, match=r"(?i)certificate"):
                async with open_socket(socket, {}, SocketLimits(), ssl.create_default_context()):
                    pass


async def test_a_renewed_certificate_is_read_while_it_serves(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pairs = []
    for folder in (first, second):
        folder.mkdir()
        pairs.append(make_certificate(folder))
    certificate, key = pairs[0]
    settings = ServerSettings(
        port=0,
        certificate=certificate,
        private_key=key,
        host=HostConfig(state_dir=tmp_path / "state"),
        connections=ConnectionLimits(drain_s=1.0, linger_s=1.0),
    )

    async def shown(port: int) -> str:
        found = await trio.to_thread.run_sync(ssl.get_server_certificate, ("127.0.0.1", port))
        return found.strip()

    old, new = certificate.read_text().strip(), pairs[1][0].read_text().strip()
    async with FakeEngine() as engine, open_server(settings, engine=engine, state=memory_state()) as server:
        assert await shown(server.port) == old
        # Half of a pair: nothing changes.
        certificate.write_text(new)
        with pytest.raises(SandboxClientError, match=r"first/server\.pem"):
            await server.reload()
        assert await shown(server.port) == old
        key.write_text(pairs[1][1].read_text())
        await server.reload()
        assert await shown(server.port) == new
