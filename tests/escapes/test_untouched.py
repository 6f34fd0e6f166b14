"""Nothing of the host is another after a sandbox than before: no device, layer, program, nor a caller's stream.

What is refused inside is one thing, what changed outside another: these tests look at the host.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxrt.engine.base import Layer
from sandboxrt.engine.copy.copier import COPY_SOURCE
from sandboxrt.engine.init import INIT_SOURCE
from sandboxrt.engine.init.compile import cache_name, compile_program
from sandboxrt.engine.probe import LAUNCH_SOURCE
from tests.host_inodes import DEVICES, with_devices_of_its_own

pytestmark = [pytest.mark.container, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled programs, so that they are compiled once."""
    folder = tmp_path_factory.mktemp("tools")
    for source in (LAUNCH_SOURCE, INIT_SOURCE, COPY_SOURCE):
        compile_program(source, folder / cache_name(source))
    return folder


def untouched(tmp_path: Path, runtime: str, strategy: str, layer: Path, tools: Path | None) -> dict[str, Any]:
    """What the program beside this file says."""
    answer, state = tmp_path / "answer.json", tmp_path / "state"
    if tools is not None:
        shutil.copytree(tools, state / "tools")
    streams = [tmp_path / name for name in ("in", "out", "err")]
    for each in streams:
        each.touch()
    arguments = [str(each) for each in (answer, runtime, strategy, layer, state, *streams)]
    command = [sys.executable, "-m", "tests.escapes.untouched", *arguments]
    with streams[0].open("rb") as given, streams[1].open("wb") as out, streams[2].open("wb") as err:
        done = with_devices_of_its_own(tmp_path / "dev", command, stdin=given, stdout=out, stderr=err)
    assert done.returncode == 0, streams[2].read_text()
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


@pytest.mark.parametrize(
    ("runtime", "strategy"), [("crun", "-"), ("runc", "-"), ("runsc", "-"), ("crun", "runtime"), ("runc", "runtime")]
)
def test_no_inode_of_the_host_is_changed(
    tmp_path: Path, layer: Layer, tools: Path, runtime: str, strategy: str
) -> None:
    found = untouched(tmp_path, runtime, strategy, layer.path, tools)
    assert found["changed"] == {}
    for how in ("", " without input", " in a terminal"):
        as_root, as_user = (found["managed"][f"{uid}{how}"].splitlines() for uid in (0, 1000))
        # The attempts were made, and what is the sandbox's own can be changed by its root.
        assert {"/tmp chmod", "null chmod", "null touch"} <= set(as_root)
        assert "null chmod" not in as_user


@pytest.mark.parametrize("runtime", ["crun", "runc"])
def test_nor_by_a_sandbox_of_an_unprivileged_user(tmp_path: Path, layer: Layer, runtime: str) -> None:
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(above.stat().st_mode | 0o011)
    found = untouched(tmp_path, runtime, "user", layer.path, None)
    assert found["changed"] == {}
    as_root = found["managed"]["0"].splitlines()
    assert "/tmp chmod" in as_root
    # The host's own nodes are what such a user has, so nothing about them can be changed by anybody inside.
    assert not [line for line in as_root if line.split()[0].removeprefix("/dev/") in DEVICES]


def test_control_the_same_attempts_on_the_host_are_seen(tmp_path: Path, layer: Layer) -> None:
    shutil.copytree(layer.path, tmp_path / "layer")
    found = untouched(tmp_path, "host", "-", tmp_path / "layer", None)
    assert set(found["changed"]) >= {f"/dev/{name}" for name in DEVICES} | {str(tmp_path / "layer/bin/probe")}
