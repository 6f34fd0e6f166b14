"""The gateway over a host with the fake engine: an embedded client's own port, lives of sandboxes, bounds."""

from __future__ import annotations

import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import h11
import httpx
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrt.errors import ResourceNotFoundError
from sandboxrt.gateway.exchange import Exchange, ExchangeLimits
from sandboxrt.gateway.front import Front
from sandboxrt.gateway.gateway import Gateway, GatewaySettings
from sandboxrt.gateway.headers import View
from sandboxrt.gateway.links import FixedKeys, Links
from sandboxrt.gateway.local import LocalServices, _Wire
from sandboxrt.gateway.refusals import RefusalError
from sandboxrt.host.connections import ConnectionSettings, PortRules
from sandboxrt.host.host import Host
from sandboxrt.protocol.exec import Execute
from sandboxrt.protocol.rest import CreateDownloadLink, UpdateSandbox
from sandboxrt.protocol.service_urls import ServiceSite
from sandboxrt.protocol.tokens import TokenKey
from sandboxrt.testing.conformance import converse
from tests.host.conftest import OpenFake, fake_host
from tests.host.test_connections import listening

__all__ = ["fake_host"]

TOKEN = "X-Langsmith-Sandbox-Service-Token"


@asynccontextmanager
async def linked(host: Host, port: int = 80) -> AsyncIterator[tuple[LocalServices, httpx.AsyncClient]]:
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(LocalServices.open(host))
        links = await services.links()
        grant = await links.service((await host.get_sandbox("box")).id, "", port, 600)
        client = httpx.AsyncClient(base_url=grant.service_url, headers={TOKEN: grant.token})
        yield services, await stack.enter_async_context(client)


async def test_an_embedded_clients_own_port(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), listening(host, 80, "http"), linked(host) as (services, client):
        answer = await client.get("/x?y")
        assert answer.status_code == 200
        assert answer.text.startswith("GET /x?y HTTP/1.1\r\n")
        assert "token" not in answer.text.lower()
        again = await (await services.links()).service((await host.get_sandbox("box")).id, "", 80, 600)
        assert again.service_url == str(client.base_url), "one port for all links of a client"
        assert (await client.get("/", headers={TOKEN: "x"})).status_code == 401
        async with httpx.AsyncClient() as stranger:
            root = str(client.base_url.join("/"))
            for path in ("", "v2/sandboxes/boxes", "api/v2/sandboxes/svc/x/80/"):
                assert (await stranger.get(root + path)).status_code == 404
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("content", [None, b"x" * 40, bytes(8 * 1024**2)], ids=["none", "short", "long"])
async def test_an_answer_before_the_request_was_read(fake_host: OpenFake, content: bytes | None) -> None:
    async with fake_host() as (host, _), listening(host, 80, "early"), linked(host) as (_, client):
        for _ in range(10):
            answer = await client.request("GET" if content is None else "POST", "/", content=content)
            assert (answer.status_code, answer.text) == (413, "no more, thank you")


async def test_a_visitor_who_sends_everything_first(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _), listening(host, 80, "early"), gated(host) as (gateway, head):
        more = 40 * 1024**2
        talker = Talker(f"{head}Content-Length: {more}\r\n\r\n".encode(), more)
        with trio.fail_after(3600):
            await talker.served_by(gateway)
        assert talker.got.startswith(b"HTTP/1.1 413 ")
        assert b"no more, thank you" in talker.got


async def test_a_refusal_reaches_who_sends_everything_first(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), linked(host) as (_, client):
        url = client.base_url
        assert url.port is not None
        async with await trio.open_tcp_stream("127.0.0.1", url.port) as visitor:
            assert (await refused(visitor, url.path)).startswith(b"HTTP/1.1 401 ")


