"""``sandboxrt rescue`` on a real state folder: of a sandbox that cannot be started any more."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from sandboxrt import AsyncSandboxClient, ResourceCreationError
from sandboxrt.cli import main

pytestmark = pytest.mark.container


async def test_files_of_a_sandbox_that_cannot_start(tmp_path: Path) -> None:
    state, out = tmp_path / "state", tmp_path / "out"

    def rescue(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["rescue", *words, "--state-dir", str(state)])
        return done.exit_code, done.output

    async with AsyncSandboxClient(mode="embedded", state_dir=state) as client:
        box = await client.create_sandbox(name="box")
        await box.write("/root/notes", "precious")
        await box.run("mkdir -p /srv/deep && echo more > /srv/deep/file && ln -s /etc/shadow /root/link")
        code, said = await trio.to_thread.run_sync(lambda: rescue("box", str(out)))
        assert code == 1 and "stop it first" in said
        await box.stop()
        (image,) = state.glob("sandboxes/*/disk.img")
        whole = image.read_bytes()[: 1024**2]
        with image.open("r+b") as file:
            file.write(bytes(1024**2))  # the superblock, the groups, the first inodes
        with pytest.raises(ResourceCreationError, match="sandboxrt rescue"):
            await box.start()
        with image.open("r+b") as file:
            file.write(whole)
            file.seek(1024)
            file.write(bytes(1024))
        code, said = await trio.to_thread.run_sync(lambda: rescue("box", str(out)))
        assert code == 0, said
        assert (out / "files/root/notes").read_text() == "precious"
        assert (out / "files/srv/deep/file").read_text() == "more\n"
        assert (out / "files/root/link").is_symlink()
        code, said = await trio.to_thread.run_sync(lambda: rescue("box", str(out)))
        assert code == 1 and "exists; name a folder that does not" in said
        code, said = await trio.to_thread.run_sync(lambda: rescue("nobody", str(out)))
        assert code == 1 and "not found" in said
        # Repaired by a copy of its superblock, it starts again.
        await box.start()
        assert await box.read("/root/notes") == b"precious"
