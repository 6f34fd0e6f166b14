"""The package's C programs: compiled once, found afterwards, replaced when the source changes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import trio

from sandboxrt.engine.init import INIT_SOURCE, build_tool
from sandboxrt.engine.init.compile import COMPILERS, cache_name, prebuilt_name
from sandboxrt.errors import EngineUnavailableError

ANSWER = "int main(void) { return 42; }\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.c"
    path.write_text(ANSWER)
    return path


async def test_it_is_compiled_once_by_any_number_of_callers(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "a" / "cache"
    found: list[Path] = []

    async def one() -> None:
        found.append(await build_tool(source, cache))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(one)
    assert set(found) == {cache / cache_name(source)}
    assert os.listdir(cache) == [found[0].name]
    assert subprocess.run([found[0]], check=False).returncode == 42
    before = found[0].stat()
    assert (await build_tool(source, cache)).stat() == before
    source.write_text(ANSWER.replace("42", "43"))
    assert subprocess.run([await build_tool(source, cache)], check=False).returncode == 43


async def test_a_program_that_others_could_have_written_is_not_used(source: Path, tmp_path: Path) -> None:
    program = await build_tool(source, tmp_path)
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o777)
    assert subprocess.run([await build_tool(source, tmp_path)], check=False).returncode == 42


async def test_without_a_compiler_the_error_names_the_package(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineUnavailableError, match=r"apt-get install gcc libc6-dev"):
        await build_tool(source, tmp_path / "cache")
    assert os.listdir(tmp_path / "cache") == []


async def test_a_source_that_does_not_compile_says_why(source: Path, tmp_path: Path) -> None:
    source.write_text("int main(void) { return nonsense; }\n")
    with pytest.raises(EngineUnavailableError, match=r"nonsense"):
        await build_tool(source, tmp_path / "cache")


async def test_a_slow_machine_is_told_from_a_missing_compiler(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in COMPILERS:
        (tools / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/asked\nexec /bin/sleep 60\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("sandboxrt.engine.init.compile.TIMEOUT_S", 0.5)
    with pytest.raises(EngineUnavailableError, match=r"did not end within 0.5 s.*less to do") as raised:
        await build_tool(source, tmp_path / "cache")
    assert "apt-get" not in str(raised.value)
    # The next compiler would have been as slow.
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
    assert os.listdir(tmp_path / "cache") == []


async def test_a_prebuilt_program_is_preferred(source: Path, tmp_path: Path) -> None:
    prebuilt = prebuilt_name(source)
    prebuilt.write_text("#!/bin/sh\nexit 7\n")
    prebuilt.chmod(0o755)
    assert await build_tool(source, tmp_path / "cache") == prebuilt


def test_a_wheel_carries_the_programs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        info = archive.getinfo("sandboxrt/engine/init/init.bin")
        assert info.external_attr >> 16 & 0o111
        assert archive.read(info).startswith(b"\x7fELF")
        assert INIT_SOURCE.read_bytes() == archive.read("sandboxrt/engine/init/init.c")
