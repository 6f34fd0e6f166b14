"""Two sandboxes on one host do not find each other: no file, process, socket, name, queue or user id in common."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import pytest

from sandboxrt.engine.base import Layer
from sandboxrt.engine.oci import OciContainer, OciEngine
from tests.engine.oci_kit import Workplace, processes_of
from tests.escapes.kit import HostCanary, ask, ask_all, holding, running

pytestmark = [pytest.mark.container, pytest.mark.timeout(60)]

MEETING_POINTS = {
    "tcp,127.0.0.1,{port}": "ECONNREFUSED",
    "abstract,{name}": "ECONNREFUSED",
    "unix_path,/tmp/{name}.socket": "ENOENT",
    "read,/tmp/{name}": "ENOENT",
    "read,/root/{name}": "ENOENT",
    "read,/dev/shm/{name}": "ENOENT",
    "queue,/{name}": "ENOENT",
    "read,/dev/mqueue/{name}": "ENOENT",
    "shared_memory": "ENOENT",
    "messages": "ENOENT",
    "semaphores": "ENOENT",
}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


async def test_nothing_of_a_neighbour_is_found(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    name, port = f"meet-{secrets.token_hex(4)}", _free_port()
    questions = {point.format(name=name, port=port): errno for point, errno in MEETING_POINTS.items()}
    async with (
        running(engine, place, layer) as one,
        running(engine, place, layer) as other,
        holding(one, "occupy", name, str(port)) as said,
    ):
        assert said == "ready"
        verdicts = await ask_all(other, questions)
        assert verdicts == {question: f"refused {errno}" for question, errno in questions.items()}
        # The probe can tell: another command of the same sandbox finds all of it.
        verdicts = await ask_all(one, questions)
        assert all(verdict.startswith("ALLOWED") for verdict in verdicts.values()), verdicts
        # And both can have the same names at once.
        async with holding(other, "occupy", name, str(port)) as said:
            assert said == "ready"


async def test_processes_of_a_neighbour_do_not_exist(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as one, running(engine, place, layer) as other, holding(one, "wait"):
        assert await ask(one, "census") == "1"
        assert await ask(other, "census") == "0"
        theirs = processes_of(await _block(one))
        assert len(theirs) == 2  # its first process and the probe
        for pid in theirs:
            assert await ask(other, "kill", str(pid)) == "refused ESRCH"


async def test_killing_everyone_spares_neighbours_host_and_the_first_process(
    engine: OciEngine, place: Workplace, layer: Layer, canary: HostCanary
) -> None:
    async with (
        running(engine, place, layer) as one,
        running(engine, place, layer) as other,
        holding(one, "wait") as _,
        holding(other, "wait") as _,
    ):
        assert await ask(other, "census") == "1"
        assert await ask(other, "kill_everyone") == "refused SURVIVED"
        assert await ask(other, "census") == "0"
        assert await ask(one, "census") == "1"
        # Asleep, or stopped by a control that traced it; not dead.
        assert Path(f"/proc/{canary.pid}/stat").read_text().rpartition(")")[2].split()[0] in "STt"


async def test_ids_on_the_host_are_in_blocks_of_their_own(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as one, running(engine, place, layer) as other:
        blocks = [await _block(one), await _block(other)]
        assert not set(blocks[0]) & set(blocks[1])
        assert all(len(block) == 65_536 and block[0] >= 2**29 for block in blocks)


async def test_a_neighbours_folder_on_the_host_is_out_of_reach(
    engine: OciEngine, place: Workplace, layer: Layer
) -> None:
    async with running(engine, place, layer), running(engine, place, layer) as other:
        folder = place.folder / "sandboxes" / place.ids[0]
        assert (folder / "disk.img").exists()
        assert await ask(other, "list", str(folder)) == "refused ENOENT"
        assert await ask(other, "read", str(folder / "disk.img")) == "refused ENOENT"


async def _block(container: OciContainer) -> range:
    inside, first, count = (int(word) for word in (await ask(container, "dump", "/proc/self/uid_map")).split())
    assert inside == 0
    return range(first, first + count)
