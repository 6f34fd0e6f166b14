"""The probe on this host: as root, as an ordinary user, with every runtime; quick, and nothing is left behind."""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio

from sandboxrt.engine import probe
from sandboxrt.engine.hierarchy import this_host
from sandboxrt.engine.probe import LAUNCH_SOURCE, find_runtime, probe_host
from sandboxrt.models import DEFAULT_REQUIRE, Isolation

pytestmark = pytest.mark.container

ALWAYS = DEFAULT_REQUIRE | {Isolation.CGROUP_NAMESPACE}


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the containers that are tried, to tell ours from those of others on this host."""
    taken: list[str] = []

    def token_hex(count: int) -> str:
        taken.append(secrets.token_hex(count))
        return taken[-1]

    monkeypatch.setattr(probe, "secrets", SimpleNamespace(token_hex=token_hex))
    return taken


def left_of(names: list[str], folder: Path) -> list[str]:
    """What is on this host that belongs to the containers or to the folder."""
    host = this_host()
    groups = [str(host.folder(mount, name)) for mount in host.mounts for name in names]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    images = subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True)
    found = [group for group in groups if Path(group).exists()]
    return found + [line for line in (*mounts, *images.stdout.splitlines()) if str(folder) in line]


@pytest.mark.parametrize("runtime", ["crun", "runc", "runsc"])
async def test_root_gets_everything_and_nothing_is_left(runtime: str, tmp_path: Path, names: list[str]) -> None:
    found = await probe_host(runtime, tmp_path, fresh=True)
    lacking = {Isolation.TREE_KILL} if runtime == "runsc" else {Isolation.GUEST_KERNEL}
    assert {prop for prop in Isolation if not found.report.has(prop)} == lacking, found.facts
    assert found.report.runtime.startswith(f"{runtime} ")
    assert found.facts.runtime.version[0].isdigit()
    assert [path.name for path in tmp_path.iterdir()] == ["tools"]
    assert names
    assert left_of(names, tmp_path) == []


async def test_the_answer_is_remembered(tmp_path: Path) -> None:
    first = await probe_host("crun", tmp_path)
    started = time.perf_counter()
    assert await probe_host("crun", tmp_path) is first
    assert time.perf_counter() - started < 0.01
    assert await probe_host("crun", tmp_path, fresh=True) is not first


async def test_a_missing_runtime_is_found_missing(tmp_path: Path) -> None:
    found = await probe_host("no-such-runtime", tmp_path)
    assert set(found.report.missing(DEFAULT_REQUIRE)) == DEFAULT_REQUIRE
    assert "not installed" in found.report.findings[Isolation.SECCOMP].detail
    assert found.report.has(Isolation.DISK_LIMIT), "what does not depend on the runtime is tried all the same"


async def test_a_runtime_that_does_not_work_is_quoted(tmp_path: Path) -> None:
    script = tmp_path / "crun"
    script.write_text("#!/bin/sh\n[ $1 = --version ] && echo crun version 9.9 && exit\necho it rains >&2\nexit 1\n")
    script.chmod(0o755)
    found = await probe_host(str(script), tmp_path)
    assert found.report.runtime == "crun 9.9"
    assert found.report.findings[Isolation.PID_NAMESPACE].detail == "crun 9.9 does not run a container here: it rains"


async def test_without_a_compiler_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crun").symlink_to("/usr/bin/crun")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(probe, "LAUNCH_SOURCE", Path(shutil.copy(LAUNCH_SOURCE, tmp_path / "launch.c")))
    found = await probe_host("crun", tmp_path / "state", fresh=True)
    assert found.report.findings[Isolation.SECCOMP].fix == "sudo apt-get install gcc libc6-dev"


async def test_a_cancel_at_any_moment_leaves_nothing(tmp_path: Path, names: list[str]) -> None:
    await probe_host("crun", tmp_path)
    for milliseconds in range(0, 60, 4):
        with trio.move_on_after(milliseconds / 1000):
            await probe_host("crun", tmp_path, fresh=True)
        assert [path.name for path in tmp_path.iterdir()] == ["tools"]
    assert left_of(names, tmp_path) == []


async def test_versions() -> None:
    assert (await find_runtime("crun")).version[0].isdigit()
    missing = await find_runtime("no-such-runtime")
    assert (missing.path, missing.version, missing.label) == (None, "", "no-such-runtime")


@pytest.fixture
def user() -> Iterator[pwd.struct_passwd]:
    """An ordinary user with subordinate ids, gone after the test."""
    name = f"probe-{secrets.token_hex(4)}"
    subprocess.run(["useradd", "--create-home", "--add-subids-for-system", name], check=True, capture_output=True)
    try:
        yield pwd.getpwnam(name)
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


def probe_as(user: pwd.struct_passwd, runtime: str, home: Path) -> dict[str, Any]:
    """Probe in a child process that has become the user. (Its interpreter may be where the user cannot read.)"""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read)
            os.initgroups(user.pw_name, user.pw_gid)
            os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
            os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
            os.environ["PATH"] = "/usr/bin:/bin"
            os.chdir("/")
            found = trio.run(probe_host, runtime, home / "state")
            findings = {prop.value: attrs.asdict(finding) for prop, finding in found.report.findings.items()}
            os.write(write, json.dumps(findings).encode())
            os._exit(0)
        except BaseException as error:
            os.write(write, json.dumps({"error": repr(error)}).encode())
            os._exit(1)
    os.close(write)
    with open(read) as answer:
        found = json.load(answer)
    assert os.waitpid(pid, 0)[1] == 0, found
    return dict(found)


@pytest.fixture
def home(user: pwd.struct_passwd, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the user's that holds the launcher's source."""
    with tempfile.TemporaryDirectory(prefix="probe-home-") as name:
        monkeypatch.setattr(probe, "LAUNCH_SOURCE", Path(shutil.copy(LAUNCH_SOURCE, name)))
        for path in (Path(name), Path(name, "launch.c")):
            os.chown(path, user.pw_uid, user.pw_gid)
        yield Path(name)


@pytest.mark.parametrize("runtime", ["crun", "runc", "runsc"])
def test_an_ordinary_user_gets_all_that_is_required_and_is_told_what_root_would_add(
    user: pwd.struct_passwd, home: Path, runtime: str
) -> None:
    found = probe_as(user, runtime, home)
    achieved = {Isolation(name) for name, finding in found.items() if finding["achieved"]}
    assert achieved >= ALWAYS, found
    for prop in (Isolation.UID_BLOCK, Isolation.DISK_LIMIT, Isolation.MEMORY_LIMIT, Isolation.PIDS_LIMIT):
        assert prop not in achieved
        assert found[prop.value]["fix"], found[prop.value]
    assert left_of([], home) == []
    assert sorted(path.name for path in (home / "state").iterdir()) == ["tools"]


def test_a_user_without_subordinate_ids_is_told_the_command(user: pwd.struct_passwd, home: Path) -> None:
    for option in ("--del-subuids", "--del-subgids"):
        path = "/etc/subuid" if option == "--del-subuids" else "/etc/subgid"
        line = next(line for line in Path(path).read_text().splitlines() if line.startswith(f"{user.pw_name}:"))
        first, count = (int(field) for field in line.split(":")[1:])
        subprocess.run(["usermod", option, f"{first}-{first + count - 1}", user.pw_name], check=True)
    found = probe_as(user, "crun", home)
    assert not found["user-namespace"]["achieved"]
    assert "/etc/subuid has no range" in found["user-namespace"]["detail"]
    assert f"--add-subgids 100000-165535 {user.pw_name}" in found["user-namespace"]["fix"]
