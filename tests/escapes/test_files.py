"""The host's own file calls are no way out: links, races, special files and kernel files that a sandbox prepares.

Reading and writing from outside happens inside the container as the user concerned; these tests prepare what would
lead a host that resolves such paths itself to its own files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio

from sandboxrt.engine.base import FileError, FileErrorKind, Identity, Layer
from sandboxrt.engine.bundle import INIT_PATH
from sandboxrt.engine.oci import OciContainer, OciEngine
from tests.engine.oci_kit import Workplace
from tests.escapes.kit import LIMITS, ROOT, USER, HostCanary, ask, first_line, host_pid, running, start

pytestmark = [pytest.mark.container, pytest.mark.timeout(60)]

Kind = FileErrorKind
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")


async def read(container: OciContainer, path: str, identity: Identity = ROOT) -> bytes:
    with trio.fail_after(10):
        file = await container.open_file(path, identity)
        try:
            return await file.read(0, 65536)
        finally:
            await file.aclose()


async def write(container: OciContainer, path: str, content: bytes, identity: Identity = ROOT) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield content

    with trio.fail_after(10):
        await container.replace_file(path, pieces(), identity)


async def refusal(container: OciContainer, path: str, identity: Identity = ROOT, *, writing: bool = False) -> Kind:
    with pytest.raises(FileError) as caught:
        if writing:
            await write(container, path, b"escaped", identity)
        else:
            await read(container, path, identity)
    return caught.value.kind


async def test_paths_and_links_to_the_host_lead_inside(
    engine: OciEngine, place: Workplace, layer: Layer, canary: HostCanary
) -> None:
    async with running(engine, place, layer) as container:
        assert await ask(container, "symlink", str(canary.file), "/root/absolute") == "ALLOWED 0"
        up = "../" * 40
        assert await ask(container, "symlink", f"{up}{canary.file}", "/root/relative") == "ALLOWED 0"
        for path in (
            str(canary.file),
            f"/{up}{canary.file}",
            "/root/absolute",
            "/root/relative",
            f"/proc/self/root{canary.file}",
            f"/proc/self/cwd/{up}{canary.file}",
        ):
            assert await refusal(container, path) in (Kind.NOT_FOUND, Kind.LOOP, Kind.PERMISSION), path
        for path in (f"/proc/1/root{canary.file}", f"/proc/1/cwd{canary.file}"):
            assert await refusal(container, path) in (Kind.PERMISSION, Kind.LOOP), path
            assert await refusal(container, path, writing=True) in (Kind.PERMISSION, Kind.LOOP), path
        # No link of the kernel's is followed at all, wherever it leads.
        for path in ("/proc/self/root/etc/hostname", "/proc/self/cwd/etc/hostname", "/proc/self/exe"):
            assert await refusal(container, path) is Kind.LOOP, path
        assert canary.file.read_text() == "host"
        # The same links are good for what is inside: they were followed, and not out.
        await write(container, str(canary.file), b"inside")
        assert await read(container, "/root/absolute") == b"inside"
        assert await read(container, "/root/relative") == b"inside"
        assert canary.file.read_text() == "host"


async def test_special_files_neither_block_nor_open(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        assert await ask(container, "specials", "/root/special") == "made"
        for who in (ROOT, USER):
            if who == USER:
                assert await ask(container, "directory", "/tmp/mine", "0755", "1000") == "ALLOWED 0"
                assert await ask(container, "specials", "/tmp/mine/special", identity=USER) == "made"
            folder = "/root/special" if who == ROOT else "/tmp/mine/special"
            for name in ("fifo", "socket", "zero", "ptmx", "tty"):
                assert await refusal(container, f"{folder}/{name}", who) in (Kind.NOT_REGULAR, Kind.OTHER), name
            for name in ("mem", "init-mem", "kmsg"):
                kinds = (Kind.PERMISSION, Kind.NOT_REGULAR, Kind.LOOP, Kind.NOT_FOUND)
                assert await refusal(container, f"{folder}/{name}", who) in kinds, name
            assert await refusal(container, f"{folder}/loop", who) is Kind.LOOP
            for name in ("init-root", "self-root", "fd"):
                kinds = (Kind.PERMISSION, Kind.IS_DIRECTORY, Kind.LOOP)
                assert await refusal(container, f"{folder}/{name}", who) in kinds, name
            for name in ("fifo", "zero", "mem", "init-mem", "loop"):
                await refusal(container, f"{folder}/{name}", who, writing=True)


@pytest.mark.parametrize("path", ["/proc/sys/kernel/core_pattern", "/proc/self/mem", "/proc/1/mem", "/sys/power/state"])
async def test_kernel_files_are_not_written(engine: OciEngine, place: Workplace, layer: Layer, path: str) -> None:
    before = CORE_PATTERN.read_text()
    async with running(engine, place, layer) as container:
        assert await refusal(container, path, writing=True) in (Kind.PERMISSION, Kind.READ_ONLY, Kind.LOOP)
    assert CORE_PATTERN.read_text() == before


async def test_the_first_process_program_is_not_replaced(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        await refusal(container, INIT_PATH, writing=True)
        assert (await read(container, INIT_PATH))[:4] == b"\x7fELF"


async def test_links_that_change_under_the_host_never_lead_out(
    engine: OciEngine, place: Workplace, layer: Layer, canary: HostCanary
) -> None:
    """A folder and a link to the host's folder change places while both are read and written."""
    outside = canary.file.parent
    before = sorted(outside.iterdir())
    seen: dict[bytes | Kind, int] = {}
    async with running(engine, place, layer) as container:
        await write(container, "/root/a/canary", b"inside")
        assert await ask(container, "symlink", str(outside), "/root/b") == "ALLOWED 0"
        racer = await start(container, "swap", "/root/a", "/root/b")
        assert await first_line(racer) == "ready"
        # What this host must not do: it shows that the race is one.
        naive = Path(f"/proc/{host_pid(container)}/root/root/a/canary")
        assert "host" in {_read_naively(naive) for _ in range(5000)}
        with trio.move_on_after(2.5):
            for number in range(400):
                try:
                    found: bytes | Kind = await read(container, "/root/a/canary")
                except FileError as error:
                    found = error.kind
                seen[found] = seen.get(found, 0) + 1
                if number % 4 == 0:
                    try:
                        await write(container, "/root/a/planted", b"escaped")
                    except FileError as error:
                        assert error.kind in (Kind.NOT_FOUND, Kind.LOOP, Kind.OTHER, Kind.NOT_A_DIRECTORY)
        assert racer.stdin is not None
        await racer.stdin.aclose()
        swaps = await first_line(racer)
        await racer.aclose()
        assert int(swaps) > 500
    assert b"host" not in seen
    # Both sides of the race were met, or it was none.
    assert {b"inside", Kind.NOT_FOUND} <= set(seen), seen
    assert sorted(outside.iterdir()) == before
    assert canary.file.read_text() == "host"


