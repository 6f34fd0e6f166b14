"""`sandboxrt doctor` on this host: what it prints, its exit code, and the removal of what killed owners left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import trio
from click.testing import CliRunner, Result

from sandboxrt.cli import main
from sandboxrt.host.doctor.trial import Tried
from sandboxrt.models import DEFAULT_REQUIRE, Isolation, IsolationFinding, IsolationReport
from sandboxrt.store import Store
from tests.rootless import as_user

pytestmark = pytest.mark.container

OWNER = """
import os, sys, time, trio
from sandboxrt import AsyncSandboxClient

async def main():
    async with AsyncSandboxClient(mode="embedded") as client:
        async with client.sandbox(name="orphan") as sandbox:
            await sandbox.run("true")
            print("ready", flush=True)
            await trio.sleep(60)

trio.run(main)
"""


def run(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(main, ["doctor", *arguments])


def test_a_host_that_can_do_all_is_ready(tmp_path: Path) -> None:
    result = run("--state-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    for prop in Isolation:
        assert prop.value in result.output
    assert "MISSING" not in result.output
    assert f"Ready: a sandbox with these requirements and limits was made and used in {tmp_path}." in result.output
    assert list(tmp_path.glob("probe-*")) == []
    assert "sudo apt-get install runsc" in result.output


def test_json_has_every_property_with_what_is_needed(tmp_path: Path) -> None:
    result = run("--state-dir", str(tmp_path), "--json", "--runtime", "runc")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["ready"] is True
    assert found["runtime"].startswith("runc ")
    assert found["state_dir"] == str(tmp_path)
    assert set(found["properties"]) == {prop.value for prop in Isolation}
    steps = ["start", "command", "limits", "tree kill", "files", "port", "terminal", "end"]
    assert found["trial"] == {"ok": True, "done": steps, "failed": None, "detail": "", "fix": None}
    assert found["properties"]["memory-limit"]["needed"] is True
    assert found["properties"]["guest-kernel"] == {
        "achieved": False,
        "detail": "system calls go to the host's kernel",
        "fix": "sudo apt-get install runsc, then --runtime runsc",
        "needed": False,
    }


def test_a_missing_runtime_is_an_exit_code_and_a_command(tmp_path: Path) -> None:
    result = run("--state-dir", str(tmp_path), "--runtime", "no-such-runtime")
    assert result.exit_code == 1
    assert "MISSING" in result.output
    assert "check the name" in result.output
    assert "Not ready" in result.output
    assert "allow_unenforced_limits" not in result.output, "no option helps where there is no isolation"
    as_json = run("--state-dir", str(tmp_path), "--runtime", "no-such-runtime", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.output)["ready"] is False


def test_only_limits_missing_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {prop: IsolationFinding(prop in DEFAULT_REQUIRE, "[so] it is", "do [this]") for prop in Isolation}
    report = IsolationReport("crun 1", found)

    @attrs.frozen
    class Probe:
        report: IsolationReport

    async def probe_host(runtime: str, state_dir: Path) -> Probe:
        return Probe(report)

    async def try_sandbox(engine: object, *, allow_unenforced_limits: bool, **how: object) -> Tried:
        return Tried(("start",)) if allow_unenforced_limits else Tried((), "start", "refused")

    monkeypatch.setattr(sys.modules["sandboxrt.cli.doctor"], "probe_host", probe_host)
    monkeypatch.setattr(sys.modules["sandboxrt.cli.doctor"], "try_sandbox", try_sandbox)
    result = run("--state-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "--allow-unenforced-limits" in result.output
    assert "[so] it is" in result.output, "the tools' words are no markup"
    assert result.output.count("do [this]") == 1, "one fix for many is said once"


def test_no_probe_overrules_a_sandbox_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime passes every question and still cannot do what a sandbox needs."""
    script = tmp_path / "crun"
    real = shutil.which("crun")
    script.write_text(f'#!/bin/sh\ncase $* in *--detach*) echo it rains >&2; exit 1;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    result = run("--state-dir", str(tmp_path / "s"), "--runtime", str(script))
    assert result.exit_code == 1, result.output
    assert "MISSING" not in result.output
    assert "Not ready: a sandbox was tried, and failed at its start: " in result.output
    assert "it rains" in result.output
    told = json.loads(run("--state-dir", str(tmp_path / "s"), "--runtime", str(script), "--json").output)
    assert (told["ready"], told["trial"]["failed"]) == (False, "start")


def test_what_is_required_is_tried(tmp_path: Path) -> None:
    result = run("--state-dir", str(tmp_path), "--require", "guest-kernel")
    assert result.exit_code == 1
    assert "refused for want of guest-kernel" in result.output
    assert "sudo apt-get install runsc" in result.output


def test_limits_that_cannot_be_are_tried(tmp_path: Path) -> None:
    result = run("--state-dir", str(tmp_path), "--disk", "9t")
    assert result.exit_code == 1
    assert "failed at its start: a disk can have at most" in result.output


BOTH = """
import sys
from click.testing import CliRunner
from sandboxrt.cli import main
for words in (["doctor"], ["run"]):
    tail = ["--", "true"] if words == ["run"] else []
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, [*words, "--state-dir", sys.argv[1], *tail])
    print(result.exit_code, result.output, sep="\\n", end="\\0")
"""


def test_a_create_says_what_the_doctor_says_and_each_says_it_once(tmp_path: Path) -> None:
    done = as_user(tmp_path, "", BOTH, str(tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    doctor, create = (part.split("\n", 1) for part in done.stdout.split("\0")[:2])
    assert (doctor[0], create[0]) == ("1", "125")
    cause, fix = "stranger has no subordinate ids in /etc/subuid and /etc/subgid", "sudo usermod --add-subuids"
    for said in (doctor[1], create[1]):
        assert said.count(cause) == 1, said
        assert said.count(fix) == 1, said
    assert "[Isolation]" in create[1]


def test_a_state_folder_that_cannot_be_is_a_clean_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("--state-dir", str(tmp_path / "file" / "below"))
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "Traceback" not in result.output


def test_clean_removes_what_a_killed_owner_left(tmp_path: Path) -> None:
    assert "nothing was left behind" in run("--state-dir", str(tmp_path), "--clean").output
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SANDBOXRT_STATE_DIR": str(tmp_path)},
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        alive = json.loads(run("--state-dir", str(tmp_path), "--clean", "--json").output)
        assert alive["removed"] == [], "a living owner's sandbox is left alone"
        assert list((tmp_path / "sandboxes").iterdir())
        owner.send_signal(signal.SIGKILL)
        owner.wait(10)
        result = run("--state-dir", str(tmp_path), "--clean")
        assert "cleaned: orphan" in result.output
        assert list((tmp_path / "sandboxes").iterdir()) == []
        assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    finally:
        owner.kill()
        owner.wait(10)
        assert owner.stdout is not None
        owner.stdout.close()


def test_a_state_folder_is_checked_and_repaired(tmp_path: Path) -> None:
    trio.run(_make_state, tmp_path)
    folder = ("--state-dir", str(tmp_path))
    sound = run("--state", *folder)
    assert (sound.exit_code, sound.output) == (0, f"{tmp_path} is sound.\n")
    stray = tmp_path / "snapshots" / ".trash-218101ec-ffb7-4075-a0fb-8521293cc5ae"
    stray.mkdir(parents=True)
    found = run("--state", *folder)
    assert found.exit_code == 1
    assert f"stray-snapshot-folder: {stray}" in found.output
    assert "--repair would remove it" in found.output
    assert f"{tmp_path} is not sound: 1 finding." in found.output
    assert stray.exists()
    as_json = run("--state", "--json", *folder)
    assert as_json.exit_code == 1
    (finding,) = json.loads(as_json.output)["findings"]
    assert (finding["kind"], finding["where"], finding["repair"]) == ("stray-snapshot-folder", str(stray), "remove it")
    repaired = run("--state", "--repair", "--json", *folder)
    assert repaired.exit_code == 0, repaired.output
    told = json.loads(repaired.output)
    assert (told["sound"], told["repaired"], told["trouble"]) == (True, [finding], [])
    assert not stray.exists()
    assert run("--state", "--repair", *folder).output == f"{tmp_path} is sound.\n"


async def _make_state(folder: Path) -> None:
    async with Store.open(folder):
        pass


def test_what_is_no_state_folder_is_neither_checked_nor_made(tmp_path: Path) -> None:
    for repair in ((), ("--repair",)):
        missing = run("--state", *repair, "--state-dir", str(tmp_path / "nowhere"))
        assert missing.exit_code == 2
        assert missing.output == f"Error: There is no state folder {tmp_path / 'nowhere'}: check the path\n"
        empty = run("--state", *repair, "--state-dir", str(tmp_path))
        assert empty.exit_code == 2
        assert "there is no state.db in it" in empty.output
    assert list(tmp_path.iterdir()) == []


def test_repairs_go_with_state(tmp_path: Path) -> None:
    assert "--repair goes with --state" in run("--repair", "--state-dir", str(tmp_path)).output
    assert "--clean does not go with --state" in run("--state", "--clean", "--state-dir", str(tmp_path)).output
