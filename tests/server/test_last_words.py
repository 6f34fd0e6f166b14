"""What a peer said right before its connection broke is heard, also while the server was sending."""

from __future__ import annotations

import socket
import struct

import trio

from sandboxrt.host.attachment import CommandAttachment
from sandboxrt.protocol.exec import Reconnect
from tests.host.conftest import OpenFake

from .dataplane_kit import serve

COMMANDS = 25
FLOOD = "while true; do echo 0123456789012345678901234567890123456789; done"


async def test_a_kill_right_before_a_reset_is_heard(fake_host: OpenFake) -> None:
    """The kill and the reset are there at once when the server looks, and so is the error of its next send."""
    async with fake_host() as (host, _), serve(host) as served:

        async def kill_and_reset(command_id: str) -> None:
            async with served.raw() as (stream, peer):
                await peer.execute(FLOOD, command_id=command_id)
                for _ in range(3):
                    await peer.receive()
                await trio.sleep(0.1)
                text = b'{"type":"kill"}'
                connection: socket.socket = stream.socket._sock  # type: ignore[attr-defined]
                connection.send(bytes((0x81, 0x80 | len(text), 0, 0, 0, 0)) + text)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stream.socket.close()

        async with trio.open_nursery() as nursery:
            for number in range(COMMANDS):
                nursery.start_soon(kill_and_reset, f"c{number}")
        for number in range(COMMANDS):
            link = await host.attach("box", Reconnect(f"c{number}"))
            assert isinstance(link, CommandAttachment)
            with trio.fail_after(5):
                while link._command.outcome is None:
                    await trio.sleep(0.01)
            await link.aclose()
