"""A server that cannot be reached: what is wrong is said at once and in words, and waited for where that is right."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.errors import (
    CommandInterruptedError,
    ResourceNotFoundError,
    SandboxAPIError,
    SandboxClientError,
    SandboxConnectionError,
    SandboxConnectTimeoutError,
    SandboxNotReadyError,
)
from sandboxrt.testing.peer import Answer, Peer
from sandboxrt.testing.peer_steps import Accept, Close, Drop, Expect, Refuse, Send, Started


async def free_port() -> int:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    return port


async def failure(endpoint: str) -> SandboxClientError:
    """How the first call of a client fails, which takes no (virtual) time."""
    begun = trio.current_time()
    async with AsyncSandboxClient(api_endpoint=endpoint) as client:
        with pytest.raises(SandboxConnectionError) as raised:
            await client.list_sandboxes()
    assert trio.current_time() - begun < 0.5, "it waited"
    return raised.value


async def test_nobody_listens(clock: MockClock, peer: Peer) -> None:
    port = await free_port()
    error = await failure(f"http://127.0.0.1:{port}/v2/sandboxes")
    assert isinstance(error, SandboxConnectTimeoutError)
    assert "Connection refused" in str(error) and "`sandboxrt serve` running there" in str(error)
    assert f"127.0.0.1:{port}" in str(error)


async def test_the_name_does_not_resolve(clock: MockClock, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await failure("http://no-such-host.invalid:8080/v2/sandboxes")
    assert "'no-such-host.invalid:8080' does not resolve (Name or service not known" in str(error)


async def test_https_against_http(clock: MockClock, peer: Peer) -> None:
    error = await failure(peer.endpoint.replace("http://", "https://"))
    assert f"127.0.0.1:{peer.port} does not speak TLS" in str(error)
    assert f"is it http://127.0.0.1:{peer.port}?" in str(error)


async def test_http_against_https(clock: MockClock, peer: Peer, tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-out", str(tmp_path / "pem"), "-keyout", str(tmp_path / "key")],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem", tmp_path / "key")

    async def shake_hands(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(0, context, host="127.0.0.1")
        port = listeners[0].transport_listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, shake_hands, listeners)
        error = await failure(f"http://127.0.0.1:{port}/v2/sandboxes")
        nursery.cancel_scope.cancel()
    assert f"127.0.0.1:{port} speaks TLS: use https://127.0.0.1:{port}" in str(error)


async def test_a_server_that_was_there_is_waited_for(clock: MockClock, peer: Peer) -> None:
    """It restarts."""
    port = await free_port()

    async def answer_once(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")

    async with AsyncSandboxClient(api_endpoint=f"http://127.0.0.1:{port}", max_retries=2) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_tcp, answer_once, port)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await client.list_sandboxes() == []
            nursery.cancel_scope.cancel()
        begun = trio.current_time()
        with pytest.raises(SandboxConnectTimeoutError, match=r"Connection refused.*after 3 attempts"):
            await client.list_sandboxes()
        assert 3 <= trio.current_time() - begun <= 5.1


async def test_an_endpoint_without_the_path_of_the_api(clock: MockClock, peer: Peer) -> None:
    right = rf"a sandboxrt server's is at http://127\.0\.0\.1:{peer.port}/v2/sandboxes$"
    for endpoint in (peer.url, f"{peer.url}/sandbox"):
        for method, path in (("GET", "/boxes"), ("POST", "/boxes"), ("GET", "/boxes/x"), ("GET", "/sandbox/boxes")):
            peer.answer(method, path, *[Answer(404, "<html>no such page</html>")] * 2)
        async with AsyncSandboxClient(api_endpoint=endpoint) as client:
            if endpoint == peer.url:
                with pytest.raises(SandboxAPIError, match=right):
                    await client.create_sandbox()
                with pytest.raises(SandboxAPIError, match=right):
                    await client.get_sandbox("x")
            with pytest.raises(SandboxAPIError, match=right):
                await client.list_sandboxes()


async def test_an_endpoint_of_another_form_that_serves_the_api(clock: MockClock, peer: Peer) -> None:
    """What is not found there is just not found."""
    async with AsyncSandboxClient(api_endpoint=peer.url) as client:
        await client.create_sandbox(name="box")
        with pytest.raises(ResourceNotFoundError, match=r"^Sandbox 'other' not found$"):
            await client.get_sandbox("other")


async def test_a_sandbox_that_is_gone_is_told_at_once(clock: MockClock, box: AsyncSandbox, peer: Peer) -> None:
    gone = {"detail": {"error": "NotFound", "message": f"Sandbox '{box.id}' not found", "resource_type": "sandbox"}}
    begun = trio.current_time()
    peer.script(Refuse(404, gone))
    with pytest.raises(ResourceNotFoundError, match=r"^Sandbox 'box' not found$"):
        await box.run("x")
    peer.script(Accept(), Started(), Drop())
    peer.script(Refuse(404, gone))
    # What ran in it ended with it.
    with pytest.raises(CommandInterruptedError, match=r"Sandbox '.*' not found \[SandboxDeleted\]$"):
        await box.run("x")
    assert trio.current_time() - begun < 2
    assert not peer.asked("POST", "/execute")


async def test_a_page_that_a_proxy_has_not_found_says_nothing_of_the_sandbox(
    clock: MockClock, box: AsyncSandbox, peer: Peer
) -> None:
    peer.script(Accept(), Started(), Drop())
    peer.script(Refuse(404, "default backend"))
    peer.script(Accept(), Expect("reconnect"), Send({"type": "exit", "exit_code": 3}), Close())
    assert (await box.run("x")).exit_code == 3


async def test_what_to_do_with_a_sandbox_that_is_not_ready(
    clock: MockClock, client: AsyncSandboxClient, peer: Peer
) -> None:
    for status, message, hint in (
        ("provisioning", None, ": wait_for_sandbox() waits until it is"),
        ("failed", "no such image", ": no such image"),
        ("deleting", None, ""),
    ):
        peer.box(name="box", status=status, status_message=message, dataplane_url=None)
        with pytest.raises(SandboxNotReadyError) as raised:
            await (await client.get_sandbox("box")).read("/x")
        assert str(raised.value) == f"Sandbox 'box' is not ready (status: {status}){hint}"
