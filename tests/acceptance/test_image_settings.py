"""What an image says of its user, folder, environment and shell, in real containers made from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandboxrt import AsyncSandbox, AsyncSandboxClient, SandboxOperationError
from tests.images.catalogue import Catalogue

pytestmark = pytest.mark.container


@pytest.fixture
async def no_bash(state_dir: Path, catalogue: Catalogue) -> AsyncIterator[AsyncSandbox]:
    """A sandbox from an image that has no bash, a user ``app``, a working directory and two variables."""
    async with AsyncSandboxClient(mode="embedded", state_dir=state_dir) as client:
        snapshot = await client.create_snapshot(
            "nobash", docker_image=catalogue.reference("nobash:1"), fs_capacity_bytes=64 * 1024**2
        )
        try:
            async with client.sandbox(snapshot.id) as sandbox:
                yield sandbox
        finally:
            await client.delete_snapshot(snapshot.id)


async def test_user_folder_and_environment_are_the_images(no_bash: AsyncSandbox) -> None:
    result = await no_bash.run('id -un; id -G; pwd; echo "$GREETING|${EMPTY-unset}|$HOME"')
    assert result.stdout == "app\n1234 2000\n/srv/app\nhello world||/srv/app\n"
    assert no_bash.fs_capacity_bytes == 64 * 1024**2


async def test_the_caller_may_say_otherwise(no_bash: AsyncSandbox) -> None:
    result = await no_bash.run("id -u; pwd; echo $GREETING", user="root", cwd="/tmp", env={"GREETING": "moin"})
    assert result.stdout == "0\n/tmp\nmoin\n"


async def test_without_bash_sh_is_used_unless_bash_was_asked_for(no_bash: AsyncSandbox) -> None:
    assert (await no_bash.run("echo $0")).stdout == "/bin/sh\n"
    with pytest.raises(SandboxOperationError, match="/bin/bash"):
        await no_bash.run("echo never", shell="/bin/bash")
    with pytest.raises(SandboxOperationError, match="nobody-knows"):
        await no_bash.run("echo never", user="nobody-knows")


async def test_files_belong_to_the_images_user(no_bash: AsyncSandbox) -> None:
    await no_bash.write("/srv/app/notes/today.txt", "mine")
    result = await no_bash.run("stat -c %u /srv/app/notes /srv/app/notes/today.txt; cat notes/today.txt")
    assert result.stdout == "1234\n1234\nmine"
    with pytest.raises(SandboxOperationError, match="may not be accessed") as caught:
        await no_bash.write("/etc/passwd", "mine:x:0:0::/:/bin/sh")
    assert caught.value.error_type == "PermissionDenied"
    assert "mine" not in (await no_bash.run("cat /etc/passwd")).stdout
