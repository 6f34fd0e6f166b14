"""``sandboxrt run``: one command in a sandbox of its own."""

from __future__ import annotations

import codecs
import contextlib
import os
import shlex
import signal
import sys
from contextlib import aclosing

import attrs
import click
import trio
from rich.console import Console

from sandboxrt.cli.terminal import raw_mode, read_input, sizes
from sandboxrt.cli.values import ASSIGNMENT, DURATION, SIZE
from sandboxrt.client.client import AsyncSandboxClient
from sandboxrt.client.command import AsyncCommandHandle
from sandboxrt.client.sandbox import AsyncSandbox
from sandboxrt.errors import CommandTimeoutError, SandboxClientError
from sandboxrt.models import DEFAULT_LIMITS, Limits

__all__ = ["run"]

TIMED_OUT, FAILED, INTERRUPTED = 124, 125, 130
_STDIN, _STDOUT = 0, 1


@attrs.frozen(kw_only=True)
class _Request:
    command: str
    image: str | None
    env: dict[str, str]
    work_dir: str | None
    user: str | None
    interactive: bool
    terminal: bool
    timeout_s: float
    limits: Limits
    runtime: str | None
    state_dir: str | None
    allow_unenforced_limits: bool


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option(
    "--image", metavar="REF", help="Image to run in, e.g. python:3.12-slim; this machine's /usr if not given."
)
@click.option("-e", "--env", "env", multiple=True, type=ASSIGNMENT, help="Set an environment variable; repeatable.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory inside; the image's if not given.")
@click.option("-u", "--user", metavar="USER", help="User inside (name, uid, uid:gid); the image's if not given.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input to the command.")
@click.option("-t", "--tty", "terminal", is_flag=True, help="Give the command a terminal.")
@click.option("--timeout", type=DURATION, default=0, help="End the command after this long, e.g. 30s.  [default: none]")
@click.option("--cpus", type=click.FloatRange(min=0.01), default=DEFAULT_LIMITS.vcpus, show_default=True)
@click.option("--memory", type=SIZE, default=DEFAULT_LIMITS.mem_bytes, help="Memory limit.  [default: 1g]")
@click.option("--disk", type=SIZE, default=DEFAULT_LIMITS.disk_bytes, help="Disk limit.  [default: 4g]")
@click.option("--pids", type=click.IntRange(min=1), default=DEFAULT_LIMITS.pids, show_default=True)
@click.option("--runtime", metavar="NAME", help="OCI runtime: crun, runc, runsc, or a path.  [default: crun]")
@click.option("--state-dir", metavar="DIR", help="Folder for snapshots and sandboxes.")
@click.option("--allow-unenforced-limits", is_flag=True, help="Run even where this host cannot enforce a limit.")
@click.argument("command", nargs=-1, required=True, metavar="-- CMD...")
def run(
    command: tuple[str, ...],
    *,
    image: str | None,
    env: tuple[tuple[str, str], ...],
    workdir: str | None,
    user: str | None,
    interactive: bool,
    terminal: bool,
    timeout: float,
    cpus: float,
    memory: int,
    disk: int,
    pids: int,
    runtime: str | None,
    state_dir: str | None,
    allow_unenforced_limits: bool,
) -> None:
    """Run CMD in a new sandbox, show its output as it comes, and exit with its exit code.

    The sandbox has no network and none of this machine's files but /usr, and is gone when CMD ends.
    """
    if terminal and not os.isatty(_STDIN):
        raise click.UsageError("-t needs a terminal as standard input; leave it out when input is piped")
    request = _Request(
        command=shlex.join(command),
        image=image,
        env=dict(env),
        work_dir=workdir,
        user=user,
        interactive=interactive or terminal,
        terminal=terminal,
        timeout_s=timeout,
        limits=Limits(vcpus=cpus, mem_bytes=memory, disk_bytes=disk, pids=pids),
        runtime=runtime,
        state_dir=state_dir,
        allow_unenforced_limits=allow_unenforced_limits,
    )
    try:
        code = trio.run(_main, request)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except CommandTimeoutError:
        _complain(f"the command was ended after {timeout:g} s")
        code = TIMED_OUT
    except (SandboxClientError, ValueError) as error:
        _complain(str(error))
        code = FAILED
    raise SystemExit(code)


