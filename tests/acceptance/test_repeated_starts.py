"""A start whose answer is lost with its server: whoever sends it again, the command runs once."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import attrs
import httpx
import pytest
import trio

from sandboxrt import AsyncSandboxClient, CommandInterruptedError
from tests.conformance.test_oci import leftovers
from tests.interop.clients import Environments
from tests.serving import Serving, serving

pytestmark = [pytest.mark.container, pytest.mark.timeout(240)]


def counted(who: str) -> str:
    return f"echo {who} >> /root/runs; sync; sleep 30"


OFFICIAL = f"""
import sys, warnings
warnings.simplefilter("ignore")
from langsmith.sandbox import SandboxClient
sandbox = SandboxClient(api_endpoint=sys.argv[1], api_key=sys.argv[2]).get_sandbox("box")
try:
    sandbox.run({counted("theirs")!r}, timeout=100)
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}", flush=True)
"""
_BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@attrs.define
class HoldingProxy:
    """Passes connections on, but, while it holds, nothing that a server says of a command's start."""

    port: int
    holds: bool = True
    held: int = 0
    """How many connections had something to hold."""

    async def serve(self, client: trio.SocketStream) -> None:
        with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with client:
                server = await self._reach_server()
                if server is None:
                    # As a reverse proxy does, after which every client may repeat what it has sent.
                    await client.receive_some(65536)
                    await client.send_all(_BAD_GATEWAY)
                    return
                async with server:
                    await self._pass_on(client, server)

    async def _reach_server(self) -> trio.SocketStream | None:
        with trio.move_on_after(25):
            while True:
                try:
                    return await trio.open_tcp_stream("127.0.0.1", self.port)
                except OSError:
                    await trio.sleep(0.1)
        return None

    async def _pass_on(self, client: trio.SocketStream, server: trio.SocketStream) -> None:
        asked = b""

        async def up() -> None:
            nonlocal asked
            with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await client.receive_some(65536):
                    asked = asked if b"/execute/" in asked else data
                    await server.send_all(data)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(up)
            said = held = 0
            with contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await server.receive_some(65536):
                    # The first that is said over a command's WebSocket is only that it is open.
                    if not self.holds or b"/execute/" not in asked or (b"/execute/ws" in asked and not said):
                        await client.send_all(data)
                        said += b"/execute/" in asked
                    else:
                        self.held += not held
                        held = 1
            nursery.cancel_scope.cancel()


@attrs.define
class Site:
    """A server that can be ended and started again behind a proxy."""

    proxy: HoldingProxy
    url: str
    server: Serving
    stack: contextlib.ExitStack

    async def restart(self, *, hard: bool) -> None:
        await trio.to_thread.run_sync(self.server.kill if hard else self.server.stop)
        self.proxy.holds = False
        state_dir, key = self.server.state_dir, self.server.key
        again = serving(state_dir, "--public-url", self.url, port=self.proxy.port, key=key)
        self.server = await trio.to_thread.run_sync(self.stack.enter_context, again)

    def client(self) -> AsyncSandboxClient:
        return AsyncSandboxClient(api_endpoint=f"{self.url}/v2/sandboxes", api_key=self.server.key)


@contextlib.asynccontextmanager
async def site(state_dir: Path) -> AsyncIterator[Site]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        proxy = HoldingProxy(free.getsockname()[1])
    with contextlib.ExitStack() as stack:
        first = serving(state_dir, "--public-url", url, port=proxy.port)
        server = await trio.to_thread.run_sync(stack.enter_context, first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(trio.serve_listeners, proxy.serve, listeners))
            yield Site(proxy, url, server, stack)
            nursery.cancel_scope.cancel()
    assert list(leftovers(state_dir)) == []


async def _restart_when_it_talks(place: Site, client: AsyncSandboxClient, *, hard: bool) -> None:
    box = await client.get_sandbox("box")
    with trio.fail_after(60):
        while (await box.run("test -e /root/talks")).exit_code:
            await trio.sleep(0.1)
    await trio.sleep(0.2)  # what it said before is on its way
    await place.restart(hard=hard)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    told = os.environ.get("SANDBOXRT_TEST_CACHE", "").strip()
    return Environments(Path(told) if told else tmp_path_factory.mktemp("clients")).python("0.15.0")


@pytest.mark.parametrize("hard", [True, False], ids=["killed", "stopped"])
def test_it_runs_once_and_what_is_not_known_is_said(tmp_path: Path, official: Path, hard: bool) -> None:
    said: dict[str, object] = {}

    async def ours(place: Site, client: AsyncSandboxClient) -> None:
        box = await client.get_sandbox("box")
        with pytest.raises(CommandInterruptedError, match=r"is not run again.*not known") as error:
            await box.run(counted("ours"), timeout=100)
        said["ours"] = (error.value.operation, error.value.error_type, error.value.stdout)

    async def by_events(place: Site, client: AsyncSandboxClient) -> None:
        async with httpx.AsyncClient(headers={"X-Api-Key": place.server.key}, timeout=60) as plain:
            url = (await plain.get(f"{place.url}/v2/sandboxes/boxes/box")).json()["dataplane_url"]
            body = {"command": counted("events"), "command_id": "mine"}
            with pytest.raises(httpx.HTTPError):
                async with plain.stream("POST", f"{url}/execute/stream/start", json=body) as stream:
                    await stream.aread()
            answer = None
            with trio.fail_after(60):
                while answer is None or answer.status_code == 502:
                    # Nobody answers while the server starts again, and the proxy says so or hangs up.
                    await trio.sleep(0.2)
                    with contextlib.suppress(httpx.TransportError):
                        answer = await plain.post(f"{url}/execute/stream/start", json=body)
        said["events"] = (answer.status_code, answer.json()["detail"]["error"])

    async def theirs(place: Site, client: AsyncSandboxClient) -> None:
        command = [str(official), "-I", "-c", OFFICIAL, f"{place.url}/api/v2/sandboxes", place.server.key]
        said["theirs"] = (await trio.run_process(command, capture_stdout=True)).stdout.decode()

    async def main() -> None:
        async with site(tmp_path) as place, place.client() as client:
            await client.create_sandbox(name="box")
            async with trio.open_nursery() as nursery:
                for who in (ours, by_events, theirs):
                    nursery.start_soon(who, place, client)
                with trio.fail_after(60):
                    while place.proxy.held < 3:
                        await trio.sleep(0.05)
                await place.restart(hard=hard)
            assert said["ours"] == ("command", "CommandInterrupted", "")
            assert said["events"] == (409, "CommandInterrupted")
            assert str(said["theirs"]).startswith(("Sandbox", "Command")), said["theirs"]
            box = await client.get_sandbox("box")
            if box.status != "ready":
                await box.start()
            ran = (await box.run("sort /root/runs")).stdout
            assert ran == "events\nours\ntheirs\n"
            # What runs when its server ends is told, with all that had come.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(_restart_when_it_talks, place, client, hard=hard))
                with pytest.raises(CommandInterruptedError, match="server that ran it ended") as ended:
                    await box.run("echo had come; echo oh >&2; touch /root/talks; sleep 100", timeout=200)
            assert (ended.value.stdout, ended.value.stderr) == ("had come\n", "oh\n")
            await client.delete_sandbox("box")

    trio.run(main)
