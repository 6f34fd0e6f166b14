"""Private images in real containers, with logins that are stored: where they work, and where they never go."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import pytest

import sandboxrt
from sandboxrt import AsyncSandboxClient, SandboxClient, aio
from sandboxrt.errors import ResourceCreationError, ResourceNotFoundError, ValidationError
from sandboxrt.host.config import HostConfig
from sandboxrt.server.app import AppSettings
from sandboxrt.server.serve import ServerSettings, open_server
from sandboxrt.store import KeyRecords, Store
from tests.images.registry import Registry

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]

GIB = 1024**3
SAY = "echo from a private image"


def login(registry: Registry) -> dict[str, str]:
    assert registry.username is not None and registry.password is not None
    return {"url": f"http://{registry.address}", "username": registry.username, "password": registry.password}


@contextlib.asynccontextmanager
async def served(state_dir: Path, key: str) -> AsyncIterator[AsyncSandboxClient]:
    """A server over real containers, and a client of it."""
    settings = ServerSettings(
        port=0, host=HostConfig(state_dir=state_dir), app=AppSettings(public_url="", default_snapshot="host")
    )
    async with (
        open_server(settings) as server,
        AsyncSandboxClient(api_endpoint=f"{server.url}/v2/sandboxes", api_key=key) as client,
    ):
        yield client


async def test_served_over_a_restart(
    password_registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Store.open(tmp_path) as store:
        keys = KeyRecords(store)
        mine, other = (await keys.create("mine")).secret, (await keys.create("other")).secret
    async with served(tmp_path, mine) as client:
        made = await client.registries.create(name="internal", **login(password_registry))
    async with served(tmp_path, mine) as client:
        assert (await client.registries.list()).items == (made,)
        assert await client.registries.retrieve("internal") == made
        for number, image in enumerate(("tiny:1", f"{password_registry.address}/tiny:1")):
            snapshot = await client.create_snapshot(f"app-{number}", image, GIB, registry_id=made.id)
            assert snapshot.registry_id == made.id
            async with client.sandbox(snapshot_id=snapshot.id) as sandbox:
                assert (await sandbox.run(SAY)).stdout == "from a private image\n"
        with pytest.raises(ResourceNotFoundError) as missing:
            await client.create_snapshot("x", "tiny:1", GIB, registry_id="0" * 32)
        assert missing.value.resource_type == "registry"
    async with served(tmp_path, other) as client:
        assert (await client.registries.list()).items == ()
        with pytest.raises(ResourceNotFoundError):
            await client.create_snapshot("x", "tiny:1", GIB, registry_id=made.id)
    assert password_registry.password is not None
    assert password_registry.password not in caplog.text
    secret = password_registry.password.encode()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files and not any(secret in path.read_bytes() for path in files)


def test_embedded_and_blocking(password_registry: Registry, tmp_path: Path) -> None:
    with SandboxClient(mode="embedded", state_dir=tmp_path) as client:
        registries: sandboxrt.Registries = client.registries
        made = registries.create(name="internal", **login(password_registry))
        snapshot = client.create_snapshot("app", "tiny:1", GIB, registry_id=made.id)
        with client.sandbox(snapshot_id=snapshot.id) as sandbox:
            assert sandbox.run(SAY).stdout == "from a private image\n"
        assert registries.update("internal", body_name="renamed").id == made.id
        registries.delete("renamed")
        assert registries.list(name_contains="ren").items == ()
        with pytest.raises(ValueError, match="name"):
            registries.delete("")


def test_embedded_on_asyncio(password_registry: Registry, tmp_path: Path) -> None:
    async def main() -> None:
        async with aio.AsyncSandboxClient(mode="embedded", state_dir=tmp_path) as client:
            made = await client.registries.create(name="internal", **login(password_registry))
            snapshot = await client.create_snapshot("app", "tiny:1", GIB, registry_id=made.id)
            async with await client.sandbox(snapshot_id=snapshot.id) as sandbox:
                assert (await sandbox.run(SAY)).stdout == "from a private image\n"
            assert [item.name for item in (await client.registries.list(page_size=1)).items] == ["internal"]

    asyncio.run(main())


async def test_a_login_that_is_refused_is_named(password_registry: Registry, tmp_path: Path) -> None:
    async with AsyncSandboxClient(mode="embedded", state_dir=tmp_path) as client:
        wrong = {**login(password_registry), "password": "wrong-password"}
        made = await client.registries.create(name="internal", **wrong)
        with pytest.raises(ResourceCreationError) as raised:
            await client.create_snapshot("app", "tiny:1", GIB, registry_id=made.id)
        assert f"Registry 'internal' at {password_registry.address} refused user 'tester'" in str(raised.value)
        assert raised.value.error_type == "ImagePull" and "wrong-password" not in str(raised.value)
        await client.registries.update("internal", password=login(password_registry)["password"])
        assert (await client.create_snapshot("app", "tiny:1", GIB, registry_id=made.id)).status == "ready"


# -- where it never goes ---------------------------------------------------------------------------------------------


@attrs.frozen
class Listener:
    """A web server that notes who came with which credentials."""

    port: int
    seen: list[tuple[str, str | None]]


@contextlib.contextmanager
def listening(*, redirect_to: str | None = None) -> Iterator[Listener]:
    """Ask everybody for a password; whoever has one is sent on."""
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = self.headers.get("Authorization")
            seen.append((self.path, given))
            if given is not None and redirect_to is not None and "/manifests/" in self.path:
                self.send_response(307)
                self.send_header("Location", redirect_to + self.path)
            elif given is not None:
                self.send_response(200)
            else:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815  as the base class calls it

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield Listener(server.server_port, seen)
        finally:
            server.shutdown()
            thread.join(10)


async def test_other_hosts_never_see_it(tmp_path: Path) -> None:
    with listening() as other, listening(redirect_to=f"http://localhost:{other.port}") as own:
        async with AsyncSandboxClient(mode="embedded", state_dir=tmp_path) as client:
            made = await client.registries.create(
                name="internal", url=f"http://127.0.0.1:{own.port}", username="robot", password="secret-word"
            )
            for image in (f"127.0.0.1:{other.port}/app:1", f"localhost:{own.port}/app:1", "oci:/srv/image"):
                with pytest.raises(ValidationError) as raised:
                    await client.create_snapshot("app", image, GIB, registry_id=made.id)
                assert raised.value.field == "docker_image"
                named = (image.partition("/")[0], f"127.0.0.1:{own.port}")
                assert image.startswith("oci:") or all(host in str(raised.value) for host in named)
            assert (own.seen, other.seen) == ([], [])
            # A change of the address does not take the password along.
            with pytest.raises(ValidationError, match="password is required"):
                await client.registries.update("internal", url=f"http://127.0.0.1:{other.port}")
            # Nor does a redirect.
            with pytest.raises(ResourceCreationError):
                await client.create_snapshot("app", "app:1", GIB, registry_id=made.id)
    assert any(given is not None for _, given in own.seen)
    assert other.seen and all(given is None for _, given in other.seen)