def _read_naively(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


async def test_hard_links_do_not_carry_writes_or_rights(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        await write(container, "/root/one", b"old")
        assert await ask(container, "hard_link", "/root/one", "/root/two") == "ALLOWED 0"
        await write(container, "/root/two", b"new")
        assert (await read(container, "/root/one"), await read(container, "/root/two")) == (b"old", b"new")
        # An ordinary user gets no hold on root's files by a name of its own.
        assert await ask(container, "directory", "/opt/mine", "0755", "1000") == "ALLOWED 0"
        await write(container, "/opt/secret", b"roots")
        verdict = await ask(container, "hard_link", "/opt/secret", "/opt/mine/secret", identity=USER)
        if verdict.startswith("ALLOWED"):  # where the host does not protect hard links
            await write(container, "/opt/mine/secret", b"users", USER)
            assert await read(container, "/opt/secret") == b"roots"
        else:
            assert verdict == "refused EPERM"


async def test_files_are_reached_with_the_users_own_rights(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    async with running(engine, place, layer) as container:
        assert await ask(container, "directory", "/opt/closed", "0700", "0") == "ALLOWED 0"
        await write(container, "/opt/closed/secret", b"roots")
        assert await refusal(container, "/opt/closed/secret", USER) is Kind.PERMISSION
        assert await refusal(container, "/opt/closed/mine", USER, writing=True) is Kind.PERMISSION
        assert await refusal(container, "/opt/new/folder/mine", USER, writing=True) is Kind.PERMISSION
        assert await read(container, "/opt/closed/secret") == b"roots"
        # What the host writes belongs to the user inside, not to an id from outside.
        await write(container, "/tmp/for-user", b"mine", USER)
        assert await ask(container, "owner", "/tmp/for-user") == "1000 1000 644"
        await write(container, "/root/for-root", b"mine")
        assert await ask(container, "owner", "/root/for-root") == "0 0 644"


async def test_a_very_deep_tree_is_removed(engine: OciEngine, place: Workplace, layer: Layer) -> None:
    """Without a disk image it lies on the host's own file system."""
    async with running(engine, place, layer, attrs.evolve(LIMITS, disk_bytes=None)) as container:
        folder = place.folder / "sandboxes" / place.ids[0]
        assert await ask(container, "deep", "/root/deep", "5000") == "5000"
        assert folder.exists()
    assert not folder.exists()
