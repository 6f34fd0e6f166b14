"""What a sandbox learns about the host it is on: nothing of its files, names, processes, devices or networks."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import attrs
import pytest
import trio

from sandboxrt.engine.base import Layer
from sandboxrt.engine.bundle import INIT_PATH, MASKED_PATHS
from sandboxrt.engine.oci import OciContainer, OciEngine
from tests.engine.oci_kit import Workplace
from tests.escapes.kit import HOSTNAME, LIMITS, ROOT, USER, HostCanary, ask, running

pytestmark = [pytest.mark.container, pytest.mark.timeout(60)]

USUAL_DEVICES = {
    "null": "1:3", "zero": "1:5", "full": "1:7", "random": "1:8", "urandom": "1:9", "tty": "5:0", "console": "5:1",
    "ptmx": "5:2",
}  # fmt: skip


async def test_no_path_or_id_of_the_host_shows_in_proc(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        for name in ("self/mountinfo", "self/mounts", "self/mountstats", "self/cgroup", "self/maps", "swaps"):
            await _tells_nothing(container, place, layer, f"/proc/{name}")
        for name in ("mountinfo", "mounts", "cgroup", "cmdline", "comm", "status"):
            await _tells_nothing(container, place, layer, f"/proc/1/{name}")
        assert await ask(container, "dump", "/proc/1/cmdline") == f"{INIT_PATH}\0"
        groups = await ask(container, "dump", "/proc/self/cgroup")
        assert all(len(line.split(":", 2)[2].strip("/").split("/")) == 1 for line in groups.splitlines()), groups


async def _tells_nothing(container: OciContainer, place: Workplace, layer: Layer, path: str) -> None:
    text = await ask(container, "dump", path)
    assert text and not text.startswith("refused"), (path, text)
    for secret in (str(place.folder), str(layer.path), place.ids[0]):
        assert secret not in text, (path, text)


async def test_without_a_disk_of_its_own_neither(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer, attrs.evolve(LIMITS, disk_bytes=None)) as container:
        for name in ("self/mountinfo", "self/mounts", "1/mountinfo"):
            await _tells_nothing(container, place, layer, f"/proc/{name}")


async def test_no_file_in_proc_or_sys_names_a_folder_of_the_host(
    engine: OciEngine, place: Workplace, layer: Layer, probe: Path
) -> None:
    """Every readable file is looked through: what is not known to tell may tell all the same."""
    async with running(engine, place, layer) as container:
        name = place.ids[0]
        for where in ("/sys", "/proc"):
            assert await ask(container, "grep", name, where) == "refused NONE"
        # The host finds it, by the loop device of the sandbox's disk.
        done = await trio.run_process([probe, "grep", name, "/sys/devices/virtual/block"], capture_stdout=True)
        assert done.stdout.endswith(b"loop/backing_file\n"), done.stdout


async def test_masks_hide_what_this_kernel_has(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    present = [path for path in MASKED_PATHS if _tells(Path(path))]
    assert len(present) >= 8  # else this kernel is no place for this test
    async with running(engine, place, layer) as container:
        for path in present:
            kind = "list" if Path(path).is_dir() else "read"
            assert await ask(container, kind, path) in ("refused EMPTY", "refused EACCES", "refused ENOENT"), path


def _tells(path: Path) -> bool:
    try:
        return bool(os.listdir(path)) if path.is_dir() else path.exists()
    except OSError:
        return False


async def test_the_host_name_is_the_sandboxs_own(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        assert socket.gethostname() != HOSTNAME
        assert await ask(container, "dump", "/proc/sys/kernel/hostname") == HOSTNAME
        assert await ask(container, "dump", "/etc/hostname") == HOSTNAME


async def test_a_command_inherits_its_streams_and_nothing_else(
    engine: OciEngine, place: Workplace, layer: Layer
) -> None:
    async with running(engine, place, layer) as container:
        for who in (ROOT, USER):
            lines = (await ask(container, "fds", identity=who)).splitlines()
            assert [re.sub(r"\[\d+\]", "", line) for line in lines] == ["0 pipe:", "1 pipe:", "2 pipe:"]
            assert await ask(container, "dump", "/proc/self/environ", identity=who) == ""


async def test_only_the_usual_devices_are_there(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        nodes = [line.split() for line in (await ask(container, "nodes", "/dev")).splitlines()]
        found = {name: number for kind, number, name in nodes if kind in "cb"}
        assert {"null", "zero", "urandom"} <= set(found)
        assert found == {name: USUAL_DEVICES[name] for name in found}
        assert not [name for kind, _, name in nodes if kind == "b"]
        ptys = [line.split() for line in (await ask(container, "nodes", "/dev/pts")).splitlines()]
        assert [name for kind, _, name in ptys if kind == "c"] == ["ptmx"]


async def test_the_network_is_the_loopback_alone(
    engine: OciEngine, place: Workplace, layer: Layer, canary: HostCanary
) -> None:
    async with running(engine, place, layer) as container:
        assert await ask(container, "interfaces") == "lo"
        assert len((await ask(container, "dump", "/proc/net/route")).splitlines()) <= 1  # the heading
        routes = (await ask(container, "dump", "/proc/net/ipv6_route")).splitlines()
        assert {line.split()[-1] for line in routes} <= {"lo"}
        assert canary.abstract not in await ask(container, "dump", "/proc/net/unix")
        assert f":{canary.port:04X}" not in await ask(container, "dump", "/proc/net/tcp")
        # The host's own tables have both, so the search is for the right thing.
        assert canary.abstract in Path("/proc/net/unix").read_text()
        assert f":{canary.port:04X}" in Path("/proc/net/tcp").read_text()


async def test_the_only_processes_are_its_own(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        for who in (ROOT, USER):
            names = [line.split()[2] for line in (await ask(container, "nodes", "/proc", identity=who)).splitlines()]
            assert len([name for name in names if name.isdigit()]) == 2  # the first process and the probe