def _complain(message: str) -> None:
    click.echo(f"sandboxrt: {message}", err=True)


async def _main(request: _Request) -> int:
    async with AsyncSandboxClient(
        mode="embedded",
        runtime=request.runtime,
        state_dir=request.state_dir,
        limits=request.limits,
        allow_unenforced_limits=request.allow_unenforced_limits,
    ) as client:
        snapshot_id = await _snapshot(client, request.image) if request.image else None
        async with client.sandbox(snapshot_id) as sandbox:
            return await _run(sandbox, request)


async def _snapshot(client: AsyncSandboxClient, image: str) -> str:
    """The id of a ready snapshot of ``image``: the newest one there is, else one built now."""
    for snapshot in await client.list_snapshots(name_contains=_snapshot_name(image), limit=500):
        if snapshot.docker_image == image and snapshot.status == "ready":
            return snapshot.id
    capacity_bytes = DEFAULT_LIMITS.disk_bytes
    assert capacity_bytes is not None
    with Console(stderr=True).status(f"fetching {image}"):
        snapshot = await client.create_snapshot(
            _snapshot_name(image), docker_image=image, fs_capacity_bytes=capacity_bytes, timeout=1800
        )
    return snapshot.id


def _snapshot_name(image: str) -> str:
    """A legal snapshot name for an image reference: lower-case path components."""
    kept = "".join(character if character.isalnum() or character in "._-/" else "-" for character in image.lower())
    return f"image/{kept.strip('-./')}"[:255]


async def _run(sandbox: AsyncSandbox, request: _Request) -> int:
    columns, rows = os.get_terminal_size(_STDIN) if request.terminal else (80, 24)
    handle = await sandbox.run(
        request.command,
        timeout=request.timeout_s,
        env=request.env or None,
        cwd=request.work_dir,
        user=request.user,
        idle_timeout=-1,
        pty=request.terminal,
        columns=columns,
        rows=rows,
        close_input=not request.interactive,
        wait=False,
    )
    with contextlib.ExitStack() as stack:
        if request.terminal:
            stack.enter_context(raw_mode(_STDIN))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_interrupts, handle)
            if request.interactive:
                nursery.start_soon(_feed, handle)
            if request.terminal:
                nursery.start_soon(_follow_size, handle)
            await _show(handle)
            nursery.cancel_scope.cancel()
    result = await handle.result
    if result.reason is not None:
        _complain(f"{result.reason}; here it is --memory SIZE")
    return result.exit_code


async def _show(handle: AsyncCommandHandle) -> None:
    """Copy the output to ours as it comes; a reader that went away (``| head``) ends the command."""
    try:
        async for chunk in handle:
            stream = sys.stdout if chunk.stream == "stdout" else sys.stderr
            stream.write(chunk.data)
            stream.flush()
    except BrokenPipeError:
        # Python flushes standard output once more at exit; give it somewhere harmless to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)
        await handle.kill()


async def _feed(handle: AsyncCommandHandle) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async with aclosing(read_input(_STDIN)) as chunks:
        async for chunk in chunks:
            if text := decoder.decode(chunk):
                await handle.send_input(text)
    if tail := decoder.decode(b"", final=True):
        await handle.send_input(tail)
    await handle.close_input()


async def _follow_size(handle: AsyncCommandHandle) -> None:
    async for size in sizes(_STDIN):
        await handle.resize(size.columns, size.lines)


async def _interrupts(handle: AsyncCommandHandle) -> None:
    """Ctrl-C goes to the command, as if it ran here; a second one kills it."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        count = 0
        async for signum in signals:
            count += 1
            if count == 1:
                await handle.send_signal(signum)
            else:
                await handle.kill()
