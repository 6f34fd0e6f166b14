"""Uses a sandbox in every way there is, tries to change every inode that it can name, and compares the host's.

A program of its own, because it needs devices of its own (``tests/host_inodes.py``). It says what was changed on the
host, and what the attempts inside managed to change of the sandbox's own, as JSON in a file: its own standard streams
are files of the host, too.

Arguments: ``ANSWER RUNTIME STRATEGY LAYER STATE STREAMS``. The strategy may also be ``user``, for an unprivileged
user's sandbox, and the runtime ``host``, for the attempts alone, on the host itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import trio

from sandboxrt.engine.base import Feature, Identity, Layer, ProcessSpec
from sandboxrt.engine.copy.copier import COPY_SOURCE
from sandboxrt.engine.init import build_tool
from sandboxrt.engine.oci import OciContainer, OciEngine
from sandboxrt.engine.runtime_exec import ExecStrategy
from tests.engine.oci_kit import Workplace
from tests.escapes.kit import PROBE, ROOT, USER, ask, first_line, running, start, workplace
from tests.host_inodes import DEVICES, changed, described
from tests.rootless import as_user

FIRST_ID = 2**30
SUBORDINATE = f"stranger:{FIRST_ID}:65536\n"
FROM_LAYERS = (PROBE, "/", "/root", "/bin", "/dev/.init")
HOST = [Path("/dev", name) for name in (*DEVICES, "ptmx", "loop-control")]


async def use(engine: OciEngine, place: Workplace, layer: Layer, **options: object) -> dict[str, str]:
    """Create, run, type, read, write, connect, capture, stop and start; the changes that were managed, by who."""
    managed = {}
    async with running(engine, place, layer, **options) as container:
        for who in (ROOT, USER):
            managed[f"{who.uid}"] = await ask(container, "change_all", *FROM_LAYERS, identity=who)
            managed[f"{who.uid} without input"] = await _output(container, who, stdin=False)
            managed[f"{who.uid} in a terminal"] = await _output(container, who, pty=(80, 24))
        await _use_files_and_ports(container)
        if Feature.FREEZE in container.features:
            (target := place.folder / "captured").mkdir()
            await container.capture(target)
    return managed


async def _output(container: OciContainer, who: Identity, **how: object) -> str:
    spec = ProcessSpec(argv=(PROBE, "change_all", *FROM_LAYERS), env={}, cwd="/", identity=who, **how)  # type: ignore[arg-type]
    process = await container.spawn(spec)
    try:
        text = b""
        with trio.fail_after(30):
            while chunk := await process.stdout.receive_some(65536):
                text += chunk
        return text.decode().replace("\r", "")
    finally:
        await process.aclose()


async def _use_files_and_ports(container: OciContainer) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"written"

    await container.replace_file("/root/file", content(), ROOT)
    file = await container.open_file("/root/file", USER)
    assert await file.read(0, 10) == b"written"
    await file.aclose()
    listening = await start(container, "occupy", "here", "8000")
    assert await first_line(listening) == "ready"
    await (await container.connect(8000)).aclose()
    await listening.aclose()


async def as_root(
    runtime: str, strategy: str, layer: Path, state: Path, streams: list[Path], is_stranger: bool = False
) -> dict[str, object]:
    """What a sandbox of root's changed on the host."""
    place = workplace(state)
    options: dict[str, object] = {"uid_base": 0, "allow_unenforced_limits": True} if is_stranger else {}
    async with OciEngine(state, runtime, ExecStrategy(strategy) if strategy != "-" else None) as engine:
        async with running(engine, place, Layer(layer), **options):
            pass  # what is made once is made now
        await build_tool(COPY_SOURCE, state / "tools")
        watched = [*HOST, layer, state / "tools", *streams]
        before = described(watched)
        managed = await use(engine, place, Layer(layer), **options)
        return {"changed": changed(before, described(watched)), "managed": managed}


AS_USER = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
import trio
from pathlib import Path
from tests.escapes.untouched import as_root

print(json.dumps(trio.run(as_root, sys.argv[2], "-", Path(sys.argv[3]), Path(sys.argv[4]), [], True), default=repr))
"""


def as_stranger(runtime: str, layer: Path, state: Path) -> dict[str, object]:
    """What a sandbox of an unprivileged user's changed on the host, as root and as that user see it."""
    (folder := state.parent / "stranger").mkdir()
    root = folder / "root"
    shutil.copytree(layer, root)
    for path in (root, *root.rglob("*")):
        os.chown(path, FIRST_ID, FIRST_ID)
    watched = [*HOST, root]
    before = described(watched)
    paths = json.dumps([str(Path(__file__).parents[2])])
    done = as_user(folder, SUBORDINATE, AS_USER, paths, runtime, str(root), str(folder / "state" / "own"))
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "changed": {**found["changed"], **changed(before, described(watched))}}


def on_the_host(layer: Path) -> dict[str, object]:
    """The same attempts, made by the host's root: they must be seen."""
    watched = [*HOST[: len(DEVICES)], layer]
    before = described(watched)
    probe = str(layer / PROBE.lstrip("/"))
    done = subprocess.run([probe, "change_all", probe], capture_output=True, text=True, check=True, timeout=60)
    return {"changed": changed(before, described(watched)), "managed": done.stdout}


def main() -> None:
    """See above."""
    answer, runtime, strategy, layer, state, *streams = sys.argv[1:]
    if runtime == "host":
        found = on_the_host(Path(layer))
    elif strategy == "user":
        found = as_stranger(runtime, Path(layer), Path(state))
    else:
        found = trio.run(as_root, runtime, strategy, Path(layer), Path(state), [Path(each) for each in streams])
    Path(answer).write_text(json.dumps(found, default=repr))


if __name__ == "__main__":
    main()
