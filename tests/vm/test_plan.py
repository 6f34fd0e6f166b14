"""The steps of a run: what they start is there, and both forms ask for what they need."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.vm.debian import KEYRING, MIRROR_VARIABLE, RELEASES, mirror
from tests.vm.plan import USER, Step, check_steps, install_steps, suite_steps
from tests.vm.supplies import ROOT, Wanted, supplies_key

STEPS = [*install_steps("root"), *install_steps(USER), *check_steps(), *suite_steps(2)]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_every_program_of_a_step_is_there(step: Step) -> None:
    assert subprocess.run(["bash", "-n", "-c", step.command], check=False).returncode == 0
    for module in re.findall(r"-m (tests\.vm\.guest\.\w+)", step.command):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    for script in re.findall(r"(?<!\S)tools/\S+\.sh", step.command):
        assert (ROOT / script).stat().st_mode & 0o111
    for tests in re.findall(r"(?<!\S)tests/\S+", step.command):
        assert (ROOT / tests).exists()


def test_no_two_steps_have_one_name() -> None:
    for installer in ("root", USER):
        names = [step.name for step in (*install_steps(installer), *check_steps(), *suite_steps(2))]
        assert len(set(names)) == len(names)


def test_what_a_guest_is_given_is_what_the_project_asks_for() -> None:
    short, long = Wanted.for_run(suites=False), Wanted.for_run(suites=True)
    assert {"crun", "skopeo", "runc"} <= set(short.packages) < set(long.packages)
    assert {"trio", "hatchling"} <= {re.split(r"[<>=\[]", line)[0] for line in short.requirements}
    assert set(short.requirements) < set(long.requirements)
    release = RELEASES[0]
    assert (
        len({supplies_key(release, short, "a"), supplies_key(release, long, "a"), supplies_key(release, short, "b")})
        == 3
    )


def test_a_mirror_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "file:/srv/debian")
    assert mirror() == "file:/srv/debian"


def test_no_mirror_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    tool = tmp_path / "apt-get"
    tool.write_text("#!/bin/sh\necho 'noble main file:/srv/ubuntu'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(RuntimeError, match=MIRROR_VARIABLE):
        mirror()
    assert KEYRING.is_absolute()


def test_the_machines_own_mirror_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    tool = tmp_path / "apt-get"
    tool.write_text(
        "#!/bin/sh\nprintf '%s\\n' 'nodistro main file:/srv/a' 'bookworm contrib file:/b' 'bookworm main file:/c d'\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert mirror() == "file:/c d"
