"""One command socket for one command after another: between our own ends only, within bounds, and at nobody's cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from sandboxrt import AsyncSandboxClient
from sandboxrt.errors import SandboxClientError
from sandboxrt.protocol.rest import UpdateSandbox
from sandboxrt.server.app import AppSettings
from sandboxrt.server.dataplane import DataPlaneSettings
from sandboxrt.server.limits import KeyLimits
from sandboxrt.server.resting import RestingSettings
from tests.host.conftest import OpenFake

from .app_kit import API, Site, site
from .dataplane_kit import Peer, serve, text_of

EXT = {"input_id": "i", "reuse": True}


def client_of(served: Site) -> AsyncSandboxClient:
    return AsyncSandboxClient(api_endpoint=f"{served.server.url}{API}", api_key=served.secret)


def handshakes(served: Site) -> int:
    """How many command sockets there were, those that are open included."""
    ended = [line for line in served.server.app.metrics.render().splitlines() if 'total{method="WEBSOCKET"' in line]
    return sum(int(line.rpartition(" ")[2]) for line in ended) + served.server.app.metrics.open["websocket"]


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(10):
        while not condition():
            await trio.sleep(0.01)


async def one(peer: Peer, command: str, **fields: object) -> list[dict[str, object]]:
    """The frames of a command, to its exit."""
    await peer.execute(command, ext=EXT, **fields)
    frames = []
    while not frames or frames[-1]["type"] != "exit":
        frames.append(await peer.receive())
    return frames


async def test_a_socket_serves_one_command_after_another(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        for number in range(5):
            frames = await one(peer, f"echo {number}; exit {number}", command_id=f"c{number}")
            assert frames[0]["command_id"] == f"c{number}"
            assert text_of(frames) == f"{number}\n"
            assert frames[-1] == {"type": "exit", "exit_code": number, "reuse_s": 30}
        await peer.send(type="reconnect", command_id="c3")
        frames, code = await peer.to_close()
        assert (text_of(frames), frames[-1], code) == ("3\n", {"type": "exit", "exit_code": 3}, 1000)


async def test_what_comes_late_for_a_command_harms_the_next_one_not(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await one(peer, "true")
        for late in ("kill", "close_stdin", "something new"):
            await peer.send(type=late)
        await peer.send(type="input", data="late", offset=0)
        await peer.send(type="resize", cols=1, rows=1)
        await peer.execute("read x; echo got $x", ext={**EXT, "input_id": "j"})
        await peer.receive()
        await peer.send(type="input", data="mine\n", offset=0)
        frames = []
        while not frames or frames[-1]["type"] != "exit":
            frames.append(await peer.receive())
        assert (text_of(frames), frames[-1]["exit_code"]) == ("got mine\n", 0)


async def test_a_socket_that_rests_counts_as_nothing(fake_host: OpenFake) -> None:
    settings = DataPlaneSettings(max_commands=1)
    async with fake_host() as (host, _), serve(host, settings) as served, served.connect() as first:
        await host.update_sandbox("box", UpdateSandbox(idle_ttl_seconds=600))
        await one(first, "true")
        assert len(served.plane.resting) == 1
        assert (await host.get_sandbox("box")).expires_at is not None, "an idle sandbox has an end"
        async with served.connect() as second:
            await second.execute("sleep 1000", command_id="long")
            await second.receive()
            # There is no room for it now, which the next handshake says in full.
            await first.execute("echo never", ext=EXT)
            assert await first.to_close() == ([], 1013)
            await second.send(type="kill")
            await second.to_close()


async def test_as_many_rest_as_may(fake_host: OpenFake) -> None:
    settings = DataPlaneSettings(resting=RestingSettings(max_per_key=1, idle_s=0.3))
    async with fake_host() as (host, _), serve(host, settings) as served, served.connect() as first:
        await one(first, "true")
        async with served.connect() as second:
            await second.execute("true", ext=EXT)
            frames, code = await second.to_close()
            assert (frames[-1], code) == ({"type": "exit", "exit_code": 0}, 1000)
        assert await first.to_close() == ([], 1000)  # its time is over
        assert len(served.plane.resting) == 0


@pytest.mark.parametrize("ending", ["delete", "stop"])
async def test_the_end_of_a_sandbox_ends_what_rests(fake_host: OpenFake, ending: str) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await one(peer, "true")
        await (host.delete_sandbox("box") if ending == "delete" else host.stop_sandbox("box"))
        assert await peer.to_close() == ([], 1000)


async def test_the_end_of_a_server_is_told_to_what_rests(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served, served.connect() as peer:
        await one(peer, "true")
        served.plane.stopping.set()
        assert await peer.to_close() == ([], 1012)


async def test_leaving_right_after_the_exit(fake_host: OpenFake) -> None:
    async with fake_host() as (host, _), serve(host) as served:
        for _ in range(20):
            async with served.raw() as (stream, peer):
                await one(peer, "true")
                await trio.aclose_forcefully(stream)
        await until(lambda: len(served.plane.resting) == 0)


# -- our client ----------------------------------------------------------------------------------------------------


async def test_commands_of_our_client_share_a_handshake(tmp_path: Path) -> None:
    async with site(tmp_path) as served, client_of(served) as client:
        box = await client.create_sandbox(name="box")
        for number in range(10):
            assert (await box.run(f"echo {number}")).stdout == f"{number}\n"
        assert handshakes(served) == 1
        await (await box.run("sleep 1000", wait=False)).kill()


async def test_two_hundred_commands_at_once_and_again(tmp_path: Path) -> None:
    async with site(tmp_path) as served, client_of(served) as client:
        box = await client.create_sandbox(name="box")
        found: set[str] = set()

        async def run(number: int) -> None:
            found.add((await box.run(f"echo {number}")).stdout)

        for _ in range(3):
            found.clear()
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(run, number)
            assert found == {f"{number}\n" for number in range(200)}
        assert handshakes(served) <= 200


async def test_a_cancelled_command_takes_its_socket_with_it(tmp_path: Path) -> None:
    async with site(tmp_path) as served, client_of(served) as client:
        box = await client.create_sandbox(name="box")
        await box.run("true")
        with trio.move_on_after(0.2):
            await box.run("sleep 1000")
        await until(lambda: served.server.app.metrics.open["websocket"] == 0)
        assert (await box.run("echo fine")).stdout == "fine\n"


async def test_a_server_with_sockets_at_rest_stops_at_once(tmp_path: Path) -> None:
    async with site(tmp_path) as served, client_of(served) as client:
        box = await client.create_sandbox(name="box")
        await box.run("true")
        assert len(served.server.app.dataplane.resting) == 1
        served.server.stopping.set()
        await until(lambda: served.server.app.metrics.open["websocket"] == 0)


async def test_a_closed_client_leaves_nothing(tmp_path: Path) -> None:
    async with site(tmp_path) as served:
        async with client_of(served) as client:
            box = await client.create_sandbox(name="box")
            await box.run("true")
            assert len(served.server.app.dataplane.resting) == 1
        await until(lambda: served.server.app.metrics.open["websocket"] == 0)


async def test_a_revoked_key_is_good_for_no_further_command(tmp_path: Path) -> None:
    async with site(tmp_path) as served, client_of(served) as client:
        box = await client.create_sandbox(name="box")
        await box.run("true")
        for key in await served.keys.list():
            await served.keys.revoke(key.id)
        await trio.sleep(2.1)  # for so long a key is remembered
        with pytest.raises(SandboxClientError, match="was revoked"):
            await box.run("true")


async def test_a_key_that_asks_too_often_is_told_so(tmp_path: Path) -> None:
    limits = KeyLimits(requests_per_s=5, burst=5)
    app = AppSettings(public_url="", default_snapshot="host", key_limits=limits)
    async with site(tmp_path, app=app) as served, client_of(served) as client:
        box = await client.create_sandbox(name="box")
        for number in range(8):  # beyond its burst the client waits as it is told to
            assert (await box.run(f"echo {number}")).stdout == f"{number}\n"
        assert handshakes(served) > 1
