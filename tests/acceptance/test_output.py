"""10 MiB of awkward output: byte-exact offsets, in every form of the client."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxrt import AsyncSandboxClient

pytestmark = pytest.mark.container

WRITER = r"""
import os, random
random.seed(7)
whole = ("x" * (3 << 20) + "\n").encode()                      # one line of 3 MiB
whole += "héllo wörld ✓ 🎉\n".encode() * 100_000               # characters of two, three and four bytes
whole += b"\xff\xfe broken \xe2\x82 tail \xf0\x9f\x98\n" * 80_000
whole += bytes(random.choices(range(256), k=10 * 2**20 - len(whole) - 1)) + b"\xe2"  # ends inside a character
assert len(whole) == 10 * 2**20
open("/home/user/expected", "wb").write(whole)
position = 0
while position < len(whole):                                   # cut anywhere, inside characters too
    position += os.write(1, whole[position : position + random.randrange(1, 70_000)])
"""


@pytest.mark.timeout(120)
async def test_ten_mebibytes_with_everything_awkward(state_dir: Path) -> None:
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client, client.sandbox() as sandbox:
        await sandbox.write("/home/user/writer.py", WRITER)
        handle = await sandbox.run("python3 /home/user/writer.py", timeout=60, wait=False)
        position = 0
        pieces = []
        async for chunk in handle:
            assert chunk.stream == "stdout", chunk.data
            assert chunk.offset == position
            encoded = chunk.data.encode()
            assert 0 < len(encoded) <= 65536
            position += len(encoded)
            pieces.append(chunk.data)
        result = await handle.result
        expected = (await sandbox.read("/home/user/expected")).decode(errors="replace")

        assert result.exit_code == 0, result.stderr
        assert len(expected.encode()) > 10 * 2**20
        assert result.stdout == "".join(pieces) == expected
        assert handle.last_stdout_offset == len(result.stdout.encode())
        assert handle.last_stderr_offset == 0

        again = await sandbox.reconnect(handle.command_id)
        assert (await again.result).stdout == expected

        # Python's own decoder says where characters begin; attach in the middle of the text at such a place.
        middle = len(expected[: len(expected) // 2].encode())
        second_half = await sandbox.reconnect(handle.command_id, stdout_offset=middle)
        assert (await second_half.result).stdout == expected[len(expected) // 2 :]
