"""Command sockets, as official clients use them and as no client should."""

from __future__ import annotations

import json

import attrs
import pytest
import trio
import trio_websocket

from sandboxrt.host.command import CommandSettings
from sandboxrt.protocol.exec import Execute, Exit, Reconnect
from sandboxrt.protocol.rest import CreateSandbox
from sandboxrt.server.dataplane import DataPlaneSettings
from sandboxrt.server.exec_ws import SocketSettings
from sandboxrt.testing.conformance import converse
from sandboxrt.testing.fake import FakeEngine, Faults
from tests.host.conftest import OpenFake

from .dataplane_kit import serve, text_of

QUICK = DataPlaneSettings(
    sockets=SocketSettings(first_frame_s=0.3, input_bytes=1024**2, input_stall_s=0.5, send_stall_s=1.0, close_s=1.0),
    max_commands=3,
)


async def test_a_command_starts_speaks_and_exits(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await peer.execute("printf 'h\\303\\251llo\\n'; echo oops >&2; exit 3", command_id="c1")
        frames, code = await peer.to_close()
        assert frames[0] == {"type": "started", "command_id": "c1", "pid": frames[0]["pid"]}
        assert (text_of(frames), text_of(frames, "stderr")) == ("héllo\n", "oops\n")
        assert (frames[-1], code) == ({"type": "exit", "exit_code": 3}, 1000)


async def test_the_transcript_of_the_appendix(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        async with served.raw() as (stream, peer):
            await peer.execute("printf 'h\\303\\251llo\\n'; read x; echo x >&2", command_id="c1")
            assert (await peer.receive())["type"] == "started"
            assert (await peer.receive())["data"] == "héllo\n"
            await trio.aclose_forcefully(stream)
        async with served.connect() as peer:
            await peer.send(type="reconnect", command_id="c1", stdout_offset=3, stderr_offset=0)
            started = await peer.receive()
            assert (started["type"], started["command_id"]) == ("started", "c1")
            await peer.send(type="input", data="go\n")
            frames, code = await peer.to_close()
            assert text_of(frames, start=3) == "llo\n"
            assert text_of(frames, "stderr") == "x\n"
            assert (frames[-1]["exit_code"], code) == (0, 1000)


async def test_a_repeated_start_attaches(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        for _ in range(3):
            async with served.connect() as peer:
                await peer.execute("echo once >> /log; cat /log", command_id="same")
                frames, _code = await peer.to_close()
                assert text_of(frames) == "once\n"


async def test_a_kill_right_before_the_close_is_obeyed(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        for number in range(20):
            async with served.raw() as (stream, peer):
                await peer.execute("sleep 1000", command_id=f"c{number}")
                await peer.receive()
                await peer.send(type="kill")
                await trio.aclose_forcefully(stream)
            async with served.connect() as peer:
                await peer.send(type="reconnect", command_id=f"c{number}")
                frames, _ = await peer.to_close()
                assert frames[-1] == {"type": "exit", "exit_code": 137}


async def test_a_kill_passes_input_that_nobody_reads(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await peer.execute("sleep 1000")
        await peer.receive()
        await peer.send(type="input", data="x" * 900_000)
        await peer.send(type="kill")
        frames, code = await peer.to_close()
        assert (frames, code) == ([{"type": "exit", "exit_code": 137}], 1000)


async def test_input_sent_right_before_the_close_arrives(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        async with served.raw() as (stream, peer):
            await peer.execute("cat; echo end", command_id="c")
            await peer.receive()
            await peer.send(type="input", data="last words\n")
            await peer.send(type="close_stdin")
            await trio.aclose_forcefully(stream)
        async with converse(host, "box", Reconnect("c")) as reader:
            assert (await reader.to_end()).stdout == "last words\nend\n"


async def test_end_of_input_sent_ahead_of_the_reconnect_counts(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        async with served.connect() as peer:
            await peer.execute("cat; echo end", command_id="c")
            await peer.receive()
        async with served.connect() as peer:
            await peer.send(type="close_stdin")
            await peer.send(type="something new")
            await peer.send(type="reconnect", command_id="c")
            frames, _ = await peer.to_close()
            assert text_of(frames) == "end\n"


async def test_leaving_kills_where_the_start_said_so(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        async with served.raw() as (stream, peer):
            await peer.execute("sleep 1000", command_id="c", kill_on_disconnect=True)
            await peer.receive()
            await trio.aclose_forcefully(stream)
        async with converse(host, "box", Reconnect("c")) as reader:
            assert (await reader.to_end()).exit_code == 137


async def test_a_terminal_is_resized_and_its_output_is_one_stream(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await peer.execute("stty size; read x; stty size; echo oops >&2", pty=True, cols=100, rows=30)
        frames = [await peer.receive(), await peer.receive()]
        assert "30 100" in frames[1]["data"]
        await peer.send(type="resize", cols=120, rows=40)
        await peer.send(type="input", data="\n")
        rest, _ = await peer.to_close()
        text = text_of(frames + rest)
        assert "40 120" in text
        assert "oops" in text


@pytest.mark.parametrize(
    ("frame", "error_type"),
    [
        ({"type": "reconnect", "command_id": "nobody"}, "CommandNotFound"),
        ({"type": "execute", "command": "true", "cwd": "/nowhere"}, "CommandError"),
        ({"type": "execute", "command": "sleep 9", "timeout_seconds": 0.05}, "CommandTimeout"),
        ({"type": "execute", "command": "true", "env": {"A": 1}}, "InvalidRequest"),
        ({"type": "execute", "command": "true", "cwd": "/", "run_config": {"user": "root"}}, "InvalidRequest"),
        ({"type": "execute"}, "InvalidRequest"),
        ({"type": "input", "data": "x"}, "ProtocolError"),
        ({"type": "kill"}, "ProtocolError"),
        ({"no": "type"}, "ProtocolError"),
    ],
)
async def test_what_goes_wrong_comes_as_an_error_frame(fake_host: OpenFake, frame: object, error_type: str) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await peer.socket.send_message(json.dumps(frame))
        frames, code = await peer.to_close()
        assert frames[-1]["type"] == "error"
        assert frames[-1]["error_type"] == error_type
        assert set(frames[-1]) == {"type", "error", "error_type"}
        assert code == (1002 if error_type in ("InvalidRequest", "ProtocolError") else 1000)


async def test_an_expired_session_says_so(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        async with served.connect() as peer:
            await peer.execute("true", command_id="c", ttl_seconds=0.05)
            await peer.to_close()
        await trio.sleep(0.3)
        async with served.connect() as peer:
            await peer.send(type="reconnect", command_id="c")
            frames, _ = await peer.to_close()
            assert frames == [{"type": "error", "error": "Session expired: c", "error_type": "SessionExpired"}]


@pytest.mark.parametrize(("message", "code"), [(b"\0\1", 1003), ("{", 1002), ("[]", 1002)])
@pytest.mark.parametrize("attached", [False, True])
async def test_what_is_no_frame_ends_the_socket_only(
    fake_host: OpenFake, message: bytes | str, code: int, attached: bool
) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        async with served.connect() as peer:
            if attached:
                await peer.execute("read x; echo $x", command_id="c")
                await peer.receive()
            await peer.socket.send_message(message)
            frames, closed = await peer.to_close()
            assert [frame["error_type"] for frame in frames] == ["ProtocolError"]
            assert closed == code
        if attached:
            async with served.connect() as peer:
                await peer.send(type="reconnect", command_id="c")
                await peer.send(type="input", data="alive\n")
                frames, _ = await peer.to_close()
                assert text_of(frames) == "alive\n"


async def test_a_second_start_on_one_socket_is_refused(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await peer.execute("sleep 1000")
        await peer.execute("echo two")
        frames, code = await peer.to_close()
        assert frames[-1]["error_type"] == "ProtocolError"
        assert "first frame" in frames[-1]["error"]
        assert code == 1002


async def test_a_socket_that_says_nothing_is_closed(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host, QUICK) as served, served.connect() as peer:
        with trio.fail_after(5):
            frames, code = await peer.to_close()
        assert [frame["error_type"] for frame in frames] == ["ProtocolError"]
        assert code == 1008


async def test_a_silent_command_is_not_given_up(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host, QUICK) as served, served.connect() as peer:
        await peer.execute("sleep 1.5; echo late")
        frames, _ = await peer.to_close()
        assert text_of(frames) == "late\n"


async def test_input_that_nobody_reads_for_long_ends_the_socket_only(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host, QUICK) as served, served.connect() as peer:
        await peer.execute("sleep 1000", command_id="c")
        for _ in range(30):
            await peer.send(type="input", data="x" * 100_000)
        with trio.fail_after(10):
            frames, _ = await peer.to_close()
        assert frames[-1]["error_type"] == "InputStalled"


async def test_the_input_of_all_sockets_together_is_bounded(fake_host: OpenFake) -> None:
    bounds = DataPlaneSettings(sockets=SocketSettings(input_stall_s=0.5), input_bytes=1024**2)
    async with fake_host() as (host, _), serve(host, bounds) as served:
        async with served.connect() as one, served.connect() as two, served.connect() as three:
            for peer in (one, two):
                await peer.execute("sleep 1000")
                await peer.send(type="input", data="x" * 900_000)
                await peer.send(type="input", data="x" * 900_000)
            frames, _ = await two.to_close()
            assert frames[-1]["error_type"] == "InputStalled"
            await three.execute("cat; echo end", close_stdin=False)
            await three.send(type="input", data="passes by\n")
            await three.send(type="close_stdin")
            frames, _ = await three.to_close()
            assert text_of(frames) == "passes by\nend\n"
        with trio.fail_after(10):
            while served.plane._input_budget.used:
                await trio.sleep(0.01)


async def test_the_number_of_sockets_of_a_sandbox_is_bounded(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host, QUICK) as served:
        async with served.connect() as one, served.connect() as two, served.connect():
            await one.execute("sleep 1000")
            await two.execute("sleep 1000")
            with pytest.raises(trio_websocket.ConnectionRejected) as caught:
                async with served.connect():
                    pytest.fail("a fourth socket was accepted")
            assert caught.value.status_code == 429
            assert dict(caught.value.headers)[b"retry-after"] == b"1"
        await trio.sleep(0.5)
        async with served.connect() as peer:
            await peer.execute("echo again")
            assert text_of((await peer.to_close())[0]) == "again\n"


async def test_an_unknown_sandbox_and_one_that_is_not_ready_refuse_the_handshake(fake_host: OpenFake) -> None:
    engine = FakeEngine(faults=Faults(create_delay_s=30))
    async with fake_host(engine=engine, box=False) as (host, _), serve(host) as served:
        await host.create_sandbox(CreateSandbox(name="box", wait_for_ready=False))
        for sandbox, status, error in (("nobody", 404, "NotFound"), ("box", 400, "NotReady")):
            with pytest.raises(trio_websocket.ConnectionRejected) as caught:
                async with served.connect(sandbox):
                    pytest.fail("it was accepted")
            assert caught.value.status_code == status
            assert caught.value.body is not None
            assert json.loads(caught.value.body)["detail"]["error"] == error


async def test_a_sandbox_that_is_not_ready_refuses_requests(fake_host: OpenFake) -> None:
    engine = FakeEngine(faults=Faults(create_delay_s=30))
    async with fake_host(engine=engine, box=False) as (host, _), serve(host) as served:
        await host.create_sandbox(CreateSandbox(name="box", wait_for_ready=False))
        for method, path, body in (
            ("POST", "/execute", {"command": "true"}),
            ("POST", "/execute/stream/start", {"command": "true"}),
            ("POST", "/execute/stream/resume", {"command_id": "c"}),
            ("POST", "/upload?path=/f", {}),
            ("GET", "/download?path=/f", None),
            ("POST", "/glob", {"pattern": "*", "path": "/"}),
            ("POST", "/grep", {"pattern": "x", "path": "/"}),
        ):
            answer = await served.http.request(method, f"/box/box{path}", json=body)
            assert (answer.status_code, answer.json()["detail"]["error"]) == (400, "NotReady"), path


async def test_a_kill_is_obeyed_while_output_floods_a_connection_that_breaks(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        for number in range(20):
            async with served.raw() as (stream, peer):
                await peer.execute("while true; do echo 0123456789; done", command_id=f"c{number}")
                for _ in range(3):
                    await peer.receive()
                await peer.send(type="kill")
                if number % 2:
                    await trio.sleep(0.01)
                await trio.aclose_forcefully(stream)
            async with converse(host, "box", Reconnect(f"c{number}")) as reader:
                with trio.fail_after(5):
                    while not isinstance(frame := await reader.link.receive(), Exit):
                        pass
                assert frame.exit_code == 137


async def test_a_peer_that_does_not_read_stalls_nobody(fake_host: OpenFake) -> None:
    settings = CommandSettings(replay_memory_bytes=100_000, replay_spill_bytes=50_000_000)
    async with fake_host(command=settings) as (host, _), serve(host) as served, served.raw() as (stream, peer):
        await peer.execute("head -c 20000000 /dev/zero; echo done", command_id="c")
        await peer.receive()
        # From here on nothing takes what comes; the buffers of TCP fill up.
        with trio.fail_after(20):
            async with converse(host, "box", Reconnect("c")) as reader:
                outcome = await reader.to_end()
        assert (len(outcome.stdout), outcome.exit_code) == (20_000_005, 0)
        await trio.aclose_forcefully(stream)


async def test_a_peer_that_does_not_read_for_long_is_detached(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host, send_stall_s=0.5) as served:
        async with served.raw() as (_stream, peer):
            # More than the buffers of TCP and of the peer's library take.
            await peer.execute("head -c 30000000 /dev/zero; sleep 1000", command_id="c", kill_on_disconnect=True)
            await peer.receive()
            with trio.fail_after(10):
                while "1 requests" in repr(served.plane):
                    await trio.sleep(0.01)
        async with converse(host, "box", Reconnect("c", 30_000_000)) as reader:
            assert (await reader.to_end()).exit_code == 137


async def test_input_offsets_survive_a_reconnect(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        async with served.raw() as (stream, peer):
            await peer.execute("cat; echo end", command_id="c", ext={"input_id": "me"})
            assert (await peer.receive())["ext"] == {"input_offset": 0}
            await peer.send(type="input", data="hello ", offset=0)
            frames = [await peer.receive(), await peer.receive()]
            assert {"type": "input_ack", "offset": 6} in frames
            await trio.aclose_forcefully(stream)
        async with served.connect() as peer:
            await peer.send(type="reconnect", command_id="c", ext={"input_id": "me"})
            assert (await peer.receive())["ext"] == {"input_offset": 6}
            await peer.send(type="input", data="hello world\n", offset=0)
            await peer.send(type="close_stdin")
            frames, _ = await peer.to_close()
            assert text_of(frames) == "hello world\nend\n"
        async with served.connect() as peer:
            await peer.send(type="reconnect", command_id="c")
            frames, _ = await peer.to_close()
            assert "ext" not in frames[0]


async def test_a_gap_in_the_input_is_an_error(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await peer.execute("cat", ext={"input_id": "me"})
        await peer.send(type="input", data="x", offset=5)
        frames, code = await peer.to_close()
        assert (frames[-1]["error_type"], code) == ("InvalidOffset", 1000)


async def test_lost_output_is_told_and_never_spliced(fake_host: OpenFake) -> None:
    settings = attrs.evolve(CommandSettings(), replay_memory_bytes=100_000, replay_spill_bytes=300_000)
    async with fake_host(command=settings) as (host, _), serve(host) as served:
        async with converse(host, "box", Execute(command="head -c 2000000 /dev/zero", command_id="lost")) as reader:
            await reader.to_end()
        async with served.connect() as peer:
            await peer.send(type="reconnect", command_id="lost", ext={"input_id": "me"})
            frames, code = await peer.to_close()
        assert [frame["type"] for frame in frames] == ["started", "error"]
        assert frames[1]["error_type"] == "ReadOffsetUnavailable"
        assert frames[1]["stream"] == "stdout"
        assert frames[1]["first_offset"] > 0
        assert code == 1000


async def test_a_stopping_server_closes_with_1012(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await peer.execute("sleep 1000")
        await peer.receive()
        served.plane.stopping.set()
        assert await peer.to_close() == ([], 1012)


async def test_a_ping_is_answered_while_a_command_runs(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await peer.execute("sleep 1000")
        await peer.receive()
        with trio.fail_after(2):
            await peer.socket.ping(b"there?")


async def test_compression_is_declined(fake_host: OpenFake) -> None:
    offer = (
        b"GET /box/box/execute/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
    )
    async with fake_host() as (host, _), serve(host) as served:
        stream = await trio.open_tcp_stream("127.0.0.1", served.port)
        await stream.send_all(offer)
        with trio.fail_after(5):
            answer = await stream.receive_some(4096)
        await trio.aclose_forcefully(stream)
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in answer.lower()