async def refused(visitor: trio.abc.Stream, path: str, size: int = 40 * 1024**2) -> bytes:
    """What is answered to a large request without a token, by the time that all of it was sent."""
    await visitor.send_all(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
    with trio.fail_after(60):
        for _ in range(0, size, 65536):
            await visitor.send_all(bytes(65536))
        return b"".join([bytes(piece) async for piece in visitor])


async def test_what_a_user_has_stopped_stays_stopped(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), linked(host) as (_, client):
        await host.stop_sandbox("box")
        answer = await client.get("/")
        assert answer.status_code == 503
        assert answer.json()["detail"]["message"].startswith("Service is not reachable: Sandbox 'box' is not ready")
        assert (await host.get_sandbox("box")).status == "stopped"
        await host.start_sandbox("box")
        assert (await client.get("/")).status_code == 502
        await host.delete_sandbox("box")
        assert (await client.get("/")).status_code == 404


async def test_ports_that_the_host_excludes(fake_host: OpenFake) -> None:
    settings = ConnectionSettings(ports=PortRules.parse("8000"))
    async with fake_host(connections=settings) as (host, _), linked(host) as (_, client):
        answer = await client.get("/")
        assert answer.status_code == 403
        assert answer.json()["detail"]["message"].startswith("Service is not reachable: Port 80 may not be reached")


async def test_a_download_link(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), linked(host) as (services, _):

        async def content() -> AsyncIterator[bytes]:
            yield b"0123456789"

        await host.write_file("box", "/srv/data.txt", content())
        links = await services.links()
        box = (await host.get_sandbox("box")).id
        made = await links.download(box, "", CreateDownloadLink(path="/srv/data.txt", expires_in_seconds=60))
        url = httpx.URL(made.download_url)
        assert url.host == "127.0.0.1"
        last = {"Range": "bytes=-3"}
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(url, headers=last)
            assert (answer.status_code, answer.text) == (206, "789")
            whole = await trio.to_thread.run_sync(lambda: urllib.request.urlopen(made.download_url, timeout=10).read())
            assert whole == b"0123456789"
            # The same file on its own origin.
            host = {"Host": f"dl--{box}.localhost:{url.port}"}
            answer = await client.get(
                f"http://127.0.0.1:{url.port}/srv/data.txt?{url.query.decode()}", headers=host | last
            )
            assert (answer.status_code, answer.text) == (206, "789")


class Visitor:
    """A client without a socket."""

    def __init__(self, request: bytes) -> None:
        self.incoming = trio.testing.MemoryReceiveStream()
        self.incoming.put_data(request)
        self.got = b""
        self.connection = h11.Connection(h11.SERVER)
        self.front = Front(self.connection, self._receive, self._send, self._end, "192.0.2.1")

    async def _receive(self) -> bytes:
        return bytes(await self.incoming.receive_some(65536))

    async def _send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.got += data

    async def _end(self) -> None:
        await trio.lowlevel.checkpoint()

    async def served_by(self, gateway: Gateway) -> bool:
        request = await self.front.event(10)
        target = gateway.target_of(request)
        assert target is not None
        return await gateway.serve(self.front, request, target)


class Talker(Visitor):
    """A client that takes nothing of an answer before it has sent all of its request."""

    def __init__(self, request: bytes, more: int) -> None:
        super().__init__(request)
        self.left = more
        self.said = trio.Event()

    async def _receive(self) -> bytes:
        if self.connection.their_state is h11.IDLE or not self.left:
            return await super()._receive()
        await trio.lowlevel.checkpoint()
        piece = min(self.left, 65536)
        self.left -= piece
        if not self.left:
            self.said.set()
        return bytes(piece)

    async def _send(self, data: bytes) -> None:
        await self.said.wait()
        await super()._send(data)


@asynccontextmanager
async def gated(host: Host, **settings: object) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway, and the head of a request to port 80 that lacks its end."""
    site = ServiceSite(base_url="http://127.0.0.1:1", domain="localhost", port=1)
    keys = FixedKeys(TokenKey("k", bytes(32)))
    box = (await host.get_sandbox("box")).id
    grant = await Links(site, keys).service(box, "", 80, 600)
    path = grant.service_url.removeprefix("http://127.0.0.1:1")
    yield (
        Gateway(host, site, keys, GatewaySettings(**settings)),
        (  # type: ignore[arg-type]
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:1\r\n{TOKEN}: {grant.token}\r\n"
        ),
    )


async def test_requests_keep_a_sandbox_alive_and_none_lets_it_go(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with fake_host() as (host, _), gated(host) as (gateway, head):
        await host.update_sandbox("box", UpdateSandbox(idle_ttl_seconds=60))
        # In the background, so that no command of the host's runs.
        async with converse(host, "box", Execute(command="listen 80 mute & listen 81 http & sleep 1")) as reader:
            await reader.until("listening\nlistening")
        await trio.sleep(2)
        visitor = Visitor(f"{head}Content-Length: 0\r\n\r\n".encode())
        with trio.move_on_after(500):  # one long request
            await visitor.served_by(gateway)
        assert visitor.got == b""
        for _ in range(5):  # many short ones
            await trio.sleep(50)
            visitor = Visitor(f"{head}Content-Length: 0\r\n\r\n".encode())
            with trio.move_on_after(1):
                await visitor.served_by(gateway)
        await trio.sleep(55)
        assert (await host.get_sandbox("box")).status == "ready"
        await trio.sleep(10)
        with pytest.raises(ResourceNotFoundError):
            await host.get_sandbox("box")


async def test_slow_sides_are_given_up(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    limits = ExchangeLimits(body_stall_s=20, answer_s=30)
    async with fake_host() as (host, _), listening(host, 80, "mute"), gated(host, exchange=limits) as (gateway, head):
        start = trio.current_time()
        silent = Visitor(f"{head}Content-Length: 5\r\n\r\nab".encode())
        assert not await silent.served_by(gateway)
        assert trio.current_time() - start == pytest.approx(20, abs=1)
        start = trio.current_time()
        patient = Visitor(f"{head}Content-Length: 0\r\n\r\n".encode())
        assert await patient.served_by(gateway)
        assert patient.got.startswith(b"HTTP/1.1 504 ")
        assert b"Service is not reachable: no answer in 30 s" in patient.got
        assert trio.current_time() - start == pytest.approx(30, abs=1)


async def test_a_service_that_takes_nothing(fake_host: OpenFake, autojump_clock: trio.testing.MockClock) -> None:
    limits = ExchangeLimits(take_stall_s=10, answer_s=30)
    async with fake_host() as (host, _), listening(host, 80, "mute"), gated(host, exchange=limits) as (gateway, head):
        start = trio.current_time()
        visitor = Visitor(f"{head}Content-Length: 100000000\r\n\r\n".encode() + bytes(8 * 1024**2))
        assert not await visitor.served_by(gateway)
        assert visitor.got.startswith(b"HTTP/1.1 504 ")
        assert trio.current_time() - start == pytest.approx(32, abs=3)


async def test_one_sandbox_has_so_many_requests_at_once(
    fake_host: OpenFake, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        fake_host() as (host, _),
        listening(host, 80, "mute"),
        gated(host, max_requests=3, exchange=ExchangeLimits(answer_s=10)) as (gateway, head),
    ):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(Visitor(f"{head}Content-Length: 0\r\n\r\n".encode()).served_by, gateway)
            await trio.testing.wait_all_tasks_blocked()
            refused = Visitor(f"{head}Content-Length: 0\r\n\r\n".encode())
            assert await refused.served_by(gateway)
            assert refused.got.startswith(b"HTTP/1.1 429 ")
            nursery.cancel_scope.cancel()
        # Those that were cancelled have given their places back.
        later = Visitor(f"{head}Content-Length: 0\r\n\r\n".encode())
        await later.served_by(gateway)
        assert later.got.startswith(b"HTTP/1.1 504 ")


async def test_a_visitor_who_leaves_ends_its_request(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), listening(host, 80, "mute"), gated(host) as (gateway, head):
        visitor = Visitor(f"{head}Content-Length: 0\r\n\r\n".encode())
        visitor.incoming.put_eof()
        with trio.fail_after(5):
            assert not await visitor.served_by(gateway)
        assert visitor.got == b""


@pytest.mark.parametrize("target", ["http://elsewhere/", "*"])
async def test_targets_that_name_no_path(fake_host: OpenFake, target: str) -> None:
    async with fake_host() as (host, _), gated(host) as (gateway, _):
        box = (await host.get_sandbox("box")).id
        visitor = Visitor(f"GET {target} HTTP/1.1\r\nHost: 80--{box}.localhost\r\n\r\n".encode())
        assert await visitor.served_by(gateway)
        assert visitor.got.startswith(b"HTTP/1.1 400 ")


class Answering:
    """A service that says what it was told, whatever it is asked."""

    def __init__(self, answer: list[bytes]) -> None:
        self._answer = answer
        self.got = b""

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.got += data

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._answer.pop(0) if self._answer else b""


_PARTS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 204 \r\n",
        b"HTTP/1.1 101 x\r\n",
        b"HTTP/1.1 100 \r\n\r\n",
        b"HTTP/1.1 304 x\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Location: http://[\r\n",
        b"Set-Cookie: ;;=\r\n",
        b"\r\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
    ]
)


@settings(max_examples=300)
@given(st.lists(_PARTS | st.binary(max_size=20), max_size=8), st.sampled_from(["GET", "HEAD", "POST"]))
def test_any_answer_is_passed_on_or_refused(answer: list[bytes], method: str) -> None:
    async def run() -> None:
        visitor = Visitor(f"{method} / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi".encode())
        visitor.front.is_head = method == "HEAD"
        back = Answering([piece for piece in answer if piece])
        exchange = Exchange(
            visitor.front,
            back,
            await visitor.front.event(1),
            target="/",
            view=View(scheme="http", host="x", prefix="/p", port=80, peer="192.0.2.1"),
            limits=ExchangeLimits(),
            stopping=trio.Event(),
        )
        try:
            with trio.fail_after(10):
                await exchange.run()
        except RefusalError as refusal:
            assert refusal.status == 502
            assert not visitor.front.started
        else:
            assert visitor.got.startswith(b"HTTP/1.1 ")
        assert back.got.startswith(f"{method} / HTTP/1.1\r\n".encode())

    trio.run(run)


async def test_both_tasks_of_an_exchange_may_send() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()[:2]
    answer, invitation = bytes(16 * 1024**2), b"HTTP/1.1 100 Continue\r\n\r\n"
    got = bytearray()
    async with listener, await trio.open_tcp_stream(host, port) as client, await listener.accept() as stream:
        wire = _Wire(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wire.send, answer)  # more than the kernel takes
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(wire.send, invitation)
            with trio.fail_after(20):
                while len(got) < len(answer + invitation):
                    got += await client.receive_some(1024**2)
    assert got == answer + invitation
